use berth_cri::runtime::v1::ContainerConfig;
use berth_manifest::{Container, Pod};
use std::path::Path;
pub(crate) fn check_user(_p: &Pod, _c: &Container, _i: &berth_image::Image) -> Result<(), String> {
    Ok(())
}
pub(crate) async fn add(
    _d: &Path,
    _p: &crate::record::Plan,
    _c: &Container,
    _a: u32,
    _v: &berth_sandbox_manager::PodView,
    c: ContainerConfig,
) -> Result<ContainerConfig, String> {
    Ok(c)
}
pub(crate) async fn last_words(_d: &Path, _c: &Container, _a: u32, _code: i32, _log: &Path) -> String {
    String::new()
}
