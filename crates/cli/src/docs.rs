//! `berth completions`, `berth man`: from the command line's own description.

use clap::CommandFactory as _;

use crate::args::{Args, Completions, Man};
use crate::error::Error;

pub(crate) fn completions(args: Completions) -> Result<u8, Error> {
    clap_complete::generate(args.shell, &mut Args::command(), "berth", &mut std::io::stdout());
    Ok(0)
}

/// berth.1, and one for each subcommand.
pub(crate) fn man(args: Man) -> Result<u8, Error> {
    std::fs::create_dir_all(&args.folder).map_err(Error::file("make", &args.folder))?;
    clap_mangen::generate_to(Args::command(), &args.folder).map_err(Error::file("write to", &args.folder))?;
    Ok(0)
}
