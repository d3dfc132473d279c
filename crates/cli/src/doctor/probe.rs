//! Trials that change something: each runs in a process and namespaces of its own, and what it made goes with them.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{LinkBridge, LinkVeth};
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType};
use tokio::process::Command;
use tokio::time::timeout;

use crate::error::Error;

/// A trial takes milliseconds; one that takes so long hangs.
const LIMIT: Duration = Duration::from_secs(5);

/// Tries something in a process of its own.
///
/// # Errors
/// Why it does not work, for people.
pub(super) async fn attempt(name: &str, root: &Path) -> Result<(), String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(own);
    command.arg("doctor").arg("--probe").arg(name).arg("--root").arg(root);
    command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    match timeout(LIMIT, command.output()).await {
        Err(_) => Err(format!("hangs for {} s", LIMIT.as_secs())),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let text = String::from_utf8_lossy(&output.stderr);
            Err(text.trim().trim_start_matches("berth: ").to_owned())
        }
    }
}

/// This process is a trial.
pub(super) async fn run(name: &str, root: &Path) -> Result<u8, Error> {
    let failed = |error: io::Error| Error::Failed(error.to_string());
    match name {
        "overlay" => overlay(root).map_err(failed)?,
        "idmap" => id_map(root).map_err(failed)?,
        "nftables" => nftables().map_err(failed)?,
        "links" => links().await.map_err(Error::Failed)?,
        other => match namespace(other) {
            Some(flag) => unshare(flag).map_err(|errno| failed(errno.into()))?,
            None => return Err(Error::Usage(format!("there is no trial {other:?}"))),
        },
    }
    Ok(0)
}

fn namespace(name: &str) -> Option<CloneFlags> {
    Some(match name {
        "mount" => CloneFlags::CLONE_NEWNS,
        "network" => CloneFlags::CLONE_NEWNET,
        "uts" => CloneFlags::CLONE_NEWUTS,
        "ipc" => CloneFlags::CLONE_NEWIPC,
        "pid" => CloneFlags::CLONE_NEWPID,
        "cgroup" => CloneFlags::CLONE_NEWCGROUP,
        _ => return None,
    })
}

/// A folder on the root's file system that goes when this is dropped.
struct Folder(PathBuf);

impl Folder {
    fn below(root: &Path) -> io::Result<Self> {
        // The root itself is the daemon's to make.
        let there = root.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
        let path = there.join(format!(".berth-doctor-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    fn folder(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.0.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed now is small, and its name says whose it was.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Mounts of this process are nobody else's.
fn own_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    Ok(mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?)
}

fn overlay(root: &Path) -> io::Result<()> {
    own_mounts()?;
    let folder = Folder::below(root)?;
    let (lower, upper, work, merged) =
        (folder.folder("lower")?, folder.folder("upper")?, folder.folder("work")?, folder.folder("merged")?);
    fs::write(lower.join("file"), "lower")?;
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(options.as_str()))?;
    // Copying up is what needs extended attributes.
    let written = fs::write(merged.join("file"), "upper");
    nix::mount::umount(&merged)?;
    written
}

fn id_map(root: &Path) -> io::Result<()> {
    own_mounts()?;
    let folder = Folder::below(root)?;
    // Somebody has to live in the user namespace as long as its file is opened.
    let mut holder = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c", "echo; read -r line"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = [0];
    if let Some(stdout) = &mut holder.stdout {
        io::Read::read_exact(stdout, &mut line)?;
    }
    let opened = fs::File::open(format!("/proc/{}/ns/user", holder.id()));
    drop(holder.stdin.take());
    holder.wait()?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(rustix::fs::CWD, &folder.0, flags)?;
    berth_launcher::sys::id_map_mount(&tree, opened?.as_fd(), false)
}

/// Asks nf_tables for its generation (NFT_MSG_GETGEN), which loads it where it is a module and makes nothing.
fn nftables() -> io::Result<()> {
    const NETFILTER: u32 = 12;
    // nlmsghdr (netlink(7)): length, type NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN, flags NLM_F_REQUEST, sequence, port;
    // then nfgenmsg: AF_UNSPEC, NFNETLINK_V0, no resource.
    let mut request = Vec::new();
    request.extend(20_u32.to_ne_bytes());
    request.extend(0x0a10_u16.to_ne_bytes());
    request.extend(1_u16.to_ne_bytes());
    request.extend([0; 12]);
    unshare(CloneFlags::CLONE_NEWNET)?;
    let protocol =
        rustix::net::Protocol::from_raw(std::num::NonZeroU32::new(NETFILTER).ok_or(io::ErrorKind::Other)?);
    let socket = rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, Some(protocol))?;
    rustix::net::sendto(&socket, &request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0; 256];
    let (count, _) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
    // NLMSG_ERROR carries a negative errno.
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    let errno = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    match (count, kind, errno) {
        (20.., 2, errno) if errno != 0 => Err(io::Error::from_raw_os_error(-errno)),
        (20.., _, _) => Ok(()),
        _ => Err(io::Error::other("no answer")),
    }
}

/// A bridge and a veth, in a network of their own.
async fn links() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| errno.to_string())?;
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| error.to_string())?;
    let answering = tokio::spawn(connection);
    let made = async {
        handle
            .link()
            .add(LinkBridge::new("bridge").build())
            .execute()
            .await
            .map_err(|error| format!("bridge: {error}"))?;
        handle
            .link()
            .add(LinkVeth::new("one", "two").build())
            .execute()
            .await
            .map_err(|error| format!("veth: {error}"))
    };
    let made = made.await;
    answering.abort();
    made
}
