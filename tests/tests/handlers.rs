//! Runtime handlers: the native launcher beside Debian's runc and crun. The same container must be the same to the
//! program in it, whoever made it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use berth_tests::{
    Node,
    cri::{Pod, resources, script, security, sleeper},
    host, on_node,
};
use k8s_cri::v1::{
    Capability, ContainerConfig, ContainerState, Int64Value, LinuxContainerResources, SecurityProfile,
    security_profile::ProfileType,
};

/// The native one by its default name, then the others.
const HANDLERS: [&str; 3] = ["", "runc", "crun"];

#[test]
fn every_handler_runs_logs_execs_stops_and_removes() {
    on_node(async |node| {
        for handler in HANDLERS {
            let pod = node.run_pod_with(node.pod("web"), handler).await?;
            ensure!(pod.ips().await?.len() == 2, "{handler}");
            let text =
                "echo started; trap 'echo stopped; exit 5' TERM; touch /ready; while :; do sleep 0.1; done";
            let container =
                pod.run(script("main", text)).await.with_context(|| format!("handler {handler:?}"))?;
            container.wait_file("/ready").await?;
            ensure!(container.sh("hostname").await? == "web\n", "{handler}");
            let done = container.exec(&["sh", "-c", "echo err >&2; exit 9"]).await?;
            ensure!(done.code == 9 && done.stderr == "err\n", "{handler}: {done:?}");
            container.stop(20).await?;
            let status = container.status().await?;
            ensure!(status.exit_code == 5, "{handler}: {status:?}");
            ensure!(container.log_text()? == "started\nstopped\n", "{handler}: {:?}", container.log_text()?);
            container.remove().await?;
            let missing = pod.create(berth_tests::cri::container("missing", &["/no/such/program"])).await;
            let refused = match missing {
                Ok(container) => container.start().await.err(),
                Err(error) => Some(error),
            };
            let refused = refused.with_context(|| format!("{handler} started a missing program"))?;
            ensure!(format!("{refused:#}").contains("/no/such/program"), "{handler}: {refused:#}");
            pod.remove().await?;
        }
        Ok(())
    });
}

#[test]
fn every_handlers_containers_outlive_the_daemon() {
    on_node(async |node| {
        let mut running = Vec::new();
        for (number, handler) in HANDLERS.into_iter().enumerate() {
            let pod = node.run_pod_with(node.pod(&format!("pod-{number}")), handler).await?;
            running.push(pod.run(sleeper("main")).await?);
        }
        node.kill9().await?;
        node.start().await?;
        for container in running {
            ensure!(container.status().await?.state() == ContainerState::ContainerRunning);
            ensure!(container.sh("echo here").await? == "here\n");
        }
        Ok(())
    });
}

/// What a process can see of how it is confined; one section a command.
const LOOK: &str = r#"
section() { echo "== $1"; }
section status; grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs|Seccomp|Umask):' /proc/self/status
section limits; tail -n +2 /proc/self/limits | sort
section oom; cat /proc/self/oom_score_adj
section cwd; pwd
section environment; env | sort
section descriptors; ls /proc/self/fd
section devices; cd /dev && find . -maxdepth 1 | sort | while read -r name; do stat -c '%n %F %t,%T %a' "$name"; done
section links; for l in fd stdin stdout stderr ptmx; do echo "$l $(readlink /dev/$l)"; done
section namespaces; for n in mnt pid cgroup; do test "$(readlink /proc/self/ns/$n)" = "$(readlink /proc/1/ns/$n)" && echo "$n as pid 1"; done
section mounts; cat /proc/self/mountinfo
section signals; grep -E '^Sig(Blk|Ign):' /proc/self/status
section hostname; hostname
section sysctl; cat /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_unprivileged_port_start
section keyring; wc -c < /proc/keys
section writable; for d in / /proc/sys/kernel /sys/kernel /sys/fs/cgroup /dev /tmp; do touch $d/x 2>/dev/null && echo "$d" && rm $d/x; done
"#;

/// Sections by name. Mounts become a set of point, type and flags: order, ids and sources differ by nature.
fn sections(text: &str) -> Result<BTreeMap<String, Vec<String>>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("== ") {
            current = name.to_owned();
            found.entry(current.clone()).or_default();
        } else {
            found.entry(current.clone()).or_default().push(line.to_owned());
        }
    }
    let mounts = found.remove("mounts").context("no mounts")?.join("\n");
    let mut lines: Vec<String> = host::parse_mounts(&mounts)?
        .into_iter()
        .map(|mount| format!("{} {} {}", mount.mount_point.display(), mount.fs_type, sorted(&mount.options)))
        .collect();
    lines.sort();
    found.insert("mounts".to_owned(), lines);
    Ok(found)
}

fn sorted(options: &str) -> String {
    let mut words: Vec<&str> = options.split(',').collect();
    words.sort_unstable();
    words.join(",")
}

/// What the program in `config` sees with each handler, first as the container's own and then as an exec.
async fn views(
    node: &Node,
    config: &ContainerConfig,
) -> Result<BTreeMap<String, BTreeMap<String, Vec<String>>>> {
    let mut seen = BTreeMap::new();
    for handler in HANDLERS {
        let pod: Pod<'_> = node.run_pod_with(node.pod("same"), handler).await?;
        let name = if handler.is_empty() { "native" } else { handler };
        let container = pod.run(config.clone()).await.with_context(|| name.to_owned())?;
        container.wait_file("/tmp/looked").await?;
        seen.insert(format!("{name}, first process"), sections(&container.log_text()?)?);
        seen.insert(format!("{name}, exec"), sections(&container.sh(LOOK).await?)?);
        pod.remove().await?;
    }
    Ok(seen)
}

/// A difference that is let through.
struct Explained {
    /// Whose.
    runtime: &'static str,
    section: &'static str,
    /// What the line holds.
    text: &'static str,
    reason: &'static str,
}

const EXPLAINED: &[Explained] = &[
    Explained {
        runtime: "",
        section: "mounts",
        text: "/sys/fs/cgroup tmpfs",
        reason: "both leave the tmpfs above the v1 hierarchies writable where the spec says ro",
    },
    Explained { runtime: "", section: "writable", text: "/sys/fs/cgroup", reason: "the same" },
    Explained {
        runtime: "",
        section: "signals",
        text: "SigIgn",
        reason: "glibc's own two signals: both pass on that their parent ignores them, the native launcher resets them",
    },
    Explained {
        runtime: "",
        section: "keyring",
        text: "",
        reason: "both name the session keyring after the container, so the list of keys is longer",
    },
    Explained {
        runtime: "",
        section: "mounts",
        text: "/proc/keys ",
        reason: "runc masks with a /dev/null of its own, crun read-only",
    },
    Explained {
        runtime: "",
        section: "devices",
        text: "./core symbolic link",
        reason: "both link /dev/core to /proc/kcore where the kernel has it, which the spec does not ask for",
    },
    Explained {
        runtime: "crun",
        section: "mounts",
        text: "/dev/shm tmpfs",
        reason: "binding a path, crun forgets the nosuid, nodev and noexec it had",
    },
    Explained { runtime: "crun", section: "mounts", text: "/proc/bus proc", reason: "the same" },
    Explained { runtime: "crun", section: "mounts", text: "/proc/sys proc", reason: "the same" },
    Explained {
        runtime: "crun, exec",
        section: "oom",
        text: "",
        reason: "crun's exec leaves the score as it inherits it",
    },
    Explained {
        runtime: "runc, exec",
        section: "limits",
        text: "Max open files",
        reason: "Go raises its own soft limit to the hard one, and this runc's exec passes that on",
    },
];

fn is_explained(who: &str, section: &str, line: &str) -> bool {
    EXPLAINED.iter().any(|known| {
        assert!(!known.reason.is_empty());
        who.starts_with(known.runtime) && section == known.section && line.contains(known.text)
    })
}

/// Compares the native launcher's first process with everything else, line by line.
fn expect_the_same(views: &BTreeMap<String, BTreeMap<String, Vec<String>>>) -> Result<()> {
    let native = &views["native, first process"];
    let mut differences = Vec::new();
    for (who, view) in views {
        ensure!(view.keys().eq(native.keys()), "{who} has other sections");
        for (section, theirs) in view {
            let ours = &native[section];
            let only = |lines: &[String], others: &[String]| -> Vec<String> {
                let missing = lines.iter().filter(|line| !others.contains(line));
                missing.filter(|line| !is_explained(who, section, line)).cloned().collect()
            };
            differences
                .extend(only(theirs, ours).into_iter().map(|line| format!("{section}: {who} only: {line}")));
            differences.extend(
                only(ours, theirs).into_iter().map(|line| format!("{section}: native, not {who}: {line}")),
            );
        }
    }
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

fn looking(change: impl FnOnce(&mut ContainerConfig)) -> ContainerConfig {
    let mut config = script("main", &format!("{LOOK}\ntouch /tmp/looked; exec sleep 1000"));
    change(&mut config);
    config
}

#[test]
fn a_plain_container_is_the_same_to_its_program_with_every_handler() {
    on_node(async |node| {
        let config = looking(|_| {});
        expect_the_same(&views(node, &config).await?)
    });
}

#[test]
fn a_confined_container_is_the_same_to_its_program_with_every_handler() {
    on_node(async |node| {
        let config = looking(|config| {
            config.working_dir = "/var/www".to_owned();
            *resources(config) = LinuxContainerResources {
                oom_score_adj: 800,
                memory_limit_in_bytes: 64 << 20,
                ..LinuxContainerResources::default()
            };
            let context = security(config);
            context.run_as_user = Some(Int64Value { value: 1000 });
            context.run_as_group = Some(Int64Value { value: 1000 });
            context.supplemental_groups = vec![1234];
            context.no_new_privs = true;
            context.seccomp = Some(SecurityProfile {
                profile_type: ProfileType::RuntimeDefault.into(),
                ..SecurityProfile::default()
            });
            context.capabilities = Some(Capability {
                add_capabilities: vec!["NET_ADMIN".to_owned()],
                drop_capabilities: vec!["MKNOD".to_owned()],
                ..Capability::default()
            });
            context.masked_paths = vec!["/proc/keys".to_owned(), "/proc/acpi".to_owned()];
            context.readonly_paths = vec!["/proc/sys".to_owned(), "/proc/bus".to_owned()];
        });
        expect_the_same(&views(node, &config).await?)
    });
}

#[test]
fn a_read_only_container_is_the_same_to_its_program_with_every_handler() {
    on_node(async |node| {
        let scratch = node.dir().join("scratch");
        std::fs::create_dir(&scratch)?;
        let config = looking(|config| {
            security(config).readonly_rootfs = true;
            config.mounts.push(k8s_cri::v1::Mount {
                container_path: "/tmp".to_owned(),
                host_path: scratch.display().to_string(),
                ..k8s_cri::v1::Mount::default()
            });
        });
        // The file that says "ready" lies in the shared folder: clear it between handlers by using each pod's own look.
        let mut seen = BTreeMap::new();
        for handler in HANDLERS {
            let _ = std::fs::remove_file(scratch.join("looked"));
            let pod = node.run_pod_with(node.pod("same"), handler).await?;
            let name = if handler.is_empty() { "native" } else { handler };
            let container = pod.run(config.clone()).await.with_context(|| name.to_owned())?;
            container.wait_file("/tmp/looked").await?;
            seen.insert(format!("{name}, first process"), sections(&container.log_text()?)?);
            pod.remove().await?;
        }
        expect_the_same(&seen)
    });
}
