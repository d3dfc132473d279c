//! A node with NRI, and plugins for it: the program in `tests/tools/nri-plugin`, which is the Go module's own stub with a
//! script, and writes down what it is told.

use std::{
    ffi::OsStr,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use k8s_cri::v1::StatusRequest;
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
};

use crate::{Node, Options, PATIENCE, tools, wait_until};

/// Its name, in the folder that it is built in.
const PROGRAM: &str = "nri-plugin";

/// For the `[nri]` section of a node with a plugin that hangs.
pub const IMPATIENT: &str = "request_timeout = \"1s\"\n";

/// A node where plugins may connect. `further` goes to the end of its `[nri]` section.
pub fn options(further: &str) -> Options {
    // A plugin that works may be slow on a machine that has much to do.
    let patience = if further.starts_with(IMPATIENT) { "" } else { "request_timeout = \"10s\"\n" };
    let extra_config = format!(
        "[nri]\nenabled = true\nsocket = \"@DIR@/nri.sock\"\nplugin_dir = \"@DIR@/nri/plugins\"\n\
         plugin_config_dir = \"@DIR@/nri/conf\"\n{patience}{further}"
    );
    Options { extra_config, ..Options::default() }
}

/// Where plugins connect.
pub fn socket(node: &Node) -> PathBuf {
    node.dir().join("nri.sock")
}

/// Puts a plugin where the daemon starts it from.
pub fn install(node: &Node, name: &str, mut script: Value) -> Result<Log> {
    let log = Log(node.dir().join(format!("{name}.log")));
    script["log"] = json!(log.0);
    let [plugins, configs] = ["plugins", "conf"].map(|folder| node.dir().join("nri").join(folder));
    for folder in [&plugins, &configs] {
        fs::create_dir_all(folder).context("making a folder for plugins")?;
    }
    let program = plugins.join(name);
    fs::copy(tools::nri_plugin()?.join(PROGRAM), &program).context("installing a plugin")?;
    fs::set_permissions(&program, Permissions::from_mode(0o755)).context("making it a program")?;
    fs::write(configs.join(format!("{name}.conf")), script.to_string())
        .context("writing its configuration")?;
    Ok(log)
}

/// Takes the installed plugins away again.
pub fn uninstall(node: &Node) -> Result<()> {
    fs::remove_dir_all(node.dir().join("nri")).context("removing the plugins")
}

/// What verbose Status says of plugins.
pub async fn info(node: &Node) -> Result<Value> {
    let status = node.runtime().status(StatusRequest { verbose: true }).await.context("Status")?;
    let text = status.into_inner().info.remove("nri").context("Status says nothing of NRI")?;
    serde_json::from_str(&text).context("reading what Status says of NRI")
}

/// The names of the connected, and of the lost, as Status has them.
pub async fn names(node: &Node, which: &str) -> Result<Vec<String>> {
    let info = info(node).await?;
    let plugins = info[which].as_array().context("Status has no such list")?;
    Ok(plugins.iter().map(|plugin| plugin["name"].as_str().unwrap_or_default().to_owned()).collect())
}

/// A plugin that was started by hand. Killed when it is dropped.
#[derive(Debug)]
pub struct Plugin {
    child: Child,
    pub log: Log,
}

impl Plugin {
    /// Starts one named NN-NAME and waits until it is connected.
    pub async fn connect(node: &Node, name: &str, script: Value) -> Result<Plugin> {
        Plugin::connect_in_mode(node, name, "stub", script).await
    }

    /// The same in one of the program's other modes.
    pub async fn connect_in_mode(node: &Node, name: &str, mode: &str, script: Value) -> Result<Plugin> {
        let plugin = Plugin::start(node, name, mode, script)?;
        wait_until("the plugin to be connected", PATIENCE, async || {
            let connected = names(node, "connected").await?;
            ensure!(connected.iter().any(|connected| connected == name), "{connected:?} are");
            Ok(())
        })
        .await?;
        Ok(plugin)
    }

    fn start(node: &Node, name: &str, mode: &str, mut script: Value) -> Result<Plugin> {
        let log = Log(node.dir().join(format!("{name}.log")));
        script["log"] = json!(log.0);
        let file = node.dir().join(format!("{name}.json"));
        fs::write(&file, script.to_string()).context("writing the plugin's script")?;
        let arguments = ["-mode".as_ref(), mode.as_ref(), "-script".as_ref(), file.as_os_str()];
        let mut plugin = Plugin::run(node, name, &arguments)?;
        plugin.log = log;
        Ok(plugin)
    }

    /// Starts one with these arguments.
    pub fn run(node: &Node, name: &str, arguments: &[&OsStr]) -> Result<Plugin> {
        let (index, base) = name.split_once('-').context("a plugin is named NN-NAME")?;
        let output = fs::File::create(node.dir().join(format!("{name}.out")))?;
        let child = Command::new(tools::nri_plugin()?.join(PROGRAM))
            .args(["-name", base, "-index", index, "-socket"])
            .arg(socket(node))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(output)
            .kill_on_drop(true)
            .spawn()
            .context("starting a plugin")?;
        Ok(Plugin { child, log: Log(PathBuf::new()) })
    }

    /// Has it update containers, without being asked: for each its name or id, and its resources.
    pub async fn update(&mut self, updates: Value) -> Result<Line> {
        let stdin = self.child.stdin.as_mut().context("the plugin has no input")?;
        stdin.write_all(format!("{updates}\n").as_bytes()).await.context("telling the plugin")?;
        self.log.wait_for("updated", "").await
    }

    /// Waits until it has ended.
    pub async fn wait(&mut self) -> Result<()> {
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        ended.context("the plugin does not end")?.context("waiting for the plugin")?;
        Ok(())
    }

    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context("killing the plugin")
    }
}

/// What a plugin was told.
#[derive(Debug, Clone)]
pub struct Log(PathBuf);

/// A call, with what the plugin wrote of it.
pub type Line = Value;

impl Log {
    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn lines(&self) -> Result<Vec<Line>> {
        let text = match fs::read_to_string(&self.0) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.context("reading a plugin's log")?,
        };
        text.lines().map(|line| serde_json::from_str(line).context("reading a plugin's log")).collect()
    }

    /// The calls about this container, or pod, in their order.
    pub fn calls_about(&self, name: &str) -> Result<Vec<String>> {
        let about = |line: &Line| match line["container"].as_str() {
            Some(container) => container == name,
            None => line["pod"] == name,
        };
        let lines = self.lines()?.into_iter().filter(about);
        Ok(lines.map(|line| line["call"].as_str().unwrap_or_default().to_owned()).collect())
    }

    /// The last line of such a call, once there is one; about any container when `name` is empty.
    pub async fn wait_for(&self, call: &str, name: &str) -> Result<Line> {
        wait_until(&format!("the plugin to be told {call}"), PATIENCE, async || {
            let lines = self.lines()?;
            let fits = |line: &&Line| {
                line["call"] == call && (name.is_empty() || line["container"] == name || line["pod"] == name)
            };
            lines.iter().rev().find(fits).cloned().with_context(|| format!("it was told {lines:#?}"))
        })
        .await
    }
}
