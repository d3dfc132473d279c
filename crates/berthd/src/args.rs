//! The command line.

use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, Parser, Subcommand};

/// Where the configuration is looked for when `--config` is not given. Only this one may be absent.
pub const DEFAULT_CONFIG: &str = "/etc/berth/berth.toml";

/// The berth daemon: runs Kubernetes pods for kubelet and crictl.
#[derive(Debug, Parser)]
#[command(name = "berthd", version)]
pub struct Args {
    #[command(flatten)]
    pub flags: Flags,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do instead of serving.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Command {
    /// Print the configuration in force (file, flags and defaults together) and end
    Config,
}

/// Each wins over the same key of the file.
#[derive(Clone, Debug, Default, ClapArgs)]
pub struct Flags {
    /// Configuration file [default: /etc/berth/berth.toml, which may be absent]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder for what survives a reboot: images, records [default: /var/lib/berth]
    #[arg(long, global = true, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Folder for what does not: supervisors' sockets, exit statuses [default: /run/berth]
    #[arg(long, global = true, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Where to serve CRI [default: unix://STATE/berth.sock]
    #[arg(long, global = true, value_name = "unix://PATH")]
    pub listen: Option<String>,
    /// error, warn, info, debug or trace; or by module: info,berth_image=debug [default: info]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log_level: Option<String>,
}

impl Flags {
    /// The file to read, and whether it must exist.
    pub(crate) fn config_file(&self) -> (&Path, bool) {
        match &self.config {
            Some(path) => (path, true),
            None => (Path::new(DEFAULT_CONFIG), false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_stand_before_and_after_the_command() {
        for line in [["berthd", "--root", "/r", "config"], ["berthd", "config", "--root", "/r"]] {
            let args = Args::try_parse_from(line).unwrap();
            assert_eq!(args.flags.root.as_deref(), Some(Path::new("/r")));
            assert!(matches!(args.command, Some(Command::Config)));
        }
    }
}
