//! The image most tests run: Debian's static busybox with its applets and the few files a small system has.

use std::{fs, process::Command, sync::OnceLock};

use anyhow::{Context, Result, ensure};

use super::{Config, Image, Layer};

/// Where Debian's `busybox-static` puts the binary.
pub(super) const BUSYBOX: &str = "/bin/busybox";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/:/bin/false
www-data:x:33:33:www:/var/www:/bin/false
app:x:1000:1000:app:/home/app:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
";

/// `app` is in two further groups, which tests of supplementary groups count on.
const GROUP: &str = "root:x:0:
daemon:x:1:
audio:x:29:app
www-data:x:33:
app:x:1000:
extra:x:50000:app
nogroup:x:65534:
";

/// The layer with everything in it.
pub fn busybox_layer() -> Result<Layer> {
    let binary = fs::read(BUSYBOX).with_context(|| format!("reading {BUSYBOX} (Debian: busybox-static)"))?;
    let mut layer = Layer::new()
        .dir("bin", 0o755)
        .file("bin/busybox", 0o755, binary)
        .dir("dev", 0o755)
        .dir("etc", 0o755)
        .file("etc/passwd", 0o644, PASSWD)
        .file("etc/group", 0o644, GROUP)
        .file("etc/hostname", 0o644, "image\n")
        .dir("home", 0o755)
        .dir("home/app", 0o755)
        .owner(1000, 1000)
        .dir("proc", 0o555)
        .dir("root", 0o700)
        .dir("sys", 0o555)
        .dir("tmp", 0o1777)
        .dir("var", 0o755)
        .dir("var/www", 0o755)
        .symlink("var/run", "/run")
        .dir("run", 0o755);
    for applet in applets()?.iter().filter(|applet| *applet != "busybox") {
        layer = layer.symlink(&format!("bin/{applet}"), "busybox");
    }
    Ok(layer)
}

/// The image: `sh` by default, PATH set.
pub fn busybox() -> Result<Image> {
    let mut image = Image::new(vec![busybox_layer()?]);
    image.config = Config {
        cmd: vec!["sh".to_owned()],
        env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
        ..Config::default()
    };
    Ok(image)
}

fn applets() -> Result<&'static [String]> {
    static APPLETS: OnceLock<Vec<String>> = OnceLock::new();
    if let Some(known) = APPLETS.get() {
        return Ok(known);
    }
    let output = Command::new(BUSYBOX).arg("--list").output().context("listing busybox's applets")?;
    ensure!(output.status.success(), "busybox --list failed: {output:?}");
    let names = String::from_utf8(output.stdout).context("busybox's applet names")?;
    Ok(APPLETS.get_or_init(|| names.lines().map(str::to_owned).collect()))
}
