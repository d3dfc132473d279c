//! What a container may do: users, groups, capabilities, seccomp, hidden and read-only places.

use anyhow::{Result, bail, ensure};
use berth_tests::{
    Node, Options,
    cri::{container, image_spec, script, security, sleeper},
    host,
    image::busybox,
    on_node, on_node_with,
};
use k8s_cri::v1::{
    Capability, ContainerConfig, Int64Value, LinuxContainerSecurityContext, SecurityProfile,
    SupplementalGroupsPolicy, security_profile::ProfileType,
};

fn int(value: i64) -> Option<Int64Value> {
    Some(Int64Value { value })
}

/// A container with a security context, which runs a script.
fn confined(text: &str, change: impl FnOnce(&mut LinuxContainerSecurityContext)) -> ContainerConfig {
    let mut config = script("main", text);
    change(security(&mut config));
    config
}

/// Runs it in a pod of its own; what it wrote.
async fn output(node: &Node, config: ContainerConfig) -> Result<String> {
    let pod = node.run_pod(node.pod("confined")).await?;
    let output = pod.output_of(config).await?;
    pod.remove().await?;
    Ok(output)
}

/// The mask of a line such as `CapBnd:\t00000000a80425fb`.
fn mask(status: &str, field: &str) -> Result<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(":\t"));
    let Some(value) = value else { bail!("{field} is not in {status}") };
    Ok(u64::from_str_radix(value, 16)?)
}

const CHOWN: u64 = 1 << 0;
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
const SYS_ADMIN: u64 = 1 << 21;

#[test]
fn users_and_groups_by_number_and_by_name() {
    on_node(async |node| {
        let number = confined("id -u; id -g", |context| context.run_as_user = int(1001));
        ensure!(output(node, number).await? == "1001\n0\n");
        let both = confined("id -u; id -g", |context| {
            context.run_as_user = int(1001);
            context.run_as_group = int(2002);
        });
        ensure!(output(node, both).await? == "1001\n2002\n");
        let name = confined("id -u; id -g; echo $HOME", |context| context.run_as_username = "app".to_owned());
        ensure!(output(node, name).await? == "1000\n1000\n/home/app\n");
        Ok(())
    });
}

#[test]
fn the_images_user_applies_unless_overridden() {
    on_node_with(Options::without_images(), async |node| {
        for (name, user, expected) in [
            ("by-name", "www-data", "33 33"),
            ("by-number", "1234:5678", "1234 5678"),
            ("by-name-and-group", "app:audio", "1000 29"),
        ] {
            let mut image = busybox()?;
            image.config.user = user.to_owned();
            node.registry().push(&format!("library/{name}"), "latest", &image.build()?);
            node.pull(name).await?;
            let mut config = script("main", "echo $(id -u) $(id -g)");
            config.image = Some(image_spec(name));
            ensure!(output(node, config.clone()).await?.trim() == expected, "{name}");
            security(&mut config).run_as_user = int(0);
            ensure!(output(node, config).await?.starts_with("0 "), "{name}");
        }
        Ok(())
    });
}

#[test]
fn a_user_the_image_does_not_know_is_an_error_that_names_it() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let config = confined("true", |context| context.run_as_username = "stranger".to_owned());
        let Err(error) = pod.create(config).await else { bail!("it was created") };
        ensure!(format!("{error:#}").contains("stranger"), "{error:#}");
        let config = confined("true", |context| context.run_as_group = int(7));
        ensure!(pod.create(config).await.is_err(), "a group without a user was accepted");
        Ok(())
    });
}

#[test]
fn supplementary_groups_merge_with_the_images_or_replace_them() {
    on_node(async |node| {
        for (policy, expected) in [
            (SupplementalGroupsPolicy::Merge, "29 1000 1234 50000"),
            (SupplementalGroupsPolicy::Strict, "1000 1234"),
        ] {
            let pod = node.run_pod(node.pod("groups")).await?;
            let mut config = sleeper("main");
            let context = security(&mut config);
            context.run_as_user = int(1000);
            context.run_as_group = int(1000);
            context.supplemental_groups = vec![1234];
            context.supplemental_groups_policy = policy.into();
            let container = pod.run(config).await?;
            let sorted = "id -G | tr ' ' '\\n' | sort -n | xargs";
            ensure!(container.sh(sorted).await?.trim() == expected, "{policy:?}");
            let Some(user) = container.status().await?.user.and_then(|user| user.linux) else {
                bail!("no user")
            };
            let groups: Vec<String> = user.supplemental_groups.iter().map(ToString::to_string).collect();
            ensure!(user.uid == 1000 && user.gid == 1000 && groups.join(" ") == expected, "{user:?}");
            pod.remove().await?;
        }
        Ok(())
    });
}

#[test]
fn capabilities_are_the_default_set_plus_added_minus_dropped() {
    on_node(async |node| {
        let status = async |add: &[&str], drop: &[&str]| {
            let words = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
            let capabilities = Capability {
                add_capabilities: words(add),
                drop_capabilities: words(drop),
                ..Capability::default()
            };
            let config =
                confined("cat /proc/self/status", |context| context.capabilities = Some(capabilities));
            output(node, config).await
        };
        let usual = status(&[], &[]).await?;
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            let found = mask(&usual, set)?;
            ensure!(found & (CHOWN | NET_RAW) == CHOWN | NET_RAW, "{usual}");
            ensure!(found & (NET_ADMIN | SYS_ADMIN) == 0, "{usual}");
        }
        ensure!(mask(&usual, "CapInh")? == 0 && mask(&usual, "CapAmb")? == 0, "{usual}");
        ensure!(mask(&status(&["NET_ADMIN"], &[]).await?, "CapEff")? & NET_ADMIN != 0);
        ensure!(mask(&status(&["CAP_NET_ADMIN"], &[]).await?, "CapEff")? & NET_ADMIN != 0);
        ensure!(mask(&status(&[], &["NET_RAW"]).await?, "CapBnd")? & NET_RAW == 0);
        ensure!(mask(&status(&[], &["ALL"]).await?, "CapBnd")? == 0);
        ensure!(mask(&status(&["CHOWN"], &["ALL"]).await?, "CapBnd")? == CHOWN);
        let all = mask(&status(&["ALL"], &[]).await?, "CapBnd")?;
        // What the daemon's host lacks can't be given.
        ensure!(all & SYS_ADMIN != 0 && all & NET_ADMIN != 0, "{all:x}");
        Ok(())
    });
}

#[test]
fn a_plain_user_has_no_capabilities() {
    on_node(async |node| {
        let config = confined("cat /proc/self/status", |context| context.run_as_user = int(1000));
        let status = output(node, config).await?;
        ensure!(mask(&status, "CapEff")? == 0 && mask(&status, "CapPrm")? == 0, "{status}");
        Ok(())
    });
}

#[test]
fn an_unknown_capability_is_refused_by_name() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let config = confined("true", |context| {
            context.capabilities =
                Some(Capability { add_capabilities: vec!["FLY".to_owned()], ..Capability::default() });
        });
        let Err(error) = pod.create(config).await else { bail!("it was created") };
        ensure!(format!("{error:#}").contains("FLY"), "{error:#}");
        Ok(())
    });
}

#[test]
fn no_new_privs_is_set_when_asked() {
    on_node(async |node| {
        for (asked, expected) in [(true, "NoNewPrivs:\t1\n"), (false, "NoNewPrivs:\t0\n")] {
            let config =
                confined("grep NoNewPrivs /proc/self/status", |context| context.no_new_privs = asked);
            ensure!(output(node, config).await? == expected);
        }
        Ok(())
    });
}

fn profile(kind: ProfileType, path: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: kind.into(), localhost_ref: path.to_owned() })
}

#[test]
fn seccomp_is_off_without_a_profile_and_on_with_the_default_one() {
    on_node(async |node| {
        let text = "grep Seccomp: /proc/self/status; unshare -U true 2>/dev/null && echo unshared; true";
        let unconfined = confined(text, |context| context.seccomp = profile(ProfileType::Unconfined, ""));
        ensure!(output(node, unconfined).await?.starts_with("Seccomp:\t0\n"));
        ensure!(
            output(node, confined(text, |_| {})).await?.starts_with("Seccomp:\t0\n"),
            "nil is unconfined"
        );
        let default = confined(text, |context| context.seccomp = profile(ProfileType::RuntimeDefault, ""));
        // Filtered, and making a user namespace is not among what the default allows.
        ensure!(output(node, default).await? == "Seccomp:\t2\n");
        Ok(())
    });
}

#[test]
fn a_localhost_profile_forbids_what_it_says() {
    on_node(async |node| {
        let path = node.dir().join("no-chmod.json");
        let names = ["chmod", "fchmod", "fchmodat", "fchmodat2"];
        let text = serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": names, "action": "SCMP_ACT_ERRNO" }],
        });
        std::fs::write(&path, text.to_string())?;
        let script = "touch /file; chmod 777 /file 2>/dev/null && echo changed || echo forbidden";
        let config = confined(script, |context| {
            context.seccomp = profile(ProfileType::Localhost, &path.display().to_string());
        });
        ensure!(output(node, config).await? == "forbidden\n");
        let pod = node.run_pod(node.pod("web")).await?;
        let config = confined(script, |context| {
            context.seccomp = profile(ProfileType::Localhost, "/no/such/profile.json");
        });
        let Err(error) = pod.create(config).await else { bail!("it was created") };
        ensure!(format!("{error:#}").contains("/no/such/profile.json"), "{error:#}");
        Ok(())
    });
}

#[test]
fn masked_paths_are_empty_and_read_only_ones_stay_readable() {
    on_node(async |node| {
        let text = "cat /proc/keys | wc -c; ls /proc/acpi 2>/dev/null | wc -l; wc -c < /etc/group; \
                    echo 1 2>/dev/null > /proc/sys/kernel/domainname || echo read-only; cat /proc/sys/kernel/ostype; \
                    touch /tmp/x 2>/dev/null || echo no writing";
        let config = confined(text, |context| {
            context.masked_paths =
                ["/proc/keys", "/proc/acpi", "/etc/group", "/not/there"].map(str::to_owned).to_vec();
            context.readonly_paths = ["/proc/sys", "/tmp", "/not/there"].map(str::to_owned).to_vec();
        });
        let output = output(node, config).await?;
        let lines: Vec<&str> = output.lines().collect();
        ensure!(lines[..3] == ["0"; 3], "{output}");
        ensure!(lines[3..] == ["read-only", "Linux", "no writing"], "{output}");
        Ok(())
    });
}

#[test]
fn empty_lists_mask_nothing() {
    on_node(async |node| {
        let config = script("main", "mount | grep -c -E ' on /proc/.+|/sys/firmware' || true");
        ensure!(output(node, config).await? == "0\n");
        Ok(())
    });
}

#[test]
fn a_read_only_root_refuses_writes_but_not_in_shm() {
    on_node(async |node| {
        let text = "touch /x 2>&1; touch /dev/shm/ok && echo shm";
        let config = confined(text, |context| context.readonly_rootfs = true);
        let output = output(node, config).await?;
        ensure!(output.contains("Read-only file system") && output.ends_with("shm\n"), "{output}");
        Ok(())
    });
}

#[test]
fn privileged_sees_all_devices_and_may_mount() {
    on_node(async |node| {
        let mut pod = node.pod("web");
        berth_tests::cri::pod_linux(&mut pod).security_context.get_or_insert_default().privileged = true;
        let pod = node.run_pod(pod).await?;
        let text = "mount -t tmpfs none /mnt 2>/dev/null || (mkdir /mnt && mount -t tmpfs none /mnt); \
                    grep -c ' /mnt ' /proc/self/mounts; grep Seccomp: /proc/self/status; \
                    ls /dev | wc -l; touch /sys/fs/cgroup/x 2>/dev/null; grep ' /sys ' /proc/self/mounts | grep -c rw";
        let mut config = confined(text, |context| {
            context.privileged = true;
            context.seccomp = profile(ProfileType::RuntimeDefault, "");
            context.masked_paths = vec!["/proc/keys".to_owned()];
        });
        let output = pod.output_of(config.clone()).await?;
        let lines: Vec<&str> = output.lines().collect();
        ensure!(lines[0] == "1" && lines[1] == "Seccomp:\t0" && lines[3] == "1", "{output}");
        let host_devices = std::fs::read_dir("/dev")?.count();
        let seen: usize = lines[2].parse()?;
        ensure!(seen + 10 >= host_devices, "{seen} of {host_devices} devices");
        if host::cgroup_version() == 2 {
            // As node agents do: its own cgroup is found by the name that it has on the node.
            let text = "test -e /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/cgroup.procs && echo found";
            let mut agent = confined(text, |context| context.privileged = true);
            agent.metadata.get_or_insert_default().name = "agent".to_owned();
            agent.log_path = "agent.log".to_owned();
            ensure!(pod.output_of(agent).await? == "found\n");
        }
        // In a pod that isn't privileged itself this is refused.
        config.metadata.get_or_insert_default().name = "other".to_owned();
        let plain = node.run_pod(node.pod("plain")).await?;
        let Err(error) = plain.create(config).await else { bail!("it was created") };
        ensure!(format!("{error:#}").contains("privileged"), "{error:#}");
        Ok(())
    });
}

#[test]
fn only_the_three_standard_descriptors_reach_the_program() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let config = container("main", &["ls", "/proc/self/fd"]);
        // ls has the folder itself open as a fourth.
        ensure!(pod.output_of(config).await? == "0\n1\n2\n3\n");
        Ok(())
    });
}

#[test]
fn limits_of_devices_hold() {
    on_node(async |node| {
        let text = "mknod /tmp/disk b 254 0 2>/dev/null && cat /tmp/disk 2>&1 | head -c 60; echo; \
                    for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; done; \
                    head -c 4 /dev/zero | wc -c; echo x > /dev/null && echo ok";
        let output = output(node, script("main", text)).await?;
        ensure!(output.contains("not permitted"), "a disk could be read: {output}");
        ensure!(output.ends_with("4\nok\n"), "{output}");
        Ok(())
    });
}

#[test]
fn a_container_has_a_session_keyring_of_its_own() {
    /// Serial numbers of the session keyrings that /proc/keys shows.
    fn sessions(keys: &str) -> Vec<&str> {
        let lines = keys.lines().filter(|line| line.contains(" _ses"));
        lines.filter_map(|line| line.split_whitespace().next()).collect()
    }
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let host = std::fs::read_to_string("/proc/keys")?;
        let inside = container.sh("cat /proc/keys").await?;
        let own: Vec<_> =
            sessions(&inside).into_iter().filter(|key| !sessions(&host).contains(key)).collect();
        ensure!(!own.is_empty(), "it has the daemon's: {inside}");
        Ok(())
    });
}
