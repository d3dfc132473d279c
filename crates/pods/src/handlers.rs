use berth_sandbox_manager::SandboxManager;
use std::net::IpAddr;
pub(crate) struct Target {
    pub(crate) container_id: String,
    pub(crate) ip: Option<IpAddr>,
    pub(crate) ports: Vec<berth_manifest::Port>,
}
pub(crate) async fn probe(
    _m: &SandboxManager,
    _t: &Target,
    _p: &berth_manifest::Probe,
) -> Result<(), String> {
    Ok(())
}
pub(crate) async fn hook(_m: &SandboxManager, _t: &Target, _h: &berth_manifest::Hook) -> Result<(), String> {
    Ok(())
}
