use berth_manifest::{Mount, Pod, VolumeSource, cri::Facts};
use std::path::PathBuf;
pub(crate) struct Volumes(PathBuf);
impl Volumes {
    pub(crate) fn new(p: PathBuf) -> Self {
        Self(p)
    }
    pub(crate) async fn prepare(&self, pod: &Pod, _f: &Facts<'_>) -> Result<(), std::io::Error> {
        for v in &pod.volumes {
            std::fs::create_dir_all(self.0.join("volumes").join(&v.name))?;
        }
        Ok(())
    }
    pub(crate) async fn place(
        &self,
        pod: &Pod,
        m: &Mount,
        _s: &str,
        _c: &str,
        _i: usize,
    ) -> Result<PathBuf, std::io::Error> {
        for v in &pod.volumes {
            if v.name == m.volume
                && let VolumeSource::HostPath { path, .. } = &v.source
            {
                return Ok(path.into());
            }
        }
        Ok(self.0.join("volumes").join(&m.volume))
    }
    pub(crate) async fn remove(&self) -> Result<(), std::io::Error> {
        Ok(())
    }
}
