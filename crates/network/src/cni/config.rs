//! CNI configuration files: which one counts, and what it says (CNI spec 1.1.0, section 1).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

/// A version of the CNI protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(u32, u32, u32);

impl Version {
    const SUPPORTED: [Self; 5] = [Self(0, 3, 0), Self(0, 3, 1), Self(0, 4, 0), Self(1, 0, 0), Self(1, 1, 0)];
    /// The first with CHECK, and with the cached result at DEL.
    const CHECK: Self = Self(0, 4, 0);
    /// The first with STATUS and GC.
    const STATUS: Self = Self(1, 1, 0);

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '.').map(|part| part.parse().ok());
        let version = Self(parts.next()??, parts.next()??, parts.next()??);
        Self::SUPPORTED.contains(&version).then_some(version)
    }

    pub(crate) fn has_check(self) -> bool {
        self >= Self::CHECK
    }

    pub(crate) fn has_status(self) -> bool {
        self >= Self::STATUS
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// A file that is no usable CNI configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The directory.
    #[error("cannot read CNI directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The file.
    #[error("cannot read CNI configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Not JSON.
    #[error("CNI configuration {} is not JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        #[source]
        source: serde_json::Error,
    },
    /// JSON, but not what the specification asks for.
    #[error("CNI configuration {}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: ContentError,
    },
}

/// What is wrong with a configuration list.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// A missing field, or one of another type.
    #[error("field {0:?} is missing or of the wrong type")]
    Field(&'static str),
    /// A name the specification forbids.
    #[error("{0:?} is not a valid network name")]
    Name(String),
    /// A plugin's type that is not a file name.
    #[error("{0:?} is not a valid plugin type")]
    PluginType(String),
    /// No version that berth speaks.
    #[error("cniVersion {0:?} is not supported; berth speaks 0.3.0, 0.3.1, 0.4.0, 1.0.0 and 1.1.0")]
    Version(String),
    /// An empty list.
    #[error("there is no plugin in the list")]
    NoPlugins,
}

/// One plugin of a list.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PluginConfig {
    /// The binary's name.
    pub(crate) kind: String,
    fields: Map<String, Value>,
}

/// A network configuration list.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NetworkList {
    pub(crate) name: String,
    pub(crate) version: Version,
    pub(crate) disable_check: bool,
    pub(crate) disable_gc: bool,
    pub(crate) plugins: Vec<PluginConfig>,
    /// As written, for the record.
    pub(crate) source: Value,
}

impl NetworkList {
    /// Reads a list; a single plugin's configuration (the older `.conf`) counts as a list of one.
    pub(crate) fn parse(source: Value) -> Result<Self, ContentError> {
        let root = source.as_object().ok_or(ContentError::Field("(the whole)"))?;
        let name = string(root, "name")?;
        if !is_name(name) {
            return Err(ContentError::Name(name.to_owned()));
        }
        let single = [source.clone()];
        let plugins = match root.get("plugins") {
            Some(list) => list.as_array().ok_or(ContentError::Field("plugins"))?.as_slice(),
            None => &single,
        };
        if plugins.is_empty() {
            return Err(ContentError::NoPlugins);
        }
        Ok(Self {
            name: name.to_owned(),
            version: version(root)?,
            disable_check: flag(root, "disableCheck"),
            disable_gc: flag(root, "disableGC"),
            plugins: plugins.iter().map(plugin).collect::<Result<_, _>>()?,
            source,
        })
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let at = || path.to_owned();
        let text = fs::read(path).map_err(|source| ConfigError::Read { path: at(), source })?;
        let value =
            serde_json::from_slice(&text).map_err(|source| ConfigError::Json { path: at(), source })?;
        Self::parse(value).map_err(|source| ConfigError::Content { path: at(), source })
    }
}

impl PluginConfig {
    /// What the plugin reads from its standard input.
    pub(crate) fn input(
        &self,
        list: &NetworkList,
        previous: Option<&Value>,
        capabilities: &Map<String, Value>,
    ) -> Map<String, Value> {
        let mut input = self.fields.clone();
        let declared = input.remove("capabilities");
        let wanted =
            |name: &str| declared.as_ref().and_then(|d| d.get(name)).and_then(Value::as_bool) == Some(true);
        let granted: Map<String, Value> = capabilities
            .iter()
            .filter(|(name, _)| wanted(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !granted.is_empty() {
            input.insert("runtimeConfig".to_owned(), Value::Object(granted));
        }
        input.insert("name".to_owned(), Value::from(list.name.as_str()));
        input.insert("cniVersion".to_owned(), Value::from(list.version.to_string()));
        if let Some(previous) = previous {
            input.insert("prevResult".to_owned(), previous.clone());
        }
        input
    }
}

fn string<'a>(object: &'a Map<String, Value>, field: &'static str) -> Result<&'a str, ContentError> {
    object.get(field).and_then(Value::as_str).ok_or(ContentError::Field(field))
}

/// Some write their booleans as strings; the specification tolerates it.
fn flag(object: &Map<String, Value>, field: &str) -> bool {
    match object.get(field) {
        Some(Value::Bool(value)) => *value,
        Some(Value::String(value)) => value.eq_ignore_ascii_case("true"),
        _ => false,
    }
}

/// The highest that both sides speak, of `cniVersions` (since 1.1.0) or `cniVersion`.
fn version(root: &Map<String, Value>) -> Result<Version, ContentError> {
    let offered: Vec<&str> = match root.get("cniVersions").and_then(Value::as_array) {
        Some(list) => list.iter().filter_map(Value::as_str).chain(string(root, "cniVersion").ok()).collect(),
        None => vec![string(root, "cniVersion")?],
    };
    let best = offered.iter().filter_map(|text| Version::parse(text)).max();
    best.ok_or_else(|| ContentError::Version(offered.join(", ")))
}

fn plugin(value: &Value) -> Result<PluginConfig, ContentError> {
    let fields = value.as_object().ok_or(ContentError::Field("plugins"))?;
    let kind = string(fields, "type")?;
    if kind.is_empty() || kind.contains('/') || kind == "." || kind == ".." {
        return Err(ContentError::PluginType(kind.to_owned()));
    }
    Ok(PluginConfig { kind: kind.to_owned(), fields: fields.clone() })
}

/// Begins with a letter or digit, goes on with those, `_`, `.` or `-`.
fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// What a directory holds.
#[derive(Debug)]
pub(crate) enum Choice {
    /// No configuration at all.
    None,
    /// The first good one in the order of names; broken ones before it are named with their fault.
    List(Box<NetworkList>, Vec<ConfigError>),
    /// Files, but none that can be used: the fault of the first.
    Broken(ConfigError),
}

/// Chooses as the other runtimes do: the first usable `*.conflist`, `*.conf` or `*.json` in the order of names.
pub(crate) fn choose(directory: &Path) -> Choice {
    let paths = match files(directory) {
        Ok(paths) => paths,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Choice::None,
        Err(source) => return Choice::Broken(ConfigError::Directory { path: directory.to_owned(), source }),
    };
    let mut faults = Vec::new();
    for path in paths {
        match NetworkList::read(&path) {
            Ok(list) => return Choice::List(Box::new(list), faults),
            Err(err) => faults.push(err),
        }
    }
    faults.into_iter().next().map_or(Choice::None, Choice::Broken)
}

fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("conflist" | "conf" | "json")) && !path.is_dir() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: Value) -> Result<NetworkList, ContentError> {
        NetworkList::parse(value)
    }

    #[test]
    fn a_list_gives_each_plugin_only_the_capabilities_it_declares() {
        let list = parse(json!({
            "cniVersion": "1.0.0", "name": "net", "disableCheck": "true",
            "plugins": [
                {"type": "bridge", "mtu": 1400},
                {"type": "portmap", "capabilities": {"portMappings": true, "bandwidth": false}},
            ],
        }))
        .unwrap();
        assert!(list.disable_check && !list.disable_gc && list.version.has_check());
        let Value::Object(capabilities) = json!({"portMappings": [1], "bandwidth": 2, "dns": 3}) else {
            panic!()
        };
        let inputs: Vec<Value> = list
            .plugins
            .iter()
            .map(|plugin| plugin.input(&list, Some(&json!({"ips": []})), &capabilities).into())
            .collect();
        let common = json!({"ips": []});
        assert_eq!(
            inputs,
            [
                json!({"type": "bridge", "mtu": 1400, "name": "net", "cniVersion": "1.0.0", "prevResult": common}),
                json!({"type": "portmap", "name": "net", "cniVersion": "1.0.0", "prevResult": common,
                       "runtimeConfig": {"portMappings": [1]}}),
            ]
        );
    }

    #[test]
    fn a_single_plugin_counts_as_a_list_of_one() {
        let list = parse(json!({"cniVersion": "0.3.1", "name": "net", "type": "ptp"})).unwrap();
        assert_eq!(list.plugins.len(), 1);
        assert!(!list.version.has_check());
    }

    #[test]
    fn the_highest_common_version_counts() {
        let with = |versions: Value| {
            parse(json!({"cniVersion": "0.4.0", "cniVersions": versions, "name": "n", "type": "t"}))
        };
        assert_eq!(with(json!(["1.0.0", "1.1.0", "2.0.0"])).unwrap().version.to_string(), "1.1.0");
        let err = parse(json!({"cniVersion": "9.9.9", "name": "n", "type": "t"})).unwrap_err();
        assert!(matches!(err, ContentError::Version(_)));
    }

    #[test]
    fn faults_are_named() {
        assert!(matches!(parse(json!([])), Err(ContentError::Field(_))));
        assert!(matches!(parse(json!({"cniVersion": "1.0.0"})), Err(ContentError::Field("name"))));
        assert!(matches!(
            parse(json!({"cniVersion": "1.0.0", "name": "../x", "type": "t"})),
            Err(ContentError::Name(_))
        ));
        assert!(matches!(
            parse(json!({"cniVersion": "1.0.0", "name": "n", "type": "../sh"})),
            Err(ContentError::PluginType(_))
        ));
        assert!(matches!(
            parse(json!({"cniVersion": "1.0.0", "name": "n", "plugins": []})),
            Err(ContentError::NoPlugins)
        ));
    }

    #[test]
    fn the_first_usable_file_by_name_is_chosen() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert!(matches!(choose(dir.path()), Choice::None));
        assert!(matches!(choose(&dir.path().join("absent")), Choice::None));
        write("05-readme.txt", "not looked at");
        write("10-broken.conflist", "{");
        assert!(matches!(choose(dir.path()), Choice::Broken(ConfigError::Json { .. })));
        write("30-late.conf", r#"{"cniVersion": "1.0.0", "name": "late", "type": "ptp"}"#);
        write("20-good.conflist", r#"{"cniVersion": "1.0.0", "name": "good", "plugins": [{"type": "ptp"}]}"#);
        let Choice::List(list, faults) = choose(dir.path()) else { panic!("one is good") };
        assert_eq!((list.name.as_str(), faults.len()), ("good", 1));
    }
}
