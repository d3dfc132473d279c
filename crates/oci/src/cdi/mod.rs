//! The Container Device Interface (CDI): devices that a vendor describes in files, and what of a container's spec they
//! change.
//!
//! ```text
//!  ContainerConfig ──requested──► names ──┐
//!                                         ├─Registry::resolve──► Edits ──(host's device numbers)──► Edits::apply ──► Spec
//!  files of the spec folders ──Registry───┘
//! ```
//!
//! After cncf-tags/container-device-interface, SPEC.md, up to version 1.1.0. Reading the folders and looking at device
//! nodes is the caller's.

mod apply;
mod edits;
mod file;
mod name;
mod registry;

pub use apply::ApplyError;
pub use edits::{DeviceNode, Edits, Hook, HookName, IntelRdt, Mount, NetDevice, NodeType};
pub use file::FileError;
pub use name::{DeviceName, NameError};
pub use registry::{Registry, SpecFile, UnresolvedDevice};

use berth_cri::runtime::v1::ContainerConfig;

/// Where names stood before CRI had a field for them, and where people with crictl may still write them: any key with
/// this beginning, its value a list of names with commas.
const ANNOTATION: &str = "cdi.k8s.io/";

/// The devices that a container asks for, each once: those of `CDI_devices`, then those of its annotations.
///
/// # Errors
/// [`NameError`] for what is no device's name.
pub fn requested(config: &ContainerConfig) -> Result<Vec<DeviceName>, NameError> {
    let fields = config.cdi_devices.iter().map(|device| device.name.as_str());
    let mut annotations: Vec<_> =
        config.annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION)).collect();
    // Of a map: the order must not change from one request to the next.
    annotations.sort();
    let mut names = Vec::new();
    for text in fields.chain(annotations.into_iter().flat_map(|(_, value)| value.split(','))) {
        let name: DeviceName = text.parse()?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use berth_cri::runtime::v1::CdiDevice;

    use super::*;

    #[test]
    fn a_device_of_the_field_and_of_an_annotation_is_asked_for_once() {
        let config = ContainerConfig {
            cdi_devices: vec![CdiDevice { name: "vendor.com/net=b".into() }],
            annotations: [
                ("cdi.k8s.io/plugin_1".to_owned(), "vendor.com/net=c,vendor.com/net=b".to_owned()),
                ("cdi.k8s.io/plugin_0".to_owned(), "vendor.com/gpu=0".to_owned()),
                ("other".to_owned(), "no name".to_owned()),
            ]
            .into(),
            ..Default::default()
        };
        let names: Vec<String> = requested(&config).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["vendor.com/net=b", "vendor.com/gpu=0", "vendor.com/net=c"]);
        let config = ContainerConfig {
            annotations: [("cdi.k8s.io/x".to_owned(), "gpu0".to_owned())].into(),
            ..Default::default()
        };
        assert!(requested(&config).unwrap_err().to_string().contains("\"gpu0\""));
    }
}
