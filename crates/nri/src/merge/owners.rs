//! Which plugin set what: how two that want different things are found.

use std::collections::BTreeMap;

use crate::{CompoundFieldOwners, Field, FieldOwners, OwningPlugins, Refused, api::removed};

/// One thing that a plugin sets: a field, or an entry of one.
pub(crate) type Claim = (Field, Option<String>);

/// Owners by container.
#[derive(Clone, Debug, Default)]
pub(crate) struct Owners(BTreeMap<String, FieldOwners>);

impl Owners {
    /// A plugin sets these; all of them, or none when another plugin owns one.
    pub(crate) fn claim(&mut self, container: &str, plugin: &str, claims: &[Claim]) -> Result<(), Refused> {
        let owners = self.0.entry(container.to_owned()).or_default();
        for (field, key) in claims {
            let conflicting = match owner(owners, *field, key.as_deref()) {
                None => None,
                // Whoever took it away may set it anew, and nobody else.
                Some(owner) => match removed(owner) {
                    Some(clearer) => Some(clearer).filter(|clearer| *clearer != plugin),
                    None => Some(owner),
                },
            };
            if let Some(other) = conflicting {
                let what = match key {
                    Some(key) => format!("{} {key}", field.as_str_name()),
                    None => field.as_str_name().to_owned(),
                };
                return Err(Refused::Conflict {
                    one: plugin.to_owned(),
                    other: other.to_owned(),
                    what,
                    container: container.to_owned(),
                });
            }
        }
        for (field, key) in claims {
            set(owners, *field, key.as_deref(), plugin.to_owned());
        }
        Ok(())
    }

    /// A plugin takes these away, whoever owns them.
    pub(crate) fn clear(&mut self, container: &str, plugin: &str, claims: &[Claim]) {
        let owners = self.0.entry(container.to_owned()).or_default();
        for (field, key) in claims {
            set(owners, *field, key.as_deref(), format!("-{plugin}"));
        }
    }

    /// A plugin adds to what any number of plugins may add to.
    pub(crate) fn share(&mut self, container: &str, plugin: &str, field: Field) {
        let owners = self.0.entry(container.to_owned()).or_default();
        let all = match owner(owners, field, None) {
            Some(others) => format!("{others},{plugin}"),
            None => plugin.to_owned(),
        };
        set(owners, field, None, all);
    }

    /// For a validating plugin.
    pub(crate) fn message(&self) -> OwningPlugins {
        OwningPlugins { owners: self.0.clone() }
    }
}

fn owner<'a>(owners: &'a FieldOwners, field: Field, key: Option<&str>) -> Option<&'a str> {
    let number = field as i32;
    let owner = match key {
        None => owners.simple.get(&number),
        Some(key) => owners.compound.get(&number).and_then(|entries| entries.owners.get(key)),
    };
    owner.map(String::as_str)
}

fn set(owners: &mut FieldOwners, field: Field, key: Option<&str>, owner: String) {
    let number = field as i32;
    match key {
        None => {
            owners.simple.insert(number, owner);
        }
        Some(key) => {
            let entries: &mut CompoundFieldOwners = owners.compound.entry(number).or_default();
            entries.owners.insert(key.to_owned(), owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Vec<Claim> {
        vec![(Field::Env, Some(name.to_owned()))]
    }

    #[test]
    fn two_plugins_never_own_the_same_and_the_error_names_both() {
        let mut owners = Owners::default();
        owners.claim("c", "10-a", &env("X")).unwrap();
        owners.claim("c", "20-b", &env("Y")).unwrap();
        owners.claim("other", "20-b", &env("X")).unwrap();
        let error = owners.claim("c", "20-b", &env("X")).unwrap_err().to_string();
        assert_eq!(error, "NRI plugins 20-b and 10-a both set Env X of container c");
    }

    #[test]
    fn what_a_plugin_took_away_it_may_set_and_nobody_else() {
        let mut owners = Owners::default();
        owners.claim("c", "10-a", &env("X")).unwrap();
        owners.clear("c", "20-b", &env("X"));
        assert!(owners.claim("c", "30-c", &env("X")).is_err());
        owners.claim("c", "20-b", &env("X")).unwrap();
        assert!(owners.claim("c", "30-c", &env("X")).is_err());
    }

    #[test]
    fn a_conflict_over_one_field_claims_none_of_the_others() {
        let mut owners = Owners::default();
        owners.claim("c", "10-a", &[(Field::MemLimit, None)]).unwrap();
        assert!(owners.claim("c", "20-b", &[(Field::CpuShares, None), (Field::MemLimit, None)]).is_err());
        owners.claim("c", "30-c", &[(Field::CpuShares, None)]).unwrap();
    }
}
