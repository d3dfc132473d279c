//! A registry with a busybox image, for `make demo` and for trying things by hand. Prints its address on the first line
//! of standard output, then serves until it is killed.

use std::io::Write;

use anyhow::Result;
use berth_tests::{image, registry::Registry};
use clap::Parser;

#[derive(Debug, Parser)]
#[command(about = "Serves a busybox image on a free loopback port")]
struct Arguments {
    /// Repository to serve it as.
    #[arg(long, default_value = "library/busybox")]
    repository: String,
    /// Tag to serve it as.
    #[arg(long, default_value = "latest")]
    tag: String,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let registry = Registry::start()?;
    registry.push(&arguments.repository, &arguments.tag, &image::busybox()?.build()?);
    println!("{}", registry.address());
    std::io::stdout().flush()?;
    loop {
        std::thread::park();
    }
}
