//! The images that critest names, built from what Debian has: names, users, ports and programs are as critest's specs
//! expect them, the rest is not. One cannot be made: `test-image-digest` is pulled by a digest nobody else can produce.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::{
    Config, Image, Layer,
    busybox::{BUSYBOX, busybox},
    native_architecture,
};
use crate::registry::Registry;

/// Hosts in critest's image references.
pub const HOSTS: [&str; 3] = ["registry.k8s.io", "k8s.gcr.io", "gcr.io"];

const E2E: &str = "e2e-test-images";
const STAGING: &str = "k8s-staging-cri-tools";

/// The users of Docker's busybox, which has none with an id above 999 but `nobody`.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/:/bin/false
www-data:x:33:33:www:/var/www:/bin/false
nobody:x:65534:65534:nobody:/:/bin/false
";

const GROUP: &str = "root:x:0:
daemon:x:1:
www-data:x:33:
nobody:x:65534:
";

/// `pidof` has all that `pgrep NAME` needs, and Debian's busybox lacks the latter.
const PGREP: &str = "#!/bin/sh\nexec pidof \"$1\"\n";

/// Its first line stands for what Apache writes when it starts.
const HTTPD: &str = "#!/bin/sh\necho 'httpd serves /www on port 80' >&2\nexec httpd -f -p 80 -h /www\n";

const PAGE: &str = "<html><body>It works!</body></html>\n";

/// Setuid root; see its source.
const NNP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/critest/nnp.c");

/// Builds all of them and puts them where critest's references lead.
pub fn push(registry: &Registry) -> Result<()> {
    let base = base()?;
    let put = |repository: String, tag: &str, image: &Image| -> Result<()> {
        registry.push(&repository, tag, &image.build()?);
        Ok(())
    };
    put(format!("{E2E}/busybox"), "1.29-2", &base)?;
    put(format!("{E2E}/nginx"), "1.14-2", &nginx()?)?;
    put(format!("{STAGING}/hostnet-nginx-{}", native_architecture()), "latest", &nginx_on(12_003)?)?;
    put(format!("{E2E}/httpd"), "2.4.39-4", &httpd(&base))?;
    put(format!("{E2E}/nonewprivs"), "1.3", &nonewprivs(&base)?)?;
    put("pause".to_owned(), "3.9", &marked(&base, "pause"))?;
    for (name, tags) in [
        ("test-image-latest", &["latest"] as &[&str]),
        ("test-image-1", &["latest"]),
        ("test-image-2", &["latest"]),
        ("test-image-3", &["latest"]),
        ("test-image-tags", &["1", "2", "3"]),
    ] {
        for tag in tags {
            put(format!("{STAGING}/{name}"), tag, &marked(&base, name))?;
        }
    }
    for tag in ["test", "all"] {
        put(format!("{STAGING}/test-image-tag"), tag, &marked(&base, &format!("test-image-tag-{tag}")))?;
    }
    for (name, user) in [
        ("user-uid", "1002"),
        ("user-username", "www-data"),
        ("user-uid-group", "1003:1004"),
        ("user-username-group", "www-data:1004"),
    ] {
        put(format!("{STAGING}/test-image-{name}"), "latest", &of_user(&base, user))?;
    }
    put(format!("{STAGING}/test-image-predefined-group"), "latest", &predefined_group(&base))
}

/// Busybox with what Debian's lacks. `ls` is a file of its own, since a spec hides it alone.
fn base() -> Result<Image> {
    let mut image = busybox()?;
    let tools = programs(&[(BUSYBOX, "bin/ls"), ("/usr/bin/ipcs", "bin/ipcs")])?
        .file("bin/sh", 0o755, shell_without_ls()?)
        .file("bin/pgrep", 0o755, PGREP)
        .file("etc/passwd", 0o644, PASSWD)
        .file("etc/group", 0o644, GROUP);
    image.layers.push(tools);
    Ok(image)
}

/// Debian's busybox runs `ls` in its shell's own process and never looks at /bin/ls, which a spec hides; Docker's does
/// look. And the spec wants an error in busybox's own words. So: a busybox that knows `ls` by another name, which keeps
/// the table of names sorted.
fn shell_without_ls() -> Result<Vec<u8>> {
    let mut binary = fs::read(BUSYBOX).with_context(|| format!("reading {BUSYBOX}"))?;
    let names = b"\0losetup\0ls\0lsmod\0";
    let at = binary.windows(names.len()).position(|window| window == names);
    let at = at.context("busybox's table of names is not as in Debian 12")?;
    binary[at + 10] = b'r';
    Ok(binary)
}

/// Like no other by one file.
fn marked(base: &Image, name: &str) -> Image {
    with_layer(base, Layer::new().file(name, 0o644, name))
}

fn of_user(base: &Image, user: &str) -> Image {
    let mut image = base.clone();
    user.clone_into(&mut image.config.user);
    image
}

/// Its user is in a group that only the image knows of.
fn predefined_group(base: &Image) -> Image {
    let passwd = format!("{PASSWD}default-user:x:1000:1000:default:/home/default-user:/bin/sh\n");
    let group = format!("{GROUP}default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n");
    let layer = Layer::new().file("etc/passwd", 0o644, passwd).file("etc/group", 0o644, group);
    of_user(&with_layer(base, layer), "1000")
}

fn httpd(base: &Image) -> Image {
    let layer = Layer::new().dir("www", 0o755).file("www/index.html", 0o644, PAGE).file(
        "bin/httpd-foreground",
        0o755,
        HTTPD,
    );
    let mut image = with_layer(base, layer);
    image.config.cmd = words(&["httpd-foreground"]);
    image
}

/// Debian's nginx on port 80, with its pages and logs where Docker's has them.
pub fn nginx() -> Result<Image> {
    nginx_on(80)
}

fn nginx_on(port: u16) -> Result<Image> {
    let config = format!(
        "user www-data;
worker_processes 1;
pid /var/run/nginx.pid;
error_log /dev/stderr notice;
events {{ worker_connections 64; }}
http {{
    access_log /dev/stdout;
    server {{
        listen {port};
        root /usr/share/nginx/html;
    }}
}}
"
    );
    let layer = programs(&[("/usr/sbin/nginx", "bin/nginx")])
        .context("collecting nginx (Debian: nginx-light)")?
        .dir("etc/nginx", 0o755)
        .file("etc/nginx/nginx.conf", 0o644, config)
        .dir("var/lib", 0o755)
        .dir("var/lib/nginx", 0o755)
        .dir("usr/share", 0o755)
        .dir("usr/share/nginx", 0o755)
        .dir("usr/share/nginx/html", 0o755)
        .file("usr/share/nginx/html/index.html", 0o644, PAGE);
    let mut image = with_layer(&base()?, layer);
    image.config.cmd = words(&["nginx", "-g", "daemon off;"]);
    Ok(image)
}

fn nonewprivs(base: &Image) -> Result<Image> {
    let folder = tempfile::tempdir().context("making a folder to compile in")?;
    let binary = folder.path().join("nnp");
    let mut compiler = Command::new("cc");
    run(compiler.args(["-static", "-Os", "-s", "-o"]).arg(&binary).arg(NNP))?;
    let binary = fs::read(&binary).context("reading what cc made")?;
    let mut image = with_layer(base, Layer::new().file("nnp", 0o4755, binary));
    image.config = Config { entrypoint: words(&["/nnp"]), ..Config::default() };
    Ok(image)
}

fn with_layer(base: &Image, layer: Layer) -> Image {
    let mut image = base.clone();
    image.layers.push(layer);
    image
}

/// A layer with programs of this machine, each under its path in the image, and the libraries they load.
pub(super) fn programs(wanted: &[(&str, &str)]) -> Result<Layer> {
    let mut libraries = BTreeSet::new();
    for (program, _) in wanted {
        libraries.extend(libraries_of(program)?);
    }
    // In order, so that a folder comes before those in it.
    let folders: BTreeSet<&Path> = libraries
        .iter()
        .flat_map(|library| library.ancestors().skip(1))
        .filter(|folder| *folder != Path::new("/"))
        .collect();
    let mut layer = Layer::new();
    for folder in folders {
        layer = layer.dir(in_image(folder), 0o755);
    }
    let libraries = libraries.iter().map(|library| (library.as_path(), in_image(library)));
    for (host, image) in libraries.chain(wanted.iter().map(|(host, image)| (Path::new(host), *image))) {
        let content = fs::read(host).with_context(|| format!("reading {}", host.display()))?;
        layer = layer.file(image, 0o755, content);
    }
    Ok(layer)
}

fn in_image(path: &Path) -> &str {
    path.to_str().expect("ldd's answer was a string").trim_start_matches('/')
}

/// What the dynamic linker loads for a program; nothing for a static one.
fn libraries_of(program: &str) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("running ldd")?;
    let text = String::from_utf8(output.stdout).context("ldd's answer")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() || said.contains("not a dynamic"), "ldd {program}: {said}");
    // `libc.so.6 => /lib/libc.so.6 (0x…)` or `/lib64/ld-linux-x86-64.so.2 (0x…)`; the vdso has no path.
    let paths = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
