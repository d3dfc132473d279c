//! Container logs as kubelet reads them.

use std::{fs, os::unix::fs::MetadataExt};

use anyhow::ensure;
use berth_tests::{
    PATIENCE,
    cri::{container, script},
    host, on_node, wait_until,
};

#[test]
fn lines_carry_time_stream_and_tag_and_are_complete_at_exit() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(script("main", "echo one; echo; echo two; printf unfinished")).await?;
        container.wait_exited().await?;
        // Read after EXITED was seen: nothing may come later.
        let lines = container.log()?;
        let seen: Vec<(&str, bool)> = lines.iter().map(|line| (line.content.as_str(), line.full)).collect();
        assert_eq!(seen, [("one", true), ("", true), ("two", true), ("unfinished", false)]);
        ensure!(lines.iter().all(|line| line.stream == "stdout"));
        ensure!(lines.windows(2).all(|pair| pair[0].time <= pair[1].time), "{lines:?}");
        Ok(())
    });
}

#[test]
fn both_streams_are_in_one_file() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(script("main", "echo out; echo err >&2")).await?;
        container.wait_exited().await?;
        let mut seen: Vec<(String, String)> =
            container.log()?.into_iter().map(|line| (line.stream, line.content)).collect();
        seen.sort();
        assert_eq!(seen, [("stderr", "err"), ("stdout", "out")].map(|(a, b)| (a.to_owned(), b.to_owned())));
        Ok(())
    });
}

#[test]
fn long_lines_are_cut_into_partial_entries_that_join_up_again() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let text = "i=0; while [ $i -lt 5000 ]; do printf 0123456789; i=$((i+1)); done; echo; echo after";
        let container = pod.run(script("main", text)).await?;
        container.wait_exited().await?;
        let lines = container.log()?;
        let (last, parts) = lines.split_last().ok_or_else(|| anyhow::anyhow!("no lines"))?;
        ensure!(last.content == "after" && last.full);
        let (end, partial) = parts.split_last().ok_or_else(|| anyhow::anyhow!("no parts"))?;
        ensure!(end.full && !partial.is_empty() && partial.iter().all(|part| !part.full));
        ensure!(parts.iter().all(|part| part.content.len() <= 16384));
        let joined: String = parts.iter().map(|part| part.content.as_str()).collect();
        ensure!(joined == "0123456789".repeat(5000), "{} bytes", joined.len());
        Ok(())
    });
}

#[test]
fn a_flood_is_logged_whole() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(container("main", &["seq", "1", "200000"])).await?;
        container.wait_exited().await?;
        let lines = container.log()?;
        ensure!(lines.len() == 200_000, "{} lines", lines.len());
        let wrong = lines.iter().enumerate().find(|(at, line)| line.content != (at + 1).to_string());
        ensure!(wrong.is_none(), "{wrong:?}");
        Ok(())
    });
}

#[test]
fn reopen_switches_to_a_new_file_at_the_same_path() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let text = "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done";
        let container = pod.run(script("main", text)).await?;
        container.wait_log(3).await?;
        let rotated = container.log_path.with_extension("log.rotated");
        fs::rename(&container.log_path, &rotated)?;
        container.reopen_log().await?;
        let kept = fs::read_to_string(&rotated)?;
        ensure!(fs::metadata(&container.log_path)?.mode() & 0o777 == 0o640);
        let fresh = container.wait_log(3).await?;
        ensure!(fs::read_to_string(&rotated)? == kept, "a line went to the old file");
        // Together they are the whole sequence: nothing lost, nothing split, nothing twice.
        let first: usize = kept.lines().count();
        ensure!(fresh[0].content == format!("line {first}"), "{} lines before {:?}", first, fresh[0]);
        Ok(())
    });
}

#[test]
fn reopen_makes_a_file_that_somebody_removed() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let container = pod.run(script("main", "while :; do echo x; sleep 0.01; done")).await?;
        container.wait_log(1).await?;
        fs::remove_file(&container.log_path)?;
        container.reopen_log().await?;
        container.wait_log(1).await?;
        container.stop(0).await?;
        ensure!(container.reopen_log().await.is_err(), "the log of an exited container was reopened");
        Ok(())
    });
}

#[test]
fn without_a_log_path_nothing_is_written_and_the_container_runs() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let mut config = script("main", "seq 1 100000; exit 4");
        config.log_path = String::new();
        let container = pod.run(config).await?;
        let status = container.wait_exited().await?;
        ensure!(status.exit_code == 4 && status.log_path.is_empty(), "{status:?}");
        Ok(())
    });
}

#[test]
fn tty_output_is_one_stream_with_carriage_returns() {
    on_node(async |node| {
        let pod = node.run_pod(node.pod("web")).await?;
        let mut config = script("main", "echo out; echo err >&2; test -t 1 && echo tty");
        config.tty = true;
        let container = pod.run(config).await?;
        container.wait_exited().await?;
        let lines = container.log()?;
        ensure!(lines.iter().all(|line| line.stream == "stdout"), "{lines:?}");
        let seen: Vec<&str> = lines.iter().map(|line| line.content.as_str()).collect();
        assert_eq!(seen, ["out\r", "err\r", "tty\r"]);
        Ok(())
    });
}

#[test]
fn a_full_disk_drops_lines_with_a_count_and_the_container_goes_on() {
    on_node(async |node| {
        let logs = node.dir().join("small-disk");
        let mut config = node.pod("web");
        config.log_directory = logs.display().to_string();
        host::with_tmpfs(&logs, "size=64k", async || {
            let pod = node.run_pod(config).await?;
            let text = "i=0; while [ $i -lt 20000 ]; do echo line number $i; i=$((i+1)); done; touch /done; \
                        while :; do sleep 0.05; echo later; done";
            let container = pod.run(script("main", text)).await?;
            container.wait_file("/done").await?;
            // Room again: what follows is written, after a note of how much is missing.
            fs::remove_file(&container.log_path)?;
            container.reopen_log().await?;
            wait_until("a line after the loss", PATIENCE, async || {
                let lines = container.log()?;
                ensure!(lines.iter().any(|line| line.content == "later"), "{lines:?}");
                let noted = lines
                    .iter()
                    .any(|line| line.content.contains("lost") || line.content.contains("dropped"));
                ensure!(noted, "no note of the loss: {lines:?}");
                Ok(())
            })
            .await?;
            pod.stop().await?;
            pod.remove().await
        })
        .await
    });
}
