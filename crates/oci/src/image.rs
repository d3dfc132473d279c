use oci_spec::image::ImageConfiguration;

/// What an image says about containers made from it (the `config` part of an OCI image configuration).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageDefaults {
    /// `NAME=value` each.
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// Empty: `/`.
    pub working_dir: String,
    /// `user`, `uid`, `user:group` and the like; empty: root.
    pub user: String,
    /// `SIGTERM`, `TERM` or a number; empty: SIGTERM.
    pub stop_signal: String,
    /// Paths that the image wants on a volume of their own.
    pub volumes: Vec<String>,
}

impl From<&ImageConfiguration> for ImageDefaults {
    fn from(image: &ImageConfiguration) -> Self {
        let Some(config) = image.config() else { return Self::default() };
        Self {
            env: config.env().clone().unwrap_or_default(),
            entrypoint: config.entrypoint().clone().unwrap_or_default(),
            cmd: config.cmd().clone().unwrap_or_default(),
            working_dir: config.working_dir().clone().unwrap_or_default(),
            user: config.user().clone().unwrap_or_default(),
            stop_signal: config.stop_signal().clone().unwrap_or_default(),
            volumes: config.volumes().clone().unwrap_or_default(),
        }
    }
}
