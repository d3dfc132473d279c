//! Lists and maps whose entries have a key: adding, replacing, and taking away with "-key".

use std::collections::{BTreeMap, BTreeSet};

use super::owners::{Claim, Owners};
use crate::{Field, Refused, api::removed};

/// Something with a key.
pub(crate) trait Keyed: Clone {
    fn key(&self) -> &str;

    /// What says that the entry of this key, which begins with a minus, is to be taken away.
    fn mark(key: String) -> Self;
}

macro_rules! keyed {
    ($($kind:ident.$key:ident)*) => {
        $(impl Keyed for crate::$kind {
            fn key(&self) -> &str {
                &self.$key
            }

            fn mark(key: String) -> Self {
                Self { $key: key, ..Default::default() }
            }
        })*
    };
}

keyed!(Mount.destination LinuxDevice.path KeyValue.key LinuxNamespace.r#type);

impl<T: Clone + Default> Keyed for (String, T) {
    fn key(&self) -> &str {
        &self.0
    }

    fn mark(key: String) -> Self {
        (key, T::default())
    }
}

/// Whose wish this is, about which container.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish<'a> {
    pub(crate) container: &'a str,
    pub(crate) plugin: &'a str,
    pub(crate) field: Field,
}

/// What one plugin's wishes did: keys that are not what they were, and the entries that are there instead.
#[derive(Debug)]
pub(crate) struct Changed<T> {
    gone: BTreeSet<String>,
    new: Vec<T>,
}

impl<T: Keyed> Changed<T> {
    /// The list after the change.
    pub(crate) fn apply(self, list: &mut Vec<T>) {
        list.retain(|entry| !self.gone.contains(entry.key()));
        list.extend(self.new);
    }

    /// The same for a list of "NAME=value".
    pub(crate) fn apply_to_text(self, list: &mut Vec<String>, text: impl Fn(T) -> String) {
        list.retain(|entry| {
            let key = entry.split_once('=').map_or(entry.as_str(), |(key, _)| key);
            !self.gone.contains(key)
        });
        list.extend(self.new.into_iter().map(text));
    }
}

/// Adds one plugin's wishes to what was collected of earlier ones.
pub(crate) fn list<T: Keyed>(
    owners: &mut Owners,
    wish: Wish<'_>,
    wanted: Vec<T>,
    collected: &mut Vec<T>,
) -> Result<Changed<T>, Refused> {
    let claim = |key: &str| -> Claim { (wish.field, Some(key.to_owned())) };
    let (marks, new): (Vec<T>, Vec<T>) = wanted.into_iter().partition(|entry| removed(entry.key()).is_some());
    let gone: BTreeSet<String> =
        marks.iter().filter_map(|entry| removed(entry.key())).map(str::to_owned).collect();
    owners.clear(wish.container, wish.plugin, &gone.iter().map(|key| claim(key)).collect::<Vec<_>>());
    owners.claim(
        wish.container,
        wish.plugin,
        &new.iter().map(|entry| claim(entry.key())).collect::<Vec<_>>(),
    )?;
    // A mark stays in front of what replaces the entry: whoever applies the list takes away first.
    collected.retain(|entry| {
        !gone.contains(entry.key()) && !removed(entry.key()).is_some_and(|key| gone.contains(key))
    });
    collected.extend(gone.iter().map(|key| T::mark(format!("-{key}"))));
    collected.extend(new.iter().cloned());
    let replaced = new.iter().map(|entry| entry.key().to_owned());
    Ok(Changed { gone: replaced.chain(gone.iter().cloned()).collect(), new })
}

/// [`list`] for a map, which is what it changes in `view` as well.
pub(crate) fn map<V: Clone + Default>(
    owners: &mut Owners,
    wish: Wish<'_>,
    wanted: BTreeMap<String, V>,
    collected: &mut BTreeMap<String, V>,
    view: &mut BTreeMap<String, V>,
) -> Result<(), Refused> {
    let mut entries: Vec<_> = std::mem::take(collected).into_iter().collect();
    let changed = list(owners, wish, wanted.into_iter().collect(), &mut entries);
    *collected = entries.into_iter().collect();
    let mut shown: Vec<_> = std::mem::take(view).into_iter().collect();
    changed?.apply(&mut shown);
    *view = shown.into_iter().collect();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KeyValue;

    fn value(key: &str, value: &str) -> KeyValue {
        KeyValue { key: key.to_owned(), value: value.to_owned() }
    }

    fn keys(list: &[KeyValue]) -> Vec<String> {
        list.iter().map(|entry| format!("{}={}", entry.key, entry.value)).collect()
    }

    #[test]
    fn what_is_taken_away_is_gone_from_everywhere_and_what_replaces_it_is_there_once() {
        let mut owners = Owners::default();
        let mut collected = Vec::new();
        let mut shown = vec!["PATH=/bin".to_owned(), "HOME=/".to_owned()];
        let mut wish = |plugin: &str, wanted: Vec<KeyValue>| {
            let wish = Wish { container: "c", plugin, field: Field::Env };
            let changed = list(&mut owners, wish, wanted, &mut collected)?;
            changed.apply_to_text(&mut shown, |entry| format!("{}={}", entry.key, entry.value));
            Ok::<_, Refused>((keys(&collected), shown.clone()))
        };
        let (collected, shown) = wish("10-a", vec![value("X", "1"), value("-HOME", "")]).unwrap();
        assert_eq!(collected, ["-HOME=", "X=1"]);
        assert_eq!(shown, ["PATH=/bin", "X=1"]);
        assert!(wish("20-b", vec![value("X", "2")]).is_err());
        let (collected, shown) = wish("20-b", vec![value("-X", ""), value("X", "2")]).unwrap();
        assert_eq!(collected, ["-HOME=", "-X=", "X=2"]);
        assert_eq!(shown, ["PATH=/bin", "X=2"]);
    }
}
