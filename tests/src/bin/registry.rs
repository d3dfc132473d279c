//! A registry with the images of tests/manifests, for `make demo` and for trying things by hand. Prints its address on
//! the first line of standard output, then serves until it is killed.

use std::io::Write;

use anyhow::{Context, Result};
use berth_tests::{image, registry::Registry};
use clap::Parser;

#[derive(Debug, Parser)]
#[command(about = "Serves the images of tests/manifests on a free loopback port")]
struct Arguments {
    /// Repository to serve busybox as, as well.
    #[arg(long, default_value = "library/busybox")]
    repository: String,
    /// Tag to serve it as.
    #[arg(long, default_value = "latest")]
    tag: String,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let registry = Registry::start()?;
    let own = std::env::current_exe().context("finding this program's own binary")?;
    image::manifests::push(&registry, own.parent().context("a binary lies in a folder")?)?;
    registry.push(&arguments.repository, &arguments.tag, &image::busybox()?.build()?);
    println!("{}", registry.address());
    std::io::stdout().flush()?;
    loop {
        std::thread::park();
    }
}
