//! What containers get besides their volumes, and what has to be known before one is created and after it has ended.

use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use berth_cri::runtime::v1::{ContainerConfig, Int64Value, Mount};
use berth_image::Image;
use berth_manifest::cri::id_mappings;
use berth_manifest::{Container, HostAlias, Pod, Security};
use berth_sandbox_manager::PodView;

use crate::logs;
use crate::node::blocking;
use crate::record::Plan;

const HOSTS: &str = "/etc/hosts";

/// Of a container's last words so much is kept, as in kubelet.
const LONGEST_WORDS: u64 = 4096;

/// Of its log, in place of them.
const LONGEST_LOG: usize = 2048;
const LOG_LINES: u64 = 80;

/// Refuses a container that must not run as root and would, or might: the user is the manifest's, else the image's.
///
/// # Errors
/// Why, for people.
pub(crate) fn check_user(pod: &Pod, container: &Container, image: &Image) -> Result<(), String> {
    check(&container.security.within(&pod.security), image.uid(), image.username())
}

fn check(security: &Security, uid: Option<i64>, name: Option<&str>) -> Result<(), String> {
    if security.run_as_non_root != Some(true) {
        return Ok(());
    }
    match (security.run_as_user, uid, name) {
        (Some(0), _, _) => Err("runAsNonRoot is set, but so is runAsUser: 0, which is root".to_owned()),
        (Some(_), _, _) => Ok(()),
        (None, None, Some(name)) => Err(format!(
            "runAsNonRoot is set, and the image's user is {name:?}, of which nobody knows whether it is root: give its \
             number in runAsUser"
        )),
        (None, None | Some(0), _) => {
            Err("runAsNonRoot is set, and the image runs as root: give a user in runAsUser".to_owned())
        }
        (None, Some(_), _) => Ok(()),
    }
}

/// A group without a user is none to CRI: it is the image's user then, as with kubelet.
pub(crate) fn add_user(config: &mut ContainerConfig, image: &Image) {
    let security = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
    let Some(security) = security.filter(|all| all.run_as_user.is_none() && all.run_as_group.is_some())
    else {
        return;
    };
    match (image.uid(), image.username()) {
        (None, Some(name)) => name.clone_into(&mut security.run_as_username),
        (uid, _) => security.run_as_user = Some(Int64Value { value: uid.unwrap_or(0) }),
    }
}

/// Adds to a container's mounts: the file for its last words, and the pod's own /etc/hosts where it is another than the
/// sandbox's. `folder`: the pod's.
///
/// # Errors
/// What cannot be written.
pub(crate) async fn add(
    folder: &Path,
    plan: &Plan,
    container: &Container,
    attempt: u32,
    view: &PodView,
    mut config: ContainerConfig,
) -> Result<ContainerConfig, String> {
    let mut files = Vec::new();
    let taken = config.mounts.iter().any(|mount| mount.container_path.trim_end_matches('/') == HOSTS);
    if !plan.pod.host_aliases.is_empty() && !taken {
        let ips = if plan.pod.host_network { &[] } else { &*view.sandbox.ips };
        let path = folder.join("hosts");
        files.push((HOSTS.to_owned(), path.clone()));
        let text = hosts(&plan.pod, ips).map_err(|error| format!("cannot read {HOSTS}: {error}"))?;
        blocking(move || write(&path, &text)).await?;
    }
    let words = words(folder, &container.name, attempt);
    files.push((container.termination_message.path.clone(), words.clone()));
    blocking(move || make_words(&words)).await?;
    let ids = id_mappings(&plan.pod, plan.ids());
    config.mounts.extend(files.into_iter().map(|(container_path, path)| Mount {
        container_path,
        host_path: path.to_string_lossy().into_owned(),
        uid_mappings: ids.clone(),
        gid_mappings: ids.clone(),
        ..Mount::default()
    }));
    Ok(config)
}

/// What a container said of its end: in the file for it, or, where the manifest says so, at the end of its log.
pub(crate) async fn last_words(
    folder: &Path,
    container: &Container,
    attempt: u32,
    code: i32,
    log: &Path,
) -> String {
    let (words, log) = (words(folder, &container.name, attempt), log.to_owned());
    let fall_back = container.termination_message.fall_back_to_logs && code != 0;
    let read = blocking(move || match read_end(&words) {
        Ok(words) if words.is_empty() && fall_back => logs::last_text(&log, LOG_LINES, LONGEST_LOG),
        read => read,
    });
    match read.await {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) => format!("cannot read its last words: {error}"),
    }
}

/// The file for an attempt's last words.
fn words(folder: &Path, container: &str, attempt: u32) -> PathBuf {
    folder.join("last-words").join(container).join(attempt.to_string())
}

/// Makes the file, which whoever the container runs as may write. Those of attempts before it were read.
fn make_words(path: &Path) -> Result<(), String> {
    let make = || -> io::Result<()> {
        let folder = path.parent().unwrap_or(path);
        fs::create_dir_all(folder)?;
        for entry in fs::read_dir(folder)? {
            fs::remove_file(entry?.path())?;
        }
        File::create_new(path)?.set_permissions(Permissions::from_mode(0o666))
    };
    make().map_err(|error| format!("cannot make {}: {error}", path.display()))
}

/// The end of a file, of which nobody knows how long it is. Empty when there is none.
fn read_end(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    file.seek(SeekFrom::Start(file.metadata()?.len().saturating_sub(LONGEST_WORDS)))?;
    let mut end = Vec::new();
    file.take(LONGEST_WORDS).read_to_end(&mut end)?;
    Ok(end)
}

/// A pod's /etc/hosts with its aliases: after the node's own lines when it has the node's network (no `ips`).
fn hosts(pod: &Pod, ips: &[IpAddr]) -> io::Result<String> {
    let mut text = match ips {
        [] => match fs::read_to_string(HOSTS) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text?,
        },
        _ => "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned(),
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    let own = ips.iter().map(|ip| (ip, pod.hostname.clone()));
    let aliases = pod.host_aliases.iter().map(|HostAlias { ip, hostnames }| (ip, hostnames.join("\t")));
    for (ip, names) in own.chain(aliases) {
        writeln!(text, "{ip}\t{names}").map_err(io::Error::other)?;
    }
    Ok(text)
}

/// Containers that run have the file mounted: it is written in place, and only when it is another.
fn write(path: &Path, text: &str) -> Result<(), String> {
    if fs::read(path).is_ok_and(|there| there == text.as_bytes()) {
        return Ok(());
    }
    fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use berth_manifest::{Source, Strictness};

    use super::*;

    fn pod(spec: &str) -> Pod {
        let text = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p}}, spec: {{{spec} containers: [{{name: c, image: i, \
             terminationMessagePolicy: FallbackToLogsOnError}}]}}}}"
        );
        let manifests = berth_manifest::read(&[Source { name: "test", text: &text }], Strictness::Strict);
        manifests.unwrap().pods.remove(0)
    }

    #[test]
    fn whoever_must_not_be_root_is_not() {
        let security =
            |non_root, user| Security { run_as_non_root: non_root, run_as_user: user, ..Security::default() };
        for fine in [
            check(&security(None, Some(0)), Some(0), None),
            check(&security(Some(false), None), None, None),
            check(&security(Some(true), Some(5)), Some(0), None),
            check(&security(Some(true), None), Some(5), None),
        ] {
            assert_eq!(fine, Ok(()));
        }
        for (refused, why) in [
            (check(&security(Some(true), Some(0)), Some(5), None), "runAsUser: 0"),
            (check(&security(Some(true), None), Some(0), None), "image runs as root"),
            (check(&security(Some(true), None), None, None), "image runs as root"),
            (check(&security(Some(true), None), None, Some("www")), "\"www\""),
        ] {
            assert!(refused.as_ref().is_err_and(|error| error.contains(why)), "{refused:?}");
        }
    }

    #[test]
    fn aliases_follow_what_is_there_anyway() {
        let aliases = "hostAliases: [{ip: 10.0.0.9, hostnames: [db, db.test]}],";
        let text = hosts(&pod(aliases), &["10.1.2.3".parse().unwrap()]).unwrap();
        assert!(text.contains("\n10.1.2.3\tp\n") && text.ends_with("\n10.0.0.9\tdb\tdb.test\n"), "{text}");
        let node = fs::read_to_string(HOSTS).unwrap_or_default();
        let text = hosts(&pod(aliases), &[]).unwrap();
        assert!(text.starts_with(node.trim_end()) && text.ends_with("10.0.0.9\tdb\tdb.test\n"), "{text}");
    }

    #[tokio::test]
    async fn last_words_are_the_files_then_the_logs() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, log) = (folder.path(), folder.path().join("3.log"));
        let pod = pod("");
        let said = async |code| last_words(folder, &pod.standard[0], 3, code, &log).await;
        assert_eq!(said(1).await, "");
        let record = |tag: &str, text: &str| format!("2026-01-02T03:04:05.000000006Z stdout {tag} {text}\n");
        let many: String = (0..100).map(|number| record("F", &number.to_string())).collect();
        fs::write(&log, many + &record("P", "half ") + &record("F", "whole")).unwrap();
        let logged = said(1).await;
        assert!(logged.starts_with("22\n") && logged.ends_with("99\nhalf whole\n"), "{logged}");
        assert_eq!(said(0).await, "");
        fs::write(&log, record("F", &"x".repeat(3000))).unwrap();
        assert_eq!(said(1).await.len(), LONGEST_LOG);

        make_words(&words(folder, "c", 2)).unwrap();
        let path = words(folder, "c", 3);
        make_words(&path).unwrap();
        make_words(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
        assert!(!words(folder, "c", 2).exists());
        fs::write(&path, "y".repeat(5000) + "end").unwrap();
        assert!(said(1).await.len() == 4096 && said(0).await.ends_with("yend"));
    }
}
