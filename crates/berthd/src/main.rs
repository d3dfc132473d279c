//! Assembles the daemon: command line, configuration, log, runtime, exit code. All else is in the library.

use std::env;
use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use berthd::args::{Args, Command};
use berthd::config::Config;
use berthd::error::Chain;
use berthd::notify::Notifier;
use berthd::{app, signal, sys, telemetry};
use clap::Parser;
use nix::sys::stat::{Mode, umask};

// sysexits.h
const EX_USAGE: u8 = 64;
const EX_SOFTWARE: u8 = 70;
const EX_CONFIG: u8 = 78;

/// How long blocking work (a mount, an fsync) may hold up the end of the process.
const LAST_WAIT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    sys::return_memory();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let code = if error.use_stderr() { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS };
            // Help that nobody can read any more is no failure.
            let _ = error.print();
            return code;
        }
    };
    let binary = match env::current_exe() {
        Ok(binary) => binary,
        Err(error) => return report(EX_SOFTWARE, &error),
    };
    let config = match Config::load(&args.flags, &binary) {
        Ok(config) => config,
        Err(error) => return report(EX_CONFIG, &error),
    };
    match args.command {
        Some(Command::Config) => {
            print!("{}", config.to_toml());
            ExitCode::SUCCESS
        }
        None => serve(config),
    }
}

fn serve(config: Config) -> ExitCode {
    telemetry::init(&config.log);
    // What containers read (their /etc/hosts, their folders) must not depend on the shell that started us.
    umask(Mode::from_bits_truncate(0o022));

    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("berthd").build()
    {
        Ok(runtime) => runtime,
        Err(error) => return report(EX_SOFTWARE, &error),
    };
    let ended = runtime.block_on(async {
        let shutdown = signal::shutdown()?;
        app::run(config, Notifier::from_env(), shutdown).await
    });
    runtime.shutdown_timeout(LAST_WAIT);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(EX_SOFTWARE, &error),
    }
}

fn report(code: u8, error: &(dyn Error + 'static)) -> ExitCode {
    eprintln!("berthd: {}", Chain(error));
    ExitCode::from(code)
}
