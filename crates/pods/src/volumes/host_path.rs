//! hostPath: something of the host's, which must be what the manifest says, and is made only where it says so.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _};

use berth_manifest::HostPathType;

use super::VolumeError;

#[derive(Debug)]
pub(super) struct HostPath {
    pub(super) path: String,
    pub(super) kind: HostPathType,
}

impl HostPath {
    /// Looks at what is there, and makes it where that is asked for.
    pub(super) fn make(&self, volume: &str) -> Result<(), VolumeError> {
        let Some(wanted) = name(self.kind) else { return Ok(()) };
        let failed = |step: &'static str| {
            let (volume, path) = (volume.to_owned(), self.path.clone());
            move |source: io::Error| VolumeError::Host { volume, step, path, source }
        };
        let found = match fs::metadata(&self.path) {
            Ok(metadata) => what(metadata.file_type()),
            Err(error) if error.kind() == ErrorKind::NotFound => match self.kind {
                HostPathType::DirectoryOrCreate => {
                    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.path);
                    return made.map_err(failed("make the folder"));
                }
                HostPathType::FileOrCreate => {
                    let made = fs::File::options().write(true).create_new(true).mode(0o644).open(&self.path);
                    return made.map(drop).map_err(failed("make the file"));
                }
                _ => "not there",
            },
            Err(error) => return Err(failed("look at")(error)),
        };
        match found == wanted {
            true => Ok(()),
            false => {
                let (volume, path) = (volume.to_owned(), self.path.clone());
                Err(VolumeError::HostPath { volume, path, wanted, found })
            }
        }
    }
}

const FOLDER: &str = "a folder";
const FILE: &str = "a file";
const SOCKET: &str = "a socket";
const CHARACTER_DEVICE: &str = "a character device";
const BLOCK_DEVICE: &str = "a block device";

/// What has to be there; None when nothing has to.
fn name(kind: HostPathType) -> Option<&'static str> {
    match kind {
        HostPathType::Any => None,
        HostPathType::DirectoryOrCreate | HostPathType::Directory => Some(FOLDER),
        HostPathType::FileOrCreate | HostPathType::File => Some(FILE),
        HostPathType::Socket => Some(SOCKET),
        HostPathType::CharDevice => Some(CHARACTER_DEVICE),
        HostPathType::BlockDevice => Some(BLOCK_DEVICE),
    }
}

fn what(file: fs::FileType) -> &'static str {
    match () {
        () if file.is_dir() => FOLDER,
        () if file.is_file() => FILE,
        () if file.is_socket() => SOCKET,
        () if file.is_char_device() => CHARACTER_DEVICE,
        () if file.is_block_device() => BLOCK_DEVICE,
        () => "something else",
    }
}
