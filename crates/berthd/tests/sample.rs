//! deploy/berth.toml: the sample has every key, and what it says of the defaults is true.

use std::path::Path;

use berthd::args::Flags;
use berthd::config::Config;

const SAMPLE: &str = include_str!("../../../deploy/berth.toml");

/// Where the systemd unit expects it.
const BINARY: &str = "/usr/local/bin/berthd";

fn parse(text: &str) -> Config {
    Config::parse(text, &Flags::default(), Path::new(BINARY)).expect("it has no faults")
}

/// The sample with its keys in force: prose has a blank after the `#`, a key has none.
fn uncommented() -> String {
    let lines = SAMPLE.lines().map(|line| match line.strip_prefix('#') {
        Some(key) if !key.is_empty() && !key.starts_with(' ') => key,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_sample_changes_nothing_and_its_commented_keys_are_the_defaults() {
    let defaults = parse("");
    assert_eq!(parse(SAMPLE), defaults);
    assert_eq!(parse(&uncommented()), defaults);
}

#[test]
fn the_sample_has_every_key_in_the_order_in_which_berthd_prints_them() {
    let keys = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        lines.map(|line| line.split(" = ").next().unwrap_or(line).to_owned()).collect()
    };
    assert_eq!(keys(&uncommented()), keys(&parse("").to_toml()));
}
