//! `berth`: pods, their containers and their images, for people.
//!
//! Owns the command line, what is printed, and the terminal. All it knows of pods it asks berthd; it starts nothing and
//! keeps nothing.

mod args;
mod client;
mod control;
mod docs;
mod doctor;
mod ephemeral;
mod error;
mod events;
mod get;
mod image;
mod logs;
mod output;
mod ps;
mod run;
mod stream;
mod sys;
mod timeline;
mod top;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Command};
use crate::client::Client;
use crate::error::Error;

fn main() -> ExitCode {
    sys::end_with_a_closed_pipe();
    let args = Args::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("berth: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(dispatch(args));
    // A thread that still reads the terminal is not waited for.
    runtime.shutdown_background();
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("berth: {error}");
            if let Some(hint) = error.hint() {
                eprintln!("       {hint}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

/// The exit code.
async fn dispatch(args: Args) -> Result<u8, Error> {
    let client = Client::new(&args.address)?;
    match args.command {
        Command::Run(args) => run::run(client, args).await,
        Command::Ps(args) => ps::ps(client, args).await,
        Command::Get(args) => get::get(client, args).await,
        Command::Logs(args) => logs::logs(client, args).await,
        Command::Exec(args) => stream::exec(client, args).await,
        Command::Attach(args) => stream::attach(client, args).await,
        Command::Debug(args) => ephemeral::debug(client, args).await,
        Command::Ephemeral(args) => ephemeral::add(client, args).await,
        Command::PortForward(args) => stream::forward::port_forward(client, args).await,
        Command::Stop(args) => control::stop(client, args).await,
        Command::Rm(args) => control::rm(client, args).await,
        Command::Events(args) => events::events(client, args).await,
        Command::Top(args) => top::top(client, args).await,
        Command::Timeline(args) => timeline::timeline(client, args).await,
        Command::Image(args) => image::image(client, args).await,
        Command::Doctor(args) => doctor::doctor(client, args).await,
        Command::Completions(args) => docs::completions(args),
        Command::Man(args) => docs::man(args),
    }
}
