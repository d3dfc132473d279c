//! Kubelet's validation suite, critest, against a node of its own: prints what failed and what was skipped, why, and
//! the totals; fails when a spec that once passed does not, or when something is left over. `tests/critest/run` does so
//! on both versions of cgroups.

mod kept;
mod report;
mod transport;

use std::{
    env,
    ffi::OsString,
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use berth_tests::{Node, Options, host, image, program, tools};
use clap::Parser;

use self::{
    report::{Outcome, Spec},
    transport::Transport,
};

/// After its own limit, critest still writes its report.
const GRACE: Duration = Duration::from_secs(90);

/// Specs that cannot pass here, whatever the runtime does, and why.
const IMPOSSIBLE: [(&str, &str); 1] = [(
    "public image with digest should be pulled",
    "it pulls by a digest, and only the publisher's registry has an image of that digest",
)];

/// critest's own plugins hang for two seconds where a container that is made meanwhile must not be lost.
const NRI: &str = r#"[nri]
enabled = true
socket = "@DIR@/nri.sock"
plugin_dir = "@DIR@/nri-plugins"
request_timeout = "5s"
"#;

#[derive(Debug, Parser)]
#[command(about = "Runs critest against a daemon of its own")]
struct Arguments {
    /// Only specs whose name matches this regular expression; may be repeated.
    #[arg(long)]
    focus: Vec<String>,
    /// No specs whose name matches this regular expression; may be repeated.
    #[arg(long)]
    skip: Vec<String>,
    /// How exec, attach and port-forward go: all specs over SPDY, and those that stream over WebSocket too, unless told
    /// otherwise. May be repeated.
    #[arg(long, default_values = ["spdy", "websocket"])]
    transport: Vec<Transport>,
    /// The handler under test instead of the default one.
    #[arg(long, default_value = "")]
    runtime_handler: String,
    /// Minutes that the whole suite may take.
    #[arg(long, default_value_t = 30)]
    timeout: u64,
    /// Keep the list of what passed: what passed now must pass from now on.
    #[arg(long, conflicts_with_all = ["focus", "skip"])]
    bless: bool,
    /// Where to leave critest's output and report and the daemon's log.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Another critest than the one that tests/tools pins.
    #[arg(long, conflicts_with = "bless")]
    critest: Option<PathBuf>,
    /// Further flags for critest itself, after `--`.
    #[arg(last = true)]
    further: Vec<String>,
}

impl Arguments {
    /// The whole command line of critest.
    fn for_critest(&self, node: &Node, transport: Transport, report: &Path) -> Vec<String> {
        let endpoint = format!("unix://{}", node.socket().display());
        let mut flags = vec![
            format!("--runtime-endpoint={endpoint}"),
            format!("--image-endpoint={endpoint}"),
            format!("--runtime-handler={}", self.runtime_handler),
            format!("--ginkgo.json-report={}", report.display()),
            format!("--ginkgo.timeout={}m", self.timeout),
            "--ginkgo.no-color".to_owned(),
            format!("--nri-socket={}/nri.sock", node.dir().display()),
        ];
        flags.extend(transport.flags());
        let focus = self.focus.iter().map(String::as_str).chain(transport.specs());
        flags.extend(focus.map(|pattern| format!("--ginkgo.focus={pattern}")));
        flags.extend(self.skip.iter().map(|pattern| format!("--ginkgo.skip={pattern}")));
        flags.extend(self.further.iter().cloned());
        flags
    }

    /// Nothing keeps a spec of the list from running.
    fn runs_everything(&self) -> bool {
        self.focus.is_empty() && self.skip.is_empty()
    }
}

fn main() -> ExitCode {
    program::run("berth-critest", tokio::runtime::Builder::new_multi_thread(), test(&Arguments::parse()))
}

/// All of it; whether it is as it must be.
async fn test(arguments: &Arguments) -> Result<ExitCode> {
    let critest = match &arguments.critest {
        Some(file) => file.canonicalize().with_context(|| format!("finding {}", file.display()))?,
        None => tools::cri_with_critest()?.join("critest"),
    };
    if let Some(folder) = &arguments.output {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let node = Node::boot(Options { extra_config: NRI.to_owned(), ..Options::without_images() }).await?;
    image::critest::push(node.registry()).context("building critest's images")?;
    let outcome = run_all(&node, &critest, arguments).await;
    let clean = node.finish().await;
    if let Some(folder) = &arguments.output {
        fs::copy(node.dir().join("berthd.log"), folder.join("berthd.log"))
            .context("keeping the daemon's log")?;
    }
    drop(node);
    let good = outcome?;
    if let Err(error) = &clean {
        println!("\nAfter critest: {error:#}");
    }
    Ok(if good && clean.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// critest over each transport, and a table of what came out; whether that is as it must be.
async fn run_all(node: &Node, critest: &Path, arguments: &Arguments) -> Result<bool> {
    let mut good = true;
    let mut table = report::HEADING.to_owned();
    for transport in &arguments.transport {
        let title = format!("cgroup v{}, {transport}", host::cgroup_version());
        println!("\n== {title}");
        let specs = run(node, critest, *transport, arguments).await?;
        good &= judge(&specs, *transport, node, arguments)?;
        table.push_str(&report::row(&title, &specs));
    }
    println!("\n{table}");
    if let Some(folder) = &arguments.output {
        fs::write(folder.join("table"), table).context("keeping the table")?;
    }
    Ok(good)
}

/// Runs critest to its end; what its report says.
async fn run(node: &Node, critest: &Path, transport: Transport, arguments: &Arguments) -> Result<Vec<Spec>> {
    // Inside the node's folder, where what critest leaves mounted is seen and all it leaves is removed.
    let scratch = node.dir().join("critest");
    fs::create_dir_all(&scratch).context("making critest's folder")?;
    let output = match &arguments.output {
        Some(folder) => folder.canonicalize().context("finding the output folder")?,
        None => scratch.clone(),
    };
    let name = transport.to_string().to_lowercase();
    let report = output.join(format!("{name}.json"));
    let text = output.join(format!("{name}.log"));
    let log = File::create(&text).with_context(|| format!("creating {}", text.display()))?;
    println!("critest writes to {}", text.display());
    let mut child = tokio::process::Command::new(critest)
        .args(arguments.for_critest(node, transport, &report))
        .env("TMPDIR", &scratch)
        .env("PATH", path_with_sudo(&scratch)?)
        .current_dir(&scratch)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .context("starting critest")?;
    let limit = Duration::from_secs(arguments.timeout * 60) + GRACE;
    let status = tokio::time::timeout(limit, child.wait())
        .await
        .with_context(|| format!("critest was still running after {limit:?}"))??;
    // A failed spec is one status, a wrong flag another; the report tells them apart.
    let report = fs::read_to_string(&report).with_context(|| {
        let text = fs::read_to_string(&text).unwrap_or_default();
        format!("critest ended with {status} and without a report:\n{text}")
    })?;
    report::parse(&report)
}

/// The search path with a `sudo` in front: critest loads AppArmor profiles through it, which root has no need of.
fn path_with_sudo(folder: &Path) -> Result<OsString> {
    let programs = folder.join("bin");
    let sudo = programs.join("sudo");
    fs::create_dir_all(&programs).context("making a folder for sudo")?;
    fs::write(&sudo, "#!/bin/sh\nexec \"$@\"\n").context("writing sudo")?;
    fs::set_permissions(&sudo, Permissions::from_mode(0o755)).context("making sudo a program")?;
    let path = env::var_os("PATH").unwrap_or_default();
    env::join_paths([programs].into_iter().chain(env::split_paths(&path))).context("making a search path")
}

/// Prints what did not pass, and why; whether that is as it must be.
fn judge(specs: &[Spec], transport: Transport, node: &Node, arguments: &Arguments) -> Result<bool> {
    ensure!(!specs.is_empty(), "no spec was run");
    let without_user_namespaces = without_user_namespaces(node)?;
    for spec in specs {
        let impossible = IMPOSSIBLE.iter().find(|(name, _)| spec.name.contains(name));
        match (&spec.outcome, impossible) {
            (Outcome::Passed, _) => {}
            (Outcome::Skipped(why), _) if why.contains("supports user namespaces") => {
                let kernel = without_user_namespaces.as_deref().unwrap_or("berth says no reason");
                println!("skipped {}: {why}: {kernel}", spec.name);
            }
            (Outcome::Skipped(why), _) => println!("skipped {}: {why}", spec.name),
            (Outcome::Failed(_), Some((_, why))) => println!("failed  {}: {why}", spec.name),
            (Outcome::Failed(_), None) => {
                println!("FAILED  {}\n{}", spec.name, spec.outcome.indented_why());
            }
        }
    }
    let mut kept = kept::read()?;
    if arguments.bless && transport == Transport::Spdy {
        let file = kept::write(specs)?;
        println!("kept in {}", file.display());
        kept = kept::read()?;
    }
    kept.retain(|name| transport.specs().is_none_or(|part| name.contains(part)));
    let missed = kept::missed(&kept, specs, arguments.runs_everything());
    for name in &missed {
        println!("must pass and did not: {name}");
    }
    Ok(missed.is_empty())
}

/// What the daemon found this kernel to lack for pods' user namespaces. critest knows only that the runtime has none.
fn without_user_namespaces(node: &Node) -> Result<Option<String>> {
    let log = fs::read_to_string(node.dir().join("berthd.log")).context("reading the daemon's log")?;
    let line = log.lines().find(|line| line.contains("pods cannot have user namespaces"));
    Ok(line.and_then(|line| line.split_once("why=")).map(|(_, why)| why.trim_matches('"').to_owned()))
}
