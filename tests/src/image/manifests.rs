//! The images that the manifests of tests/manifests name.

use std::path::Path;

use anyhow::{Context, Result};

use super::{
    Image, busybox,
    critest::{nginx, programs},
};
use crate::registry::Registry;

/// Puts them where their names say they are. `binaries`: the folder with the project's own programs.
pub fn push(registry: &Registry, binaries: &Path) -> Result<()> {
    registry.push("library/busybox", "latest", &busybox()?.build()?);
    registry.push("library/nginx", "latest", &nginx()?.build()?);
    registry.push("e2e-test-images/agnhost", "2.40", &agnhost(binaries)?.build()?);
    Ok(())
}

fn agnhost(binaries: &Path) -> Result<Image> {
    let binary = binaries.join("berth-test-agnhost").display().to_string();
    let layer = programs(&[(&binary, "agnhost")]).context("collecting berth-test-agnhost")?;
    let mut image = Image::new(vec![layer]);
    image.config.entrypoint = vec!["/agnhost".to_owned()];
    Ok(image)
}
