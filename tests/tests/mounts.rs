//! What is mounted into containers, and how.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::{
    Node,
    cri::{Pod, image_spec, pod_linux, script, security, sleeper},
    host,
    image::{Image, Layer},
    on_node,
};
use k8s_cri::v1::{ContainerConfig, Device, Mount, MountPropagation, RemoveImageRequest};

fn folder(node: &Node, name: &str) -> Result<PathBuf> {
    let path = node.dir().join(name);
    fs::create_dir_all(&path)?;
    Ok(path)
}

fn mount(from: &Path, to: &str) -> Mount {
    Mount { host_path: from.display().to_string(), container_path: to.to_owned(), ..Mount::default() }
}

/// A sleeper with these mounts.
fn with(name: &str, mounts: Vec<Mount>) -> ContainerConfig {
    ContainerConfig { mounts, ..sleeper(name) }
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    ensure!(output.status.success(), "{program} {arguments:?}: {output:?}");
    Ok(())
}

/// A tmpfs of the test's own, unmounted with everything below it when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn at(path: PathBuf) -> Result<Tmpfs> {
        fs::create_dir_all(&path)?;
        run("mount", &["-t", "tmpfs", "test", path.to_str().context("path")?])?;
        Ok(Tmpfs(path))
    }

    /// A tmpfs that mounts travel out of and into.
    fn shared(path: PathBuf) -> Result<Tmpfs> {
        let tmpfs = Tmpfs::at(path)?;
        run("mount", &["--make-rshared", tmpfs.0.to_str().context("path")?])?;
        Ok(tmpfs)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--recursive", "--lazy"]).arg(&self.0).status();
    }
}

#[test]
fn folders_and_files_are_mounted_and_read_only_ones_are() {
    on_node(async |node| {
        let volume = folder(node, "volume")?;
        fs::write(volume.join("file"), "from the host\n")?;
        let pod = node.run_pod(node.pod("web")).await?;
        let read_only = Mount { readonly: true, ..mount(&volume, "/ro") };
        let file = Mount { readonly: true, ..mount(&volume.join("file"), "/deep/er/file") };
        let container = pod.run(with("main", vec![mount(&volume, "/rw"), read_only, file])).await?;
        ensure!(container.sh("cat /rw/file /ro/file /deep/er/file").await? == "from the host\n".repeat(3));
        container.sh("echo from the container > /rw/new").await?;
        ensure!(fs::read_to_string(volume.join("new"))? == "from the container\n");
        for target in ["/ro/new", "/deep/er/file"] {
            let done = container.exec(&["sh", "-c", &format!("echo x > {target}")]).await?;
            ensure!(done.code != 0 && done.stderr.contains("Read-only"), "{target}: {done:?}");
        }
        Ok(())
    });
}

#[test]
fn a_missing_source_is_an_error_that_names_it() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let missing = node.dir().join("missing");
        let Err(error) = pod.run(with("main", vec![mount(&missing, "/x")])).await else { bail!("it ran") };
        ensure!(format!("{error:#}").contains(&missing.display().to_string()), "{error:#}");
        ensure!(!missing.exists(), "the source was made up");
        Ok(())
    });
}

#[test]
fn a_symlink_as_source_is_followed_on_the_host() {
    on_node(async |node| {
        let volume = folder(node, "volume")?;
        fs::write(volume.join("file"), "behind the link\n")?;
        let link = node.dir().join("link");
        std::os::unix::fs::symlink(&volume, &link)?;
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(with("main", vec![mount(&link, "/volume")])).await?;
        ensure!(container.sh("cat /volume/file").await? == "behind the link\n");
        Ok(())
    });
}

#[test]
fn a_target_behind_the_images_symlink_stays_inside_the_root() {
    on_node(async |node| {
        // The image has /var/run -> /run.
        let volume = folder(node, "volume")?;
        fs::write(volume.join("token"), "secret\n")?;
        let pod = node.run_pod(node.pod("web")).await?;
        let target = "/var/run/secrets/kubernetes.io/serviceaccount";
        let container = pod.run(with("main", vec![mount(&volume, target)])).await?;
        ensure!(container.sh("cat /run/secrets/kubernetes.io/serviceaccount/token").await? == "secret\n");
        ensure!(!Path::new("/run/secrets/kubernetes.io").exists(), "it was made on the host");
        Ok(())
    });
}

#[test]
fn plain_read_only_leaves_submounts_writable_and_recursive_does_not() {
    on_node(async |node| {
        let outer = Tmpfs::at(node.dir().join("outer"))?;
        let inner = Tmpfs::at(outer.0.join("inner"))?;
        let pod = node.run_pod(node.pod("web")).await?;
        let plain = Mount { readonly: true, ..mount(&outer.0, "/plain") };
        let recursive = Mount { readonly: true, recursive_read_only: true, ..mount(&outer.0, "/recursive") };
        let container = pod.run(with("main", vec![plain, recursive])).await?;
        ensure!(container.exec(&["touch", "/plain/x"]).await?.code != 0);
        ensure!(container.exec(&["touch", "/plain/inner/x"]).await?.code == 0);
        ensure!(container.exec(&["touch", "/recursive/x"]).await?.code != 0);
        ensure!(container.exec(&["touch", "/recursive/inner/y"]).await?.code != 0);
        for wrong in [
            Mount { recursive_read_only: true, ..mount(&outer.0, "/wrong") },
            Mount {
                readonly: true,
                recursive_read_only: true,
                propagation: MountPropagation::PropagationHostToContainer.into(),
                ..mount(&outer.0, "/wrong")
            },
        ] {
            ensure!(pod.create(with("wrong", vec![wrong])).await.is_err(), "a contradiction was accepted");
        }
        pod.remove().await?;
        drop(inner);
        Ok(())
    });
}

async fn privileged_pod(node: &Node) -> Result<Pod<'_>> {
    let mut config = node.pod("privileged");
    pod_linux(&mut config).security_context.get_or_insert_default().privileged = true;
    node.run_pod(config).await
}

/// A privileged sleeper with one mount of `from` at /volume.
fn propagating(name: &str, from: &Path, propagation: MountPropagation) -> ContainerConfig {
    let mut config = with(name, vec![Mount { propagation: propagation.into(), ..mount(from, "/volume") }]);
    security(&mut config).privileged = true;
    config
}

#[test]
fn mounts_travel_as_the_propagation_says() {
    on_node(async |node| {
        let shared = Tmpfs::shared(node.dir().join("shared"))?;
        let pod = privileged_pod(node).await?;
        let private =
            pod.run(propagating("private", &shared.0, MountPropagation::PropagationPrivate)).await?;
        let slave =
            pod.run(propagating("slave", &shared.0, MountPropagation::PropagationHostToContainer)).await?;
        let both =
            pod.run(propagating("both", &shared.0, MountPropagation::PropagationBidirectional)).await?;
        let later = Tmpfs::at(shared.0.join("later"))?;
        fs::write(later.0.join("file"), "mounted later\n")?;
        let sees = async |container: &berth_tests::cri::Container<'_>, path: &str| {
            Ok::<_, anyhow::Error>(container.exec(&["test", "-e", path]).await?.code == 0)
        };
        ensure!(!sees(&private, "/volume/later/file").await?, "into private");
        ensure!(sees(&slave, "/volume/later/file").await?, "not into slave");
        ensure!(sees(&both, "/volume/later/file").await?, "not into bidirectional");

        let mounts = "mkdir /volume/$1 && mount -t tmpfs test /volume/$1 && touch /volume/$1/file";
        for container in [(&private, "p"), (&slave, "s"), (&both, "b")] {
            let done = container.0.exec(&["sh", "-c", mounts, "sh", container.1]).await?;
            ensure!(done.code == 0, "{done:?}");
        }
        ensure!(!shared.0.join("p/file").exists(), "out of private");
        ensure!(!shared.0.join("s/file").exists(), "out of slave");
        ensure!(shared.0.join("b/file").exists(), "not out of bidirectional");
        pod.remove().await?;
        drop(later);
        Ok(())
    });
}

#[test]
fn bidirectional_needs_a_shared_source() {
    on_node(async |node| {
        let lonely = Tmpfs::at(node.dir().join("lonely"))?;
        run("mount", &["--make-private", lonely.0.to_str().context("path")?])?;
        let pod = privileged_pod(node).await?;
        let config = propagating("main", &lonely.0, MountPropagation::PropagationBidirectional);
        let Err(error) = pod.run(config).await else { bail!("it ran") };
        ensure!(format!("{error:#}").contains("shared"), "{error:#}");
        pod.remove().await
    });
}

#[test]
fn devices_appear_with_their_permissions() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let mut config = sleeper("main");
        let link = node.dir().join("device-link");
        std::os::unix::fs::symlink("/dev/full", &link)?;
        let device = |host: &str, container: &str, permissions: &str| Device {
            host_path: host.to_owned(),
            container_path: container.to_owned(),
            permissions: permissions.to_owned(),
        };
        config.devices = vec![
            device("/dev/zero", "/dev/mine", "rwm"),
            device(&link.display().to_string(), "/dev/block/volume", "r"),
        ];
        let container = pod.run(config).await?;
        ensure!(container.sh("stat -c '%t %T %F' /dev/mine").await? == "1 5 character special file\n");
        ensure!(container.sh("head -c 3 /dev/mine | wc -c").await? == "3\n");
        ensure!(container.sh("stat -c '%t %T' /dev/block/volume").await? == "1 7\n", "the link's device");
        let mut config = sleeper("missing");
        config.devices = vec![device("/dev/no-such-device", "/dev/x", "rwm")];
        let Err(error) = pod.create(config).await else { bail!("it was created") };
        ensure!(format!("{error:#}").contains("/dev/no-such-device"), "{error:#}");
        Ok(())
    });
}

#[test]
fn shared_memory_is_the_pods() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let (a, b) = (pod.run(sleeper("a")).await?, pod.run(sleeper("b")).await?);
        a.sh("echo shared > /dev/shm/file").await?;
        ensure!(b.sh("cat /dev/shm/file").await? == "shared\n");
        ensure!(b.sh("df -k /dev/shm | tail -1 | awk '{print $2}'").await? == "65536\n");
        let other = node.run_pod(node.pod("other")).await?;
        let c = other.run(sleeper("c")).await?;
        ensure!(c.exec(&["test", "-e", "/dev/shm/file"]).await?.code != 0);
        Ok(())
    });
}

#[test]
fn kubelets_hosts_file_and_termination_log_are_mounted() {
    on_node(async |node| {
        let hosts = node.dir().join("etc-hosts");
        fs::write(&hosts, "127.0.0.1 localhost\n10.0.0.9 from-kubelet\n")?;
        let termination = node.dir().join("termination");
        fs::write(&termination, "")?;
        let mut config = script("main", "grep from-kubelet /etc/hosts; printf bye > /dev/termination-log");
        config.mounts = vec![mount(&hosts, "/etc/hosts"), mount(&termination, "/dev/termination-log")];
        let pod = node.run_pod(node.pod("web")).await?;
        ensure!(pod.output_of(config).await? == "10.0.0.9 from-kubelet\n");
        ensure!(fs::read_to_string(&termination)? == "bye");
        Ok(())
    });
}

#[test]
fn the_usual_filesystems_are_there_with_the_usual_options() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(sleeper("main")).await?;
        let seen = host::parse_mounts(&container.sh("cat /proc/self/mountinfo").await?)?;
        let at = |path: &str| seen.iter().find(|mount| mount.mount_point == Path::new(path));
        for (path, kind, options) in [
            ("/proc", "proc", "nosuid"),
            ("/sys", "sysfs", "ro"),
            ("/dev", "tmpfs", "nosuid"),
            ("/dev/pts", "devpts", "noexec"),
            ("/dev/shm", "tmpfs", "nosuid"),
            ("/dev/mqueue", "mqueue", "nosuid"),
        ] {
            let mount = at(path).with_context(|| format!("{path} is not mounted"))?;
            ensure!(mount.fs_type == kind, "{mount:?}");
            ensure!(mount.options.split(',').any(|option| option == options), "{mount:?}");
        }
        ensure!(at("/").is_some_and(|mount| mount.fs_type == "overlay"));
        let cgroup = at("/sys/fs/cgroup").context("no /sys/fs/cgroup")?;
        ensure!(cgroup.options.split(',').any(|option| option == "ro"), "{cgroup:?}");
        let links =
            container.sh("for link in fd stdin stdout stderr ptmx; do readlink /dev/$link; done").await?;
        ensure!(
            links == "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n",
            "{links}"
        );
        // The host's paths of the layers must not show.
        ensure!(!seen.iter().any(|mount| mount.mount_point.starts_with(node.dir())));
        Ok(())
    });
}

#[test]
fn an_image_volume_shows_another_images_files_and_cannot_be_written_to() {
    on_node(async |node| {
        let data = Image::new(vec![
            Layer::new().dir("data", 0o755).file("data/greeting", 0o644, "hello"),
            Layer::new().dir("data", 0o755).file("data/more", 0o755, "#!/bin/sh\necho ran\n"),
        ]);
        node.registry().push("library/data", "latest", &data.build()?);
        let id = node.pull("data").await?;
        let volume = |readonly| Mount {
            container_path: "/volume".to_owned(),
            image: Some(image_spec("data")),
            readonly,
            ..Mount::default()
        };
        let pod = node.run_pod(node.pod("web")).await?;
        let mut config = sleeper("main");
        config.mounts.push(volume(true));
        let container = pod.run(config.clone()).await?;
        ensure!(container.sh("cat /volume/data/greeting; /volume/data/more").await? == "helloran\n");
        ensure!(container.exec(&["touch", "/volume/x"]).await?.code != 0, "it can be written to");
        let mounts = container.status().await?.mounts;
        ensure!(
            mounts.len() == 1 && mounts[0].image.is_some() && mounts[0].host_path.is_empty(),
            "{mounts:?}"
        );

        // Neither the image's removal nor a new daemon takes it away.
        let remove = RemoveImageRequest { image: Some(image_spec(&id)) };
        node.images().remove_image(remove).await?;
        node.kill9().await?;
        node.start().await?;
        ensure!(container.sh("cat /volume/data/greeting").await? == "hello");

        config.metadata.get_or_insert_default().attempt = 1;
        let Err(error) = pod.create(config).await else { bail!("the image is gone") };
        ensure!(format!("{error:#}").contains("ImageVolumeMountFailed"), "{error:#}");
        let mut writable = sleeper("writable");
        writable.mounts.push(volume(false));
        ensure!(pod.create(writable).await.is_err(), "a writable image volume");
        Ok(())
    });
}
