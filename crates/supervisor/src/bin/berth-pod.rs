//! `berth-pod <sandbox id> <pod directory>`: a pod's supervisor. Started by the daemon, with its control socket as
//! descriptor 3 and a first connection as descriptor 4. The id is there for whoever looks at a list of processes.

use std::path::Path;
use std::process::ExitCode;

use berth_supervisor::pod::{Inheritance, Pod};

/// The command line is not one that the daemon makes.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(_sandbox_id), Some(dir), None) = (arguments.next(), arguments.next(), arguments.next()) else {
        eprintln!("berth-pod is started by berthd: berth-pod <sandbox id> <pod directory>");
        return ExitCode::from(USAGE);
    };
    let inheritance = match Inheritance::take() {
        Ok(inheritance) => inheritance,
        Err(error) => {
            eprintln!("berth-pod is started by berthd, with its sockets as descriptors 3 and 4: {error}");
            return ExitCode::from(USAGE);
        }
    };
    match Pod::new(Path::new(&dir), inheritance).and_then(Pod::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth-pod: {error}");
            ExitCode::FAILURE
        }
    }
}
