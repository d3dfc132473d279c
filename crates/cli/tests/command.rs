//! What `berth` does without a daemon.

use std::process::{Command, Output};

fn berth(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    command.args(arguments).env_remove("BERTH_ADDRESS").output().expect("berth can be run")
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn it_says_what_to_do() {
    let output = berth(&["--address", "unix:///nowhere/berth.sock", "ps"]);
    let text = err(&output);
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert!(text.contains("/nowhere/berth.sock") && text.contains("--address"), "{text}");
    let output = berth(&["--address", "tcp://127.0.0.1:1", "ps"]);
    assert_eq!(output.status.code(), Some(2), "{}", err(&output));
    assert!(err(&output).contains("unix://"), "{}", err(&output));
    assert_eq!(berth(&["exec", "web"]).status.code(), Some(2), "a command is missing");
}

#[test]
fn it_documents_itself() {
    let help = String::from_utf8(berth(&["--help"]).stdout).expect("help is text");
    assert!(help.contains("Exit codes: 0 when it worked"), "{help}");
    let completions =
        String::from_utf8(berth(&["completions", "bash"]).stdout).expect("completions are text");
    assert!(completions.contains("complete -F _berth"), "{completions}");
    let folder = std::env::temp_dir().join(format!("berth-man-{}", std::process::id()));
    let path = folder.display().to_string();
    let pages = || {
        assert!(berth(&["man", &path]).status.success());
        std::fs::read_to_string(folder.join("berth-run.1")).expect("there is a page for run")
    };
    let (first, second) = (pages(), pages());
    std::fs::remove_dir_all(&folder).expect("the pages can be removed");
    assert!(first.contains(".TH") && first == second, "{first}");
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let command = format!("{} --help | true; exit ${{PIPESTATUS[0]}}", env!("CARGO_BIN_EXE_berth"));
    let output = Command::new("bash").args(["-c", &command]).output().expect("bash can be run");
    assert!(!err(&output).contains("panicked"), "{}", err(&output));
}
