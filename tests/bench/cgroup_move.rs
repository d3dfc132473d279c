//! What it costs to move a process between two cgroups: every container's first process and, where cgroup v1 limits
//! processes, every exec'd one has to get into the container's.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use berth_tests::{host, remove_cgroup};

use crate::samples::Samples;

const MOVES: usize = 40;

/// Between two moves: the kernel keeps what the first one waited for in place for a moment, and moves in a row would
/// profit from it as no container's start does.
const PAUSE: Duration = Duration::from_millis(40);

/// Moves through all hierarchies that processes are limited by.
#[derive(Debug)]
pub(crate) struct Moves {
    pub(crate) version: u8,
    pub(crate) hierarchies: usize,
    /// By a process's id, written to `cgroup.procs`.
    pub(crate) by_id: Samples,
    /// Of a thread by itself, through `tasks`, which only v1 has.
    pub(crate) by_itself: Option<Samples>,
}

pub(crate) fn measure() -> Result<Moves> {
    let places = [Place::make("a")?, Place::make("b")?];
    let version = host::cgroup_version();
    Ok(Moves {
        version,
        hierarchies: places[0].folders.len(),
        by_id: by_id(&places)?,
        by_itself: (version == 1).then(|| by_itself(&places)).transpose()?,
    })
}

/// As most runtimes do it: from outside, with all the process's threads.
fn by_id(places: &[Place; 2]) -> Result<Samples> {
    let process = Bystander::start()?;
    let id = process.0.id().to_string();
    (0..MOVES)
        .map(|turn| {
            thread::sleep(PAUSE);
            let started = Instant::now();
            places[turn % 2].write("cgroup.procs", &id)?;
            Ok(started.elapsed())
        })
        .collect()
}

/// As berth's launcher does it on v1: a new process, which has one thread, moves that.
fn by_itself(places: &[Place; 2]) -> Result<Samples> {
    (0..MOVES)
        .map(|turn| {
            thread::sleep(PAUSE);
            thread::scope(|scope| {
                let mover = scope.spawn(|| {
                    let started = Instant::now();
                    places[turn % 2].write("tasks", "0")?;
                    Ok(started.elapsed())
                });
                mover.join().expect("writing to a file does not panic")
            })
        })
        .collect()
}

/// A process that does nothing.
struct Bystander(Child);

impl Bystander {
    fn start() -> Result<Bystander> {
        let child = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().context("running sleep")?;
        Ok(Bystander(child))
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        // Neither fails for a child that nobody else waits for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One cgroup in every hierarchy; removed when dropped.
struct Place {
    folders: Vec<PathBuf>,
}

impl Place {
    fn make(name: &str) -> Result<Place> {
        let limiting = |controller: &str| controller.is_empty() == (host::cgroup_version() == 2);
        let mut roots: Vec<PathBuf> = host::cgroup_hierarchies()?
            .into_iter()
            .filter(|(controller, _)| limiting(controller))
            .map(|(_, root)| root)
            .collect();
        // Controllers may share a hierarchy.
        roots.sort();
        roots.dedup();
        let mut place = Place { folders: Vec::new() };
        for root in roots {
            let folder = root.join(format!("berth-bench-{}-{name}", std::process::id()));
            fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
            inherit_cpuset(&root, &folder)?;
            place.folders.push(folder);
        }
        Ok(place)
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        for folder in &self.folders {
            let path = folder.join(file);
            fs::write(&path, value).with_context(|| format!("writing {value} to {}", path.display()))?;
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for folder in &self.folders {
            if let Err(error) = remove_cgroup(folder) {
                eprintln!("berth-bench: {error:#}");
            }
        }
    }
}

/// v1's cpuset takes no process before it has CPUs and memory nodes.
fn inherit_cpuset(root: &Path, folder: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        match fs::read_to_string(root.join(file)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            all => fs::write(folder.join(file), all?.trim())
                .with_context(|| format!("filling {file} of {}", folder.display()))?,
        }
    }
    Ok(())
}
