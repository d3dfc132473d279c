//! CDI devices of a container: the node's spec folders read, device nodes looked up, and the OCI spec edited.
//!
//! The folders are read whenever a container asks for a device: a handful of small files, and never an old answer.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use berth_cri::runtime::v1::ContainerConfig;
use berth_oci::cdi::{DeviceName, DeviceNode, NodeType, Registry, SpecFile, requested};
use oci_spec::runtime::Spec;

use crate::{
    Error,
    host::{Host, blocking},
};

/// Largest spec file that is read. Those of a machine with eight partitioned GPUs have some hundred kilobytes.
const MAX_FILE: u64 = 8 << 20;
/// Most files of one folder.
const MAX_FILES: usize = 1024;

/// The spec with what the container's CDI devices add to it.
///
/// # Errors
/// [`Error::Invalid`] for a name that is none, and those of [`add`].
pub(crate) async fn inject(host: &Host, config: &ContainerConfig, spec: Spec) -> Result<Spec, Error> {
    let names = requested(config)
        .map_err(|err| Error::Invalid { field: "config.CDI_devices", why: err.to_string() })?;
    add(host, names, spec).await
}

/// The spec with what these devices add to it.
///
/// # Errors
/// [`Error::NodeLacks`] for a device that this node does not have.
pub(crate) async fn add(host: &Host, names: Vec<DeviceName>, spec: Spec) -> Result<Spec, Error> {
    if names.is_empty() {
        return Ok(spec);
    }
    let dirs = host.config.cdi_spec_dirs.clone();
    blocking(move || edited(&dirs, &names, spec)).await.map_err(Error::NodeLacks)
}

fn edited(dirs: &[PathBuf], names: &[DeviceName], mut spec: Spec) -> Result<Spec, String> {
    let registry = Registry::new(dirs.iter().enumerate().flat_map(|(priority, dir)| files(dir, priority)));
    let mut edits = registry.resolve(names).map_err(|err| {
        let looked: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        format!("{err} (looked in {})", looked.join(", "))
    })?;
    for node in edits.device_nodes.iter_mut().filter(|node| node.is_incomplete()) {
        complete(node).map_err(|err| format!("CDI device node {}: {err}", node.source().display()))?;
    }
    edits.apply(&mut spec).map_err(|err| err.to_string())?;
    Ok(spec)
}

/// The spec files of a folder, by name. One that is not there has none.
fn files(dir: &Path, priority: usize) -> Vec<SpecFile> {
    let unreadable = |err: io::Error| SpecFile { path: dir.to_owned(), priority, text: Err(err.to_string()) };
    let entries = match fs::read_dir(dir) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(err) => return vec![unreadable(err)],
        Ok(entries) => entries,
    };
    let is_spec = |path: &PathBuf| path.extension().is_some_and(|end| end == "json" || end == "yaml");
    let mut paths: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(is_spec).take(MAX_FILES).collect();
    paths.sort();
    let file = |path: PathBuf| SpecFile { text: read(&path).map_err(|err| err.to_string()), path, priority };
    paths.into_iter().map(file).collect()
}

fn read(path: &Path) -> io::Result<String> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let mut text = String::new();
    if File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)? as u64 > MAX_FILE {
        return Err(io::Error::other(format!("longer than {MAX_FILE} bytes")));
    }
    Ok(text)
}

/// Type and numbers as on the host.
fn complete(node: &mut DeviceNode) -> io::Result<()> {
    let meta = fs::metadata(node.source())?;
    let kind = match meta.file_type() {
        kind if kind.is_char_device() => NodeType::Character,
        kind if kind.is_block_device() => NodeType::Block,
        kind if kind.is_fifo() => NodeType::Fifo,
        _ => return Err(io::Error::other("it is no device")),
    };
    if node.kind.is_some_and(|said| said != kind) {
        return Err(io::Error::other("it is of another type than its spec file says"));
    }
    node.kind = Some(kind);
    node.major = Some(rustix::fs::major(meta.rdev()).into());
    node.minor = Some(rustix::fs::minor(meta.rdev()).into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(path: &str, kind: Option<NodeType>) -> DeviceNode {
        DeviceNode { path: "/dev/x".into(), host_path: Some(path.into()), kind, ..DeviceNode::default() }
    }

    #[test]
    fn a_node_gets_the_hosts_numbers() {
        let mut null = node("/dev/null", None);
        complete(&mut null).unwrap();
        assert_eq!((null.kind, null.major, null.minor), (Some(NodeType::Character), Some(1), Some(3)));
        assert!(complete(&mut node("/dev/null", Some(NodeType::Block))).is_err());
        assert!(complete(&mut node("/etc/passwd", None)).is_err());
        assert!(complete(&mut node("/dev/no-such-thing", None)).is_err());
    }

    #[test]
    fn only_spec_files_are_read_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.yaml", "a.json", "c.txt", ".hidden"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        fs::create_dir(dir.path().join("d.json")).unwrap();
        let found = files(dir.path(), 3);
        let names: Vec<_> = found.iter().map(|file| file.path.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["a.json", "b.yaml", "d.json"]);
        assert!(found[0].text.is_ok() && found[2].text.is_err());
        assert!(files(&dir.path().join("missing"), 0).is_empty());
    }
}
