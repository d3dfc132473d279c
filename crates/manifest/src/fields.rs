//! Reading an object key by key, remembering what nobody asked for.
//!
//! serde stops at the first fault. Who writes a manifest wants all of them, so the tree is walked by hand.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde_json::Value;

use crate::fault::Fault;
use crate::{Quantity, Strictness};

/// What was found wrong so far, in one document.
#[derive(Debug)]
pub(crate) struct Notes {
    source: String,
    document: usize,
    strictness: Strictness,
    faults: RefCell<Vec<Fault>>,
    warnings: RefCell<Vec<Fault>>,
}

impl Notes {
    pub(crate) fn new(source: &str, document: usize, strictness: Strictness) -> Self {
        Self {
            source: source.to_owned(),
            document,
            strictness,
            faults: RefCell::default(),
            warnings: RefCell::default(),
        }
    }

    fn make(&self, path: String, problem: String) -> Fault {
        Fault { source: self.source.clone(), document: self.document, path, problem }
    }

    pub(crate) fn fault(&self, path: impl Into<String>, problem: impl Into<String>) {
        let fault = self.make(path.into(), problem.into());
        self.faults.borrow_mut().push(fault);
    }

    /// A field that means nothing here: the pod could run without it.
    fn ignorable(&self, path: String, problem: String) {
        let fault = self.make(path, problem);
        match self.strictness {
            Strictness::Strict => self.faults.borrow_mut().push(fault),
            Strictness::Lenient => self.warnings.borrow_mut().push(fault),
        }
    }

    pub(crate) fn into_parts(self) -> (Vec<Fault>, Vec<Fault>) {
        (self.faults.into_inner(), self.warnings.into_inner())
    }
}

/// An object. A key whose value is null is taken for absent, as the API server does.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    path: String,
    entries: BTreeMap<&'a str, &'a Value>,
    known: Vec<&'static str>,
    notes: &'a Notes,
}

impl<'a> Fields<'a> {
    /// Reads `value`, and notes every key that `read` has not asked for. `None` when it is no object.
    pub(crate) fn of<T>(
        value: &'a Value,
        path: String,
        notes: &'a Notes,
        read: impl FnOnce(&mut Fields<'a>) -> T,
    ) -> Option<T> {
        let Some(object) = value.as_object() else {
            notes.fault(path, wrong_type("an object", value));
            return None;
        };
        let entries =
            object.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.as_str(), value));
        let mut fields = Fields { path, entries: entries.collect(), known: Vec::new(), notes };
        let read = read(&mut fields);
        for key in fields.entries.keys() {
            let close = closest(key, &fields.known);
            let hint = close.map(|known| format!("; did you mean {known}?")).unwrap_or_default();
            notes.ignorable(fields.at(key), format!("unknown field{hint}"));
        }
        Some(read)
    }

    /// The path of a key below this object.
    pub(crate) fn at(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    pub(crate) fn fault(&self, key: &str, problem: impl Into<String>) {
        self.notes.fault(self.at(key), problem);
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    fn take(&mut self, key: &'static str) -> Option<&'a Value> {
        self.known.push(key);
        self.entries.remove(key)
    }

    fn typed<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.take(key)?;
        let read = read(value);
        if read.is_none() {
            self.fault(key, wrong_type(wanted, value));
        }
        read
    }

    pub(crate) fn string(&mut self, key: &'static str) -> Option<String> {
        self.typed(key, "a string", |value| value.as_str().map(str::to_owned))
    }

    /// Notes it when a key is not there; whatever its type, it is read by what is called next. Whether it is there.
    pub(crate) fn demand(&self, key: &str) -> bool {
        let there = self.has(key);
        if !there {
            self.fault(key, "is required");
        }
        there
    }

    /// A string that has to be there and not be empty.
    pub(crate) fn required(&mut self, key: &'static str) -> String {
        self.demand(key);
        let value = self.string(key);
        if value.as_deref() == Some("") {
            self.fault(key, "must not be empty");
        }
        value.unwrap_or_default()
    }

    /// A string that `check` says more about.
    pub(crate) fn checked<T>(
        &mut self,
        key: &'static str,
        check: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        match check(&self.string(key)?) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.fault(key, problem);
                None
            }
        }
    }

    /// A string that has to be there, and that `check` says more about.
    pub(crate) fn required_as<T>(
        &mut self,
        key: &'static str,
        check: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.demand(key);
        self.checked(key, check)
    }

    /// One of these words.
    pub(crate) fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        self.checked(key, |given| {
            let found = words.iter().find(|(word, _)| *word == given).map(|(_, meaning)| *meaning);
            found.ok_or_else(|| {
                let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                format!("must be one of {}, not {given:?}", known.join(", "))
            })
        })
    }

    pub(crate) fn boolean(&mut self, key: &'static str) -> Option<bool> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(crate) fn flag(&mut self, key: &'static str) -> bool {
        self.boolean(key).unwrap_or(false)
    }

    pub(crate) fn integer(&mut self, key: &'static str, range: RangeInclusive<i64>) -> Option<i64> {
        let value = self.typed(key, "a whole number", Value::as_i64)?;
        if range.contains(&value) {
            return Some(value);
        }
        self.fault(key, format!("must be from {} to {}, not {value}", range.start(), range.end()));
        None
    }

    /// Seconds.
    pub(crate) fn seconds(&mut self, key: &'static str, least: u32) -> Option<std::time::Duration> {
        let seconds = self.integer(key, i64::from(least)..=i64::from(i32::MAX))?;
        Some(std::time::Duration::from_secs(seconds.unsigned_abs()))
    }

    /// A quantity, given as text or as a number.
    pub(crate) fn quantity(&mut self, key: &'static str) -> Option<Quantity> {
        let value = self.take(key)?;
        quantity(value, &self.at(key), self.notes)
    }

    /// An object below this one.
    pub(crate) fn object<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Fields<'a>) -> T,
    ) -> Option<T> {
        let value = self.take(key)?;
        Fields::of(value, self.at(key), self.notes, read)
    }

    /// The objects of a list; those that are none are left out, and noted.
    pub(crate) fn objects<T>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&mut Fields<'a>) -> T,
    ) -> Vec<T> {
        let path = self.at(key);
        let notes = self.notes;
        let items = self.typed(key, "a list", Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let objects = items.iter().enumerate();
        objects
            .filter_map(|(index, item)| Fields::of(item, format!("{path}[{index}]"), notes, &mut read))
            .collect()
    }

    pub(crate) fn strings(&mut self, key: &'static str) -> Vec<String> {
        self.typed(key, "a list of strings", |value| {
            value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
        })
        .unwrap_or_default()
    }

    pub(crate) fn integers(&mut self, key: &'static str) -> Vec<i64> {
        self.typed(key, "a list of whole numbers", |value| {
            value.as_array()?.iter().map(Value::as_i64).collect()
        })
        .unwrap_or_default()
    }

    /// Keys and strings that the writer chooses.
    pub(crate) fn string_map(&mut self, key: &'static str) -> BTreeMap<String, String> {
        self.map(key, |value, path, notes| match value.as_str() {
            Some(text) => Some(text.to_owned()),
            None => {
                notes.fault(path, wrong_type("a string", value));
                None
            }
        })
    }

    pub(crate) fn quantity_map(&mut self, key: &'static str) -> BTreeMap<String, Quantity> {
        self.map(key, quantity)
    }

    fn map<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&Value, &str, &Notes) -> Option<T>,
    ) -> BTreeMap<String, T> {
        let path = self.at(key);
        let notes = self.notes;
        let Some(object) = self.typed(key, "an object", Value::as_object) else { return BTreeMap::new() };
        let entries = object.iter().filter(|(_, value)| !value.is_null());
        entries
            .filter_map(|(name, value)| Some((name.clone(), read(value, &format!("{path}.{name}"), notes)?)))
            .collect()
    }

    /// Any value.
    pub(crate) fn any(&mut self, key: &'static str) -> Option<&'a Value> {
        self.take(key)
    }

    /// Fields that the API has and that mean nothing here.
    pub(crate) fn meaningless(&mut self, keys: &[&'static str], why: &str) {
        for key in keys {
            if self.take(key).is_some() {
                self.notes.ignorable(self.at(key), format!("is not supported: {why}"));
            }
        }
    }

    /// Fields that may be there and are of no consequence: what `kubectl get -o yaml` adds.
    pub(crate) fn skip(&mut self, keys: &[&'static str]) {
        for key in keys {
            self.take(key);
        }
    }

    /// Nothing of the rest is looked at.
    pub(crate) fn ignore_rest(&mut self) {
        self.entries.clear();
    }

    /// Fields that must not be here, whatever the strictness.
    pub(crate) fn refuse(&mut self, keys: &[&'static str], why: &str) {
        for key in keys {
            if self.take(key).is_some() {
                self.fault(key, why);
            }
        }
    }

    /// The one of these keys that is there; a fault when there is none or several.
    pub(crate) fn exactly_one(&self, keys: &[&'static str], what: &str) -> Option<&'static str> {
        let given: Vec<&'static str> = keys.iter().copied().filter(|key| self.has(key)).collect();
        match given.as_slice() {
            [one] => Some(one),
            [] => {
                self.notes.fault(self.path.clone(), format!("needs {what}: {}", keys.join(", ")));
                None
            }
            several => {
                let problem = format!("has several of {}: only one is possible", several.join(", "));
                self.notes.fault(self.path.clone(), problem);
                several.first().copied()
            }
        }
    }
}

fn quantity(value: &Value, path: &str, notes: &Notes) -> Option<Quantity> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        other => {
            notes.fault(path, wrong_type("a quantity such as 500m or 64Mi", other));
            return None;
        }
    };
    match text.parse() {
        Ok(quantity) => Some(quantity),
        Err(error) => {
            notes.fault(path, format!("{error}"));
            None
        }
    }
}

fn wrong_type(wanted: &str, found: &Value) -> String {
    let found = match found {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false (quote it to mean text)",
        Value::Number(_) => "a number (quote it to mean text)",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    format!("must be {wanted}, not {found}")
}

/// A known key that one slip of the fingers away, or another case, makes `key`.
fn closest(key: &str, known: &[&'static str]) -> Option<&'static str> {
    let lower = key.to_lowercase();
    known.iter().copied().find(|known| distance(&lower, &known.to_lowercase()) <= 1 + key.len() / 8)
}

/// How many letters have to be put in, left out or changed to get from one to the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, right) in b.chars().enumerate() {
            let change = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_another_word_is_not() {
        let known = ["containers", "initContainers", "restartPolicy"];
        assert_eq!(closest("initcontainers", &known), Some("initContainers"));
        assert_eq!(closest("restartPolcy", &known), Some("restartPolicy"));
        assert_eq!(closest("volumes", &known), None);
        assert_eq!((distance("", "abc"), distance("kitten", "sitting")), (3, 3));
    }
}
