//! How long a launch takes and where the time goes: `cargo bench -p berth-launcher`.
#![allow(clippy::unwrap_used, reason = "a benchmark")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use berth_launcher::compile::compile;
use berth_launcher::container::{self, Console, PidEntry};
use berth_launcher::plan;
use common::*;

const ROUNDS: usize = 50;

fn main() {
    own_mount_table();
    let mut steps = Steps::default();
    let text = spec("exec sleep 1000");
    let spec = parse(&text);
    for _ in 0..ROUNDS {
        let root = busybox_root();
        let start = Instant::now();
        let cgroup = OwnCgroup::new();
        steps.add("cgroup made in every hierarchy", start);

        let start = Instant::now();
        let compiled = compile(&spec, input(&cgroup.0)).unwrap();
        steps.add("spec compiled", start);

        let plan = memfd(&compiled.plan);
        let rootfs = detached(root.path());
        let (stdio, streams) = streams();
        let whole = Instant::now();
        let start = Instant::now();
        let launched =
            container::create(plan.as_fd(), rootfs.as_fd(), None, Console::Pipes(stdio), PidEntry::New)
                .unwrap();
        steps.add("create: until it returns", start);
        drop(rootfs);
        let mut process = Running::new(launched, streams);
        process.ready().unwrap();
        steps.add("create: until ready", start);
        let start = Instant::now();
        process.launched.gate.open().unwrap();
        process.executed().unwrap();
        steps.add("open: until executed", start);
        steps.add("create and open", whole);

        let container = Container { process, spec: spec.clone(), cgroup, root };
        let start = Instant::now();
        let mut exec = container.exec_process(&true_process(&container), None);
        steps.add("exec: until it returns (compile included)", start);
        exec.ready().unwrap();
        exec.executed().unwrap();
        steps.add("exec: until executed", start);
        assert_eq!(exec.result().1, 0);
        steps.add("exec of true: until it has ended", start);
        drop(exec);

        let start = Instant::now();
        container.cgroup.0.remove().unwrap();
        steps.add("container killed, cgroup removed", start);
        drop(container);
    }
    let cgroup = OwnCgroup::new();
    let size = compile(&spec, input(&cgroup.0)).unwrap().plan.len();
    let header = plan::read_header(memfd(&compile(&spec, input(&cgroup.0)).unwrap().plan).as_fd()).unwrap();
    println!("{ROUNDS} rounds, milliseconds; a plan of {size} bytes, pid namespace {:?}", header.pid_mode());
    steps.print();
}

fn true_process(container: &Container) -> oci_spec::runtime::Process {
    let mut process = container.spec.process().clone().unwrap();
    process.set_args(Some(vec!["/bin/true".to_owned()]));
    process
}

#[derive(Default)]
struct Steps(Vec<(&'static str, Vec<Duration>)>);

impl Steps {
    fn add(&mut self, name: &'static str, start: Instant) {
        let took = start.elapsed();
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, times)) => times.push(took),
            None => self.0.push((name, vec![took])),
        }
    }

    fn print(&mut self) {
        println!("{:>8} {:>8} {:>8}", "p50", "p90", "max");
        for (name, times) in &mut self.0 {
            times.sort_unstable();
            let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1e3;
            println!("{:8.2} {:8.2} {:8.2}  {name}", at(50), at(90), at(100));
        }
    }
}
