//! The command line.

use std::path::PathBuf;

use berth_cri::berth::v1::PodRef;
use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::client::DEFAULT_ADDRESS;

/// Runs pods from Kubernetes manifests, and looks after them. There must be a berthd.
///
/// Exit codes: 0 when it worked, 1 when not, 2 for a wrong command line, 3 when there is no such pod or container, 4 when
/// no daemon answers. `exec` ends with its command's code, `run --wait` with the pod's.
#[derive(Debug, Parser)]
#[command(name = "berth", version, max_term_width = 100)]
pub(crate) struct Args {
    /// The daemon's socket.
    #[arg(long, global = true, env = "BERTH_ADDRESS", default_value = DEFAULT_ADDRESS)]
    pub(crate) address: String,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the pods of manifests
    Run(Run),
    /// List pods
    Ps(Ps),
    /// Show a pod whole
    Get(Get),
    /// Print what a container wrote
    Logs(Logs),
    /// Run a command in a container
    Exec(Exec),
    /// Attach to the main process of a container
    Attach(Attach),
    /// Add an ephemeral container to a pod, to look into it
    Debug(Debug),
    /// Add ephemeral containers from a manifest to a pod
    Ephemeral(Ephemeral),
    /// Forward local ports to a pod
    PortForward(PortForward),
    /// Stop pods
    Stop(Stop),
    /// Remove pods, with their logs and volumes
    Rm(Rm),
    /// Print what happened to pods
    Events(Events),
    /// Show what pods use
    Top(Top),
    /// Show what a pod waited for while it started
    Timeline(Timeline),
    /// Look after images
    #[command(subcommand)]
    Image(Image),
    /// Check whether pods can run on this machine, and say how to mend what is missing
    Doctor(Doctor),
    /// Print a shell's completions
    Completions(Completions),
    /// Write man pages to a folder
    Man(Man),
}

/// Which pod.
#[derive(Debug, clap::Args)]
pub(crate) struct PodArg {
    /// NAME, or NAMESPACE/NAME
    pub(crate) pod: String,
    /// The pod's namespace
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
}

/// Which pods.
#[derive(Debug, clap::Args)]
pub(crate) struct PodsArg {
    /// NAME, or NAMESPACE/NAME
    #[arg(required = true)]
    pub(crate) pods: Vec<String>,
    /// The pods' namespace
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
}

/// Which pod, if not all.
#[derive(Debug, clap::Args)]
pub(crate) struct PodOrAllArg {
    /// NAME, or NAMESPACE/NAME; all pods without this
    pub(crate) pod: Option<String>,
}

/// Which container.
#[derive(Debug, clap::Args)]
pub(crate) struct ContainerArg {
    /// Which container; the first one of the pod's own without this
    #[arg(short, long, default_value = "")]
    pub(crate) container: String,
}

/// How to leave.
#[derive(Debug, clap::Args)]
pub(crate) struct DetachArg {
    /// Keys that leave the container to itself
    #[arg(long, default_value = "ctrl-p,ctrl-q")]
    pub(crate) detach_keys: String,
}

impl PodArg {
    pub(crate) fn reference(&self) -> PodRef {
        reference(&self.pod, &self.namespace)
    }
}

impl PodsArg {
    pub(crate) fn references(&self) -> impl Iterator<Item = PodRef> + '_ {
        self.pods.iter().map(|pod| reference(pod, &self.namespace))
    }
}

impl PodOrAllArg {
    pub(crate) fn reference(&self) -> Option<PodRef> {
        self.pod.as_deref().map(|pod| reference(pod, "default"))
    }
}

/// `NAME`, or `NAMESPACE/NAME`.
pub(crate) fn reference(text: &str, namespace: &str) -> PodRef {
    let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
    PodRef { namespace: namespace.to_owned(), name: name.to_owned() }
}

/// As what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
    Yaml,
}

/// For commands that print data.
#[derive(Debug, clap::Args)]
pub(crate) struct Output {
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    /// Manifests: YAML or JSON; - is standard input
    #[arg(required_unless_present = "filename")]
    pub(crate) files: Vec<PathBuf>,
    /// The same, as kubectl has it
    #[arg(short, long)]
    pub(crate) filename: Vec<PathBuf>,
    /// Return as soon as the pods are taken
    #[arg(short, long, conflicts_with = "wait")]
    pub(crate) detach: bool,
    /// Go on until the pods have ended; the exit code is that of the first container that failed
    #[arg(short, long)]
    pub(crate) wait: bool,
    /// Fields that mean nothing here are warnings
    #[arg(long)]
    pub(crate) lenient: bool,
    /// Say what is wrong with the manifests, run nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Ps {
    /// Of this namespace only
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Get {
    #[command(flatten)]
    pub(crate) pod: PodArg,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Logs {
    #[command(flatten)]
    pub(crate) pod: PodArg,
    #[command(flatten)]
    pub(crate) container: ContainerArg,
    /// Go on until the container has ended for good
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only the last lines
    #[arg(long)]
    pub(crate) tail: Option<u64>,
    /// Only lines of this last time: 10s, 5m, 2h
    #[arg(long)]
    pub(crate) since: Option<humantime::Duration>,
    /// Of the attempt before the present one
    #[arg(short, long)]
    pub(crate) previous: bool,
    /// With the time of each line
    #[arg(long)]
    pub(crate) timestamps: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Exec {
    #[command(flatten)]
    pub(crate) pod: PodArg,
    #[command(flatten)]
    pub(crate) container: ContainerArg,
    /// Pass standard input
    #[arg(short = 'i', long)]
    pub(crate) stdin: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// The command
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Attach {
    #[command(flatten)]
    pub(crate) pod: PodArg,
    #[command(flatten)]
    pub(crate) container: ContainerArg,
    /// Pass standard input
    #[arg(short = 'i', long)]
    pub(crate) stdin: bool,
    #[command(flatten)]
    pub(crate) detach: DetachArg,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Debug {
    #[command(flatten)]
    pub(crate) pod: PodArg,
    /// The image with the tools
    #[arg(long)]
    pub(crate) image: String,
    /// Whose processes to see; its files are in /proc/1/root, and in /target when it does not run
    #[arg(long)]
    pub(crate) target: Option<String>,
    /// Name of the new container; made up without this
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Pass standard input
    #[arg(short = 'i', long)]
    pub(crate) stdin: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    #[command(flatten)]
    pub(crate) detach: DetachArg,
    /// What to run in it; the image's own command without this
    #[arg(last = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Ephemeral {
    /// NAME, or NAMESPACE/NAME; the one that the manifest names without this
    pub(crate) pod: Option<String>,
    /// A document of the kind EphemeralContainers; - is standard input
    #[arg(short, long)]
    pub(crate) filename: PathBuf,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct PortForward {
    #[command(flatten)]
    pub(crate) pod: PodArg,
    /// LOCAL:REMOTE, or one number for both; a local 0 is any free port
    #[arg(required = true)]
    pub(crate) ports: Vec<String>,
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) listen: std::net::IpAddr,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Stop {
    #[command(flatten)]
    pub(crate) pods: PodsArg,
    /// Seconds, in place of the manifest's terminationGracePeriodSeconds
    #[arg(short, long)]
    pub(crate) grace: Option<u32>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Rm {
    #[command(flatten)]
    pub(crate) pods: PodsArg,
    /// Stop them first
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Events {
    #[command(flatten)]
    pub(crate) pod: PodOrAllArg,
    /// Go on with what is to come
    #[arg(short, long)]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Top {
    #[command(flatten)]
    pub(crate) pod: PodOrAllArg,
    /// Show it again every two seconds
    #[arg(short, long)]
    pub(crate) watch: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Timeline {
    #[command(flatten)]
    pub(crate) pod: PodArg,
    /// Write it as a picture
    #[arg(long)]
    pub(crate) svg: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Pull an image
    Pull(Pull),
    /// Say where an image would be pulled from and on whose word, having asked each endpoint
    Explain(Pull),
    /// List images
    Ls(Output),
    /// Remove images
    Rm {
        /// A name, an id, or the beginning of one
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Take in the images of an archive: an OCI layout or what `docker save` writes
    Load {
        /// The archive; - is standard input
        #[arg(short, long, default_value = "-")]
        input: PathBuf,
        /// For an image that has no name in the archive
        #[arg(long, default_value = "")]
        name: String,
        #[command(flatten)]
        output: Output,
    },
    /// Write images to an archive, an OCI layout that docker reads as well
    Save {
        /// The archive; - is standard output
        #[arg(short, long, default_value = "-")]
        output: PathBuf,
        /// Names or ids
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Remove the images that no container and no pod uses
    Prune {
        /// Say what would go, remove nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Pull {
    /// As in nginx, or registry.example/team/app:1
    pub(crate) image: String,
    /// Read USER:PASSWORD from standard input
    #[arg(long)]
    pub(crate) creds_stdin: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Doctor {
    /// The daemon's folder for what survives a reboot
    #[arg(long, default_value = "/var/lib/berth")]
    pub(crate) root: PathBuf,
    /// The daemon's folder for what does not
    #[arg(long, default_value = "/run/berth")]
    pub(crate) state: PathBuf,
    /// Fail with warnings, too
    #[arg(long)]
    pub(crate) strict: bool,
    /// Be one of the trials
    #[arg(long, hide = true)]
    pub(crate) probe: Option<String>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Completions {
    pub(crate) shell: Shell,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Man {
    #[arg(default_value = ".")]
    pub(crate) folder: PathBuf,
}
