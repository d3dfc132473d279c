//! Names and numbers that no other test uses at the same time.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

/// Addresses of a link to somewhere else: the host's end, then the other.
#[derive(Debug, Clone)]
pub struct Outside {
    pub ipv4: [String; 2],
    pub ipv6: [String; 2],
}

/// One of 200 places on this machine, held by a lock that the kernel drops with the test's process.
#[derive(Debug)]
pub(crate) struct Slot {
    number: u8,
    _held: Flock<File>,
}

impl Slot {
    pub(crate) fn take() -> Result<Slot> {
        let folder = std::env::temp_dir().join("berth-test-slots");
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        // Start at different places, so that test processes started together don't meet at every lock.
        let start = (std::process::id() % 200) as u8;
        for number in (0..200).map(|step| (start + step) % 200) {
            let path = folder.join(number.to_string());
            let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
            let Ok(held) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { continue };
            let slot = Slot { number, _held: held };
            // A killed test may have left its bridge; its subnet is then not ours to use.
            if !Path::new("/sys/class/net").join(slot.bridge()).exists() {
                return Ok(slot);
            }
        }
        bail!("all test slots are taken; leftovers of killed tests? see `ip link` for berth-t*")
    }

    /// In every name of something this node makes.
    pub(crate) fn tag(&self) -> String {
        format!("berth-t{}", self.number)
    }

    pub(crate) fn bridge(&self) -> String {
        self.tag()
    }

    pub(crate) fn ipv4_beginning(&self) -> String {
        format!("10.213.{}.", self.number)
    }

    pub(crate) fn ipv6_beginning(&self) -> String {
        format!("fd00:be27:{:x}::", self.number)
    }

    /// Two addresses beyond the node, for a test that needs an outside: a /30 and a /126, host's end first.
    pub(crate) fn outside(&self) -> Outside {
        Outside {
            ipv4: [1, 2].map(|host| format!("100.64.{}.{host}", self.number)),
            ipv6: [1, 2].map(|host| format!("fd00:be28:{:x}::{host}", self.number)),
        }
    }

    /// Parent of all cgroups of this node's pods, in every hierarchy.
    pub(crate) fn cgroup_root(&self) -> String {
        format!("/{}", self.tag())
    }

    /// Host ports for this node's tests.
    pub(crate) fn host_ports(&self) -> std::ops::Range<i32> {
        let first = 20_000 + i32::from(self.number) * 50;
        first..first + 49
    }

    /// The port after these.
    pub(crate) fn service_port(&self) -> u16 {
        20_000 + u16::from(self.number) * 50 + 49
    }

    /// A fresh folder.
    pub(crate) fn folder(&self) -> Result<PathBuf> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("{}-", self.tag()))
            .tempdir()
            .context("making the node's folder")?;
        Ok(folder.keep())
    }
}
