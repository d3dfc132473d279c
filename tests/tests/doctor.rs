//! `berth doctor` on this machine, and where something is taken from it.

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use berth_tests::{Options, node::Said, on_node_with};
use serde_json::Value;

/// What doctor says as data, by check.
fn findings(text: &str) -> Result<Vec<Value>> {
    let value: Value = serde_json::from_str(text).with_context(|| text.to_owned())?;
    Ok(value.as_array().context("no list")?.clone())
}

fn finding<'a>(all: &'a [Value], check: &str) -> Result<&'a Value> {
    all.iter().find(|one| one["check"] == check).with_context(|| format!("no check {check}"))
}

#[test]
fn this_machine_can_run_pods() {
    on_node_with(Options::without_images(), async |node| {
        let folders = [node.root().display().to_string(), node.state().display().to_string()];
        let arguments = ["doctor", "--root", &folders[0], "--state", &folders[1]];
        let Said { code, out, err } = node.berth(&[&arguments[..], &["-o", "json"]].concat()).await?;
        ensure!(code == 0, "{out}{err}");
        let all = findings(&out)?;
        for one in &all {
            let advised = one["means"].is_string() && one["mend"].is_string();
            ensure!(
                one["area"].is_string() && one["found"].is_string() && advised == (one["verdict"] != "ok"),
                "{one}"
            );
        }
        for check in ["namespaces", "controllers", "child cgroup", "overlay", "interfaces", "socket"] {
            ensure!(finding(&all, check)?["verdict"] != "fail", "{all:#?}");
        }
        ensure!(finding(&all, "socket")?["verdict"] == "ok", "the daemon answers: {all:#?}");
        let table = node.berth_ok(&arguments).await?;
        ensure!(table.contains("kernel\n  ok    version") && table.contains("0 failed"), "{table}");
        Ok(())
    });
}

/// Runs doctor in a shell whose mounts are its own, after some commands.
fn after(berth: &std::path::Path, commands: &str, root: &str) -> Result<Output> {
    let script = format!("{commands}; exec {} doctor --root {root} -o json", berth.display());
    Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().context("running unshare")
}

#[test]
fn what_is_missing_is_said_with_what_to_do() {
    on_node_with(Options::without_images(), async |node| {
        let berth = node.berth_command(&[])?.as_std().get_program().to_owned();
        let root = node.root().display().to_string();
        let run = |commands: &str| after(berth.as_ref(), commands, &root);
        let all = |output: &Output| findings(&String::from_utf8_lossy(&output.stdout));

        let hidden = run("mount -t tmpfs none /sys/fs/cgroup && umount -l /sys/fs/cgroup; \
            for at in $(awk '$3 ~ /^cgroup/ { print $2 }' /proc/mounts | sort -r); do umount -l $at; done")?;
        let found = all(&hidden)?;
        let controllers = finding(&found, "controllers")?;
        ensure!(hidden.status.code() == Some(1) && controllers["verdict"] == "fail", "{found:#?}");
        ensure!(
            controllers["mend"].as_str().is_some_and(|mend| mend.contains("mount -t cgroup2")),
            "{controllers}"
        );

        // What lies on an overlay can be no overlay's upper folder, on any kernel.
        let small = run(&format!("mount -t tmpfs -o size=1m none {root}"))?;
        let found = all(&small)?;
        ensure!(finding(&found, "free space")?["verdict"] == "warn", "{found:#?}");

        let drop = "setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin --";
        let output = Command::new("sh")
            .args([
                "-c",
                &format!("{drop} {} doctor --root {root} -o json", std::path::Path::new(&berth).display()),
            ])
            .output()?;
        let found = findings(&String::from_utf8_lossy(&output.stdout))?;
        let capabilities = finding(&found, "capabilities")?;
        ensure!(output.status.code() == Some(1) && capabilities["verdict"] == "fail", "{found:#?}");
        ensure!(
            capabilities["found"].as_str().is_some_and(|found| found.contains("SYS_ADMIN")),
            "{capabilities}"
        );
        ensure!(finding(&found, "namespaces")?["verdict"] == "fail", "{found:#?}");
        Ok(())
    });
}
