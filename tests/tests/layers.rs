//! What layers become on disk, seen by a container that runs from them; and layers that mean harm.

use std::{fs, os::unix::fs::MetadataExt};

use anyhow::{Result, bail, ensure};
use berth_tests::{
    Node, Options,
    cri::{container, image_spec, script},
    image::{
        Image, Layer, busybox_layer,
        tar::{Entry, Kind},
    },
    on_node, on_node_with,
};

/// Builds an image over busybox, pulls it, and gives the output of a script that runs in it.
async fn output_in(node: &Node, layers: Vec<Layer>, text: &str) -> Result<String> {
    let layers = [vec![busybox_layer()?], layers].concat();
    node.registry().push("library/layered", "latest", &Image::new(layers).build()?);
    node.pull("layered").await?;
    let pod = node.run_pod(node.pod("layers")).await?;
    let mut config = script("main", text);
    config.image = Some(image_spec("layered"));
    let output = pod.output_of(config).await?;
    Ok(output)
}

#[test]
fn owners_modes_links_devices_and_times_survive() {
    on_node_with(Options::without_images(), async |node| {
        let layer = Layer::new()
            .file("data/owned", 0o640, "x")
            .owner(1234, 5678)
            .file("data/setuid", 0o4755, "x")
            .file("data/first", 0o644, "linked")
            .hardlink("data/second", "data/first")
            .symlink("data/soft", "first")
            .char_device("data/null", 0o666, 1, 3)
            .entry(Entry::new("data/pipe", Kind::Fifo, 0o600))
            .dir("data/sticky", 0o1777);
        let output = output_in(
            node,
            vec![layer],
            "cd /data && stat -c '%n %a %u %g %F %h %Y' owned setuid first second soft null pipe sticky && readlink soft",
        )
        .await?;
        let expected = "\
owned 640 1234 5678 regular file 1 1700000000
setuid 4755 0 0 regular file 1 1700000000
first 644 0 0 regular file 2 1700000000
second 644 0 0 regular file 2 1700000000
soft 777 0 0 symbolic link 1 1700000000
null 666 0 0 character special file 1 1700000000
pipe 600 0 0 fifo 1 1700000000
sticky 1777 0 0 directory 2 1700000000
first
";
        assert_eq!(output, expected);
        Ok(())
    });
}

#[test]
fn whiteouts_and_opaque_folders_hide_what_is_below() {
    on_node_with(Options::without_images(), async |node| {
        let below = Layer::new()
            .file("w/kept", 0o644, "")
            .file("w/removed", 0o644, "")
            .file("w/tree/deep", 0o644, "")
            .file("o/old", 0o644, "")
            .file("f/replaced-by-dir", 0o644, "");
        let above = Layer::new()
            .whiteout("w/removed")
            .whiteout("w/tree")
            .opaque("o")
            .file("o/new", 0o644, "")
            .whiteout("f/replaced-by-dir")
            .dir("f/replaced-by-dir", 0o755)
            .file("f/replaced-by-dir/inside", 0o644, "");
        let output = output_in(node, vec![below, above], "cd / && find w o f | sort").await?;
        assert_eq!(output, "f\nf/replaced-by-dir\nf/replaced-by-dir/inside\no\no/new\nw\nw/kept\n");
        Ok(())
    });
}

#[test]
fn xattrs_and_file_capabilities_survive() {
    on_node_with(Options::without_images(), async |node| {
        // A version 2 capability attribute: effective, permitted = CAP_NET_RAW (13).
        let capability: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let layer = Layer::new()
            .file("data/cap", 0o755, "x")
            .xattr("security.capability", &capability)
            .file("data/user", 0o644, "x")
            .xattr("user.note", b"kept");
        let pod_files = output_in(node, vec![layer], "sleep 0; ls /data").await?;
        assert_eq!(pod_files, "cap\nuser\n");
        // busybox can't read attributes; the layer on disk can be read from here.
        let find = |name: &str| -> Result<String> {
            let found = std::process::Command::new("find")
                .args([node.root().as_path()])
                .args(["-path", &format!("*/data/{name}"), "-type", "f"])
                .output()?;
            Ok(String::from_utf8(found.stdout)?.lines().next().unwrap_or_default().to_owned())
        };
        for (name, attribute, value) in
            [("cap", "security.capability", capability.as_slice()), ("user", "user.note", b"kept")]
        {
            let path = find(name)?;
            let dump = std::process::Command::new("python3")
                .args(["-c", "import os,sys; sys.stdout.write(os.getxattr(sys.argv[1], sys.argv[2]).hex())"])
                .args([&path, attribute])
                .output()?;
            let seen = String::from_utf8(dump.stdout)?;
            ensure!(seen == hex::encode(value), "{attribute} of {path}: {seen}");
        }
        Ok(())
    });
}

#[test]
fn deep_and_non_ascii_names_survive() {
    on_node_with(Options::without_images(), async |node| {
        let deep = (0..40).map(|level| format!("folder-number-{level}")).collect::<Vec<_>>().join("/");
        let layer = Layer::new().file(&format!("{deep}/leaf"), 0o644, "deep").file(
            "Straße/日本語 – naïve",
            0o644,
            "wide",
        );
        let output =
            output_in(node, vec![layer], &format!("cat '/{deep}/leaf' '/Straße/日本語 – naïve'")).await?;
        assert_eq!(output, "deepwide");
        Ok(())
    });
}

#[test]
fn containers_of_one_image_do_not_see_each_others_writes() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("pair")).await?;
        let first = pod.run(berth_tests::cri::sleeper("first")).await?;
        let second = pod.run(berth_tests::cri::sleeper("second")).await?;
        first.sh("echo mine > /etc/hostname && rm /bin/yes").await?;
        ensure!(second.sh("cat /etc/motd 2>/dev/null; ls /bin/yes").await? == "/bin/yes\n");
        Ok(())
    });
}

/// Pulls an image with one hostile layer; it must fail, name the entry, and touch nothing outside.
fn refuses(layers: Vec<Layer>, entry: &str) {
    on_node_with(Options::without_images(), async |node| {
        let outside = node.dir().join("outside");
        fs::create_dir(&outside)?;
        fs::write(outside.join("victim"), "untouched")?;
        let before = fs::metadata(outside.join("victim"))?;
        node.registry().push("library/hostile", "latest", &Image::new(layers).build()?);
        let Err(error) = node.pull("hostile").await else { bail!("it was pulled") };
        ensure!(format!("{error:#}").contains(entry), "{entry:?} is not named in {error:#}");
        let after = fs::metadata(outside.join("victim"))?;
        ensure!(fs::read_to_string(outside.join("victim"))? == "untouched");
        ensure!(after.nlink() == before.nlink() && fs::read_dir(&outside)?.count() == 1);
        ensure!(node.image_list().await?.is_empty());
        Ok(())
    });
}

#[test]
fn a_layer_that_climbs_out_by_dots_is_refused() {
    refuses(vec![Layer::new().file("../../../../outside/new", 0o644, "evil")], "../../../../outside/new");
}

#[test]
fn a_layer_with_an_absolute_name_is_refused() {
    refuses(vec![Layer::new().file("/berth-was-here", 0o644, "evil")], "/berth-was-here");
}

#[test]
fn a_layer_that_writes_through_its_own_symlink_is_refused() {
    let layer = Layer::new().symlink("way", "../../../../outside").file("way/new", 0o644, "evil");
    refuses(vec![layer], "way/new");
}

#[test]
fn a_layer_that_hard_links_to_outside_is_refused() {
    refuses(vec![Layer::new().hardlink("stolen", "../../../../outside/victim")], "stolen");
}

#[test]
fn a_layer_that_whites_out_what_is_outside_is_refused() {
    refuses(vec![Layer::new().whiteout("../../../../outside/victim")], ".wh.victim");
}

#[test]
fn an_absolute_symlink_below_is_followed_inside_the_root_only() {
    // Base images have links such as /var/run -> /run, and later layers write through them when a container runs.
    on_node_with(Options::without_images(), async |node| {
        let output = output_in(node, vec![], "echo here > /var/run/file && cat /run/file").await?;
        assert_eq!(output, "here\n");
        Ok(())
    });
}

#[test]
fn an_image_without_files_runs_what_is_mounted_in() {
    on_node_with(Options::without_images(), async |node| {
        node.registry().push("library/empty", "latest", &Image::new(vec![Layer::new()]).build()?);
        node.pull("empty").await?;
        let pod = node.run_pod(node.pod("empty")).await?;
        let mut config = container("main", &["/busybox", "echo", "alive"]);
        config.image = Some(image_spec("empty"));
        config.mounts.push(k8s_cri::v1::Mount {
            container_path: "/busybox".to_owned(),
            host_path: "/bin/busybox".to_owned(),
            readonly: true,
            ..k8s_cri::v1::Mount::default()
        });
        ensure!(pod.output_of(config).await? == "alive\n");
        Ok(())
    });
}
