//! Reading a TOML table key by key, remembering what nobody asked for.
//!
//! serde stops at the first fault and forgets where a value stood. A node whose file has three mistakes should be
//! restarted once, so the table is walked by hand and each mistake is noted with its line.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::faults::{Faults, Origin};

/// A value with its key and place, for the checks that follow.
#[derive(Clone, Debug)]
pub(super) struct Given<T> {
    pub(super) key: String,
    pub(super) origin: Origin,
    pub(super) value: T,
}

impl<T> Given<T> {
    pub(super) fn flag(flag: &'static str, value: T) -> Self {
        Self { key: String::new(), origin: Origin::Flag(flag), value }
    }

    /// Keeps what the check accepts, notes what it says otherwise.
    pub(super) fn check<U>(
        self,
        faults: &mut Faults<'_>,
        check: impl FnOnce(T) -> Result<U, String>,
    ) -> Option<U> {
        match check(self.value) {
            Ok(value) => Some(value),
            Err(problem) => {
                faults.add(&self.origin, self.key, problem);
                None
            }
        }
    }
}

/// One table of the file.
#[derive(Debug)]
pub(super) struct Section<'a> {
    path: String,
    entries: BTreeMap<&'a str, (Origin, &'a Spanned<DeValue<'a>>)>,
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    pub(super) fn root(table: &'a DeTable<'a>, faults: &Faults<'_>) -> Self {
        Self::new(String::new(), table, faults)
    }

    fn new(path: String, table: &'a DeTable<'a>, faults: &Faults<'_>) -> Self {
        let entries = table
            .iter()
            .map(|(key, value)| (key.get_ref().as_ref(), (faults.origin(key.span()), value)))
            .collect();
        Self { path, entries, known: Vec::new() }
    }

    fn empty(path: String) -> Self {
        Self { path, entries: BTreeMap::new(), known: Vec::new() }
    }

    fn full_key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn take(&mut self, key: &'static str) -> Option<Given<&'a DeValue<'a>>> {
        self.known.push(key);
        let (origin, value) = self.entries.remove(key)?;
        Some(Given { key: self.full_key(key), origin, value: value.get_ref() })
    }

    /// A value in the type that `read` makes of it; what it cannot read is noted.
    fn read<T>(
        &mut self,
        key: &'static str,
        faults: &mut Faults<'_>,
        read: impl FnOnce(&'a DeValue<'a>) -> Result<T, String>,
    ) -> Option<Given<T>> {
        let given = self.take(key)?;
        let (key, origin) = (given.key.clone(), given.origin.clone());
        Some(Given { key, origin, value: given.check(faults, read)? })
    }

    pub(super) fn string(&mut self, key: &'static str, faults: &mut Faults<'_>) -> Option<Given<String>> {
        self.read(key, faults, |value| {
            value.as_str().map(str::to_owned).ok_or_else(|| wrong_type("a string", value))
        })
    }

    pub(super) fn boolean(&mut self, key: &'static str, faults: &mut Faults<'_>) -> Option<Given<bool>> {
        self.read(key, faults, |value| value.as_bool().ok_or_else(|| wrong_type("true or false", value)))
    }

    pub(super) fn integer(&mut self, key: &'static str, faults: &mut Faults<'_>) -> Option<Given<i64>> {
        self.read(key, faults, |value| {
            let number = value.as_integer().ok_or_else(|| wrong_type("a whole number", value))?;
            i64::from_str_radix(number.as_str(), number.radix())
                .map_err(|_| format!("{} is too large", number.as_str()))
        })
    }

    pub(super) fn strings(
        &mut self,
        key: &'static str,
        faults: &mut Faults<'_>,
    ) -> Option<Given<Vec<String>>> {
        let string = |item: &Spanned<DeValue<'_>>| {
            let item = item.get_ref();
            item.as_str().map(str::to_owned).ok_or_else(|| wrong_type("a list of strings", item))
        };
        self.read(key, faults, |value| {
            let items = value.as_array().ok_or_else(|| wrong_type("a list of strings", value))?;
            items.iter().map(string).collect()
        })
    }

    /// A table below this one; an empty one when the file has none.
    pub(super) fn table(&mut self, key: &'static str, faults: &mut Faults<'_>) -> Section<'a> {
        let path = self.full_key(key);
        let Some(given) = self.take(key) else { return Section::empty(path) };
        let Some(table) = given.check(faults, |value| {
            value.as_table().ok_or_else(|| wrong_type(&format!("a [{path}] table"), value))
        }) else {
            return Section::empty(path);
        };
        Section::new(path, table, faults)
    }

    /// Every entry as a table of its own, for a section whose keys are names that the file chooses.
    pub(super) fn named_tables(mut self, faults: &mut Faults<'_>) -> Vec<(Given<String>, Section<'a>)> {
        let mut tables = Vec::new();
        for (name, (origin, value)) in std::mem::take(&mut self.entries) {
            let key = self.full_key(name);
            let Some(table) = value.get_ref().as_table() else {
                faults.add(&origin, &key, wrong_type(&format!("a [{key}] table"), value.get_ref()));
                continue;
            };
            let section = Section::new(key.clone(), table, faults);
            tables.push((Given { key, origin, value: name.to_owned() }, section));
        }
        tables
    }

    /// Notes every key that nobody asked for.
    pub(super) fn finish(self, faults: &mut Faults<'_>) {
        for (key, (origin, _)) in &self.entries {
            let problem = format!("unknown key; known here: {}", self.known.join(", "));
            faults.add(origin, self.full_key(key), problem);
        }
    }
}

fn wrong_type(wanted: &str, found: &DeValue<'_>) -> String {
    format!("must be {wanted}, not {}", describe(found))
}

fn describe(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
