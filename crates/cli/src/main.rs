//! `berth`: pods, their containers and images, for people.

mod client;

use clap::Parser;

/// Runs pods and looks after them.
#[derive(Debug, Parser)]
#[command(name = "berth", version)]
struct Args {
    /// The daemon's socket.
    #[arg(long, global = true, env = "BERTH_ADDRESS", default_value = client::DEFAULT_ADDRESS)]
    address: String,
}

fn main() {
    let args = Args::parse();
    println!("{}", args.address);
}
