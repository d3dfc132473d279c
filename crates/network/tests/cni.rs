//! CNI, with Debian's plugins and with one of the test's own.
#![allow(clippy::unwrap_used, reason = "a test's helper may panic as well as the test")]

mod common;

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use berth_network::{AttachError, Mode, Network, NetworkStatus, Protocol};
use common::*;
use serde_json::{Value, json};

fn configure(host: &Host, file: &str, content: &Value) {
    fs::create_dir_all(&host.config.cni_conf_dir).unwrap();
    // Written aside and moved in, as installers do.
    let aside = host.path().join(file);
    fs::write(&aside, content.to_string()).unwrap();
    fs::rename(aside, host.config.cni_conf_dir.join(file)).unwrap();
}

/// bridge + host-local + portmap; what host-local keeps lies in the test's folder.
fn debian(host: &Host) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "debian",
        "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipam": {
                "type": "host-local", "dataDir": host.path().join("ipam"),
                "ranges": [[{"subnet": "10.86.0.0/24"}], [{"subnet": "fd00:86::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            }},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

fn addresses_held(host: &Host) -> usize {
    let entries = fs::read_dir(host.path().join("ipam/debian")).unwrap();
    entries.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("10.86")).count()
}

fn pins(host: &Host) -> Vec<String> {
    let Ok(entries) = fs::read_dir(host.config.state.join("netns")) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

async fn until(network: &Network, wanted: impl Fn(&NetworkStatus) -> bool) -> NetworkStatus {
    let waited = tokio::time::timeout(PATIENCE, network.status_until(wanted)).await;
    waited.unwrap_or_else(|_| panic!("the status stays {:?}", network.status()))
}

/// A plugin that writes down how it was called, and answers what `answers/VERB` says (and fails when `fail/VERB` is
/// there).
struct Fake {
    log: PathBuf,
    dir: PathBuf,
}

impl Fake {
    fn install(host: &mut Host) -> Self {
        let dir = host.path().join("fake");
        for folder in ["answers", "fail", "bin"] {
            fs::create_dir_all(dir.join(folder)).unwrap();
        }
        let fake = Self { log: dir.join("log"), dir };
        let here = fake.dir.display();
        fake.write_plugin(&format!(
            "#!/bin/sh\n\
             input=$(cat)\n\
             echo \"$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS $CNI_ARGS $input\" >> {here}/log\n\
             [ -e {here}/fail/$CNI_COMMAND ] && cat {here}/fail/$CNI_COMMAND && exit 1\n\
             cat {here}/answers/$CNI_COMMAND 2>/dev/null || true\n"
        ));
        fake.answer("VERSION", &json!({"cniVersion": "1.1.0", "supportedVersions": ["0.4.0", "1.1.0"]}));
        fake.answer("ADD", &json!({"cniVersion": "1.1.0", "ips": [{"address": "10.9.9.9/24"}]}));
        host.config.cni_bin_dirs.insert(0, fake.dir.join("bin"));
        fake
    }

    fn write_plugin(&self, script: &str) {
        let path = self.dir.join("bin/fake");
        fs::write(&path, script).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn answer(&self, verb: &str, answer: &Value) {
        fs::write(self.dir.join("answers").join(verb), answer.to_string()).unwrap();
    }

    fn fail(&self, verb: &str, message: &str) {
        let error = json!({"code": 50, "msg": message});
        fs::write(self.dir.join("fail").join(verb), error.to_string()).unwrap();
    }

    fn recover(&self, verb: &str) {
        fs::remove_file(self.dir.join("fail").join(verb)).unwrap();
    }

    /// Verb, sandbox and interface of each call but VERSION and STATUS; with the last one's whole line.
    fn calls(&self) -> (Vec<String>, String) {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let counted =
            |line: &&str| !line.is_empty() && !line.starts_with("VERSION") && !line.starts_with("STATUS");
        let lines: Vec<&str> = text.lines().filter(counted).collect();
        let short = lines.iter().map(|line| line.split(' ').take(3).collect::<Vec<_>>().join(" ")).collect();
        (short, lines.last().map(ToString::to_string).unwrap_or_default())
    }
}

fn fake_list(version: &str) -> Value {
    json!({"cniVersion": version, "name": "fake-net", "plugins": [
        {"type": "fake", "number": 1, "capabilities": {"portMappings": true}},
        {"type": "fake", "number": 2},
    ]})
}

#[test]
fn debians_plugins_attach_check_and_detach_a_pod() {
    on_a_host(|| async {
        let host = Host::new();
        configure(&host, "10-debian.conflist", &debian(&host));
        let network = host.network().await;
        assert_eq!(network.status().mode, Mode::Cni { name: "debian".to_owned() });
        assert!(network.status().ready, "{:?}", network.status());
        let web = pod(&network, "web", vec![port(Protocol::Tcp, "", 8080, 80)]).await;
        assert_eq!(web.v4(), ip("10.86.0.2"));
        assert_eq!(web.v6(), ip("fd00:86::2"));
        assert!(inside(&web.netns, || sh("ip -o addr show dev lo")).contains("127.0.0.1/8"));
        let _server = Server::start(&web.netns, 80);
        tcp(web.v4(), 80).unwrap();
        tcp(ip("127.0.0.1"), 8080).unwrap();
        // Debian's portmap looks for rules of IPv4 in the chains of IPv6 when it checks, so a pod without ports.
        let plain = pod(&network, "plain", vec![]).await;
        network.check("plain").await.unwrap();
        inside(&plain.netns, || sh("ip addr flush dev eth0"));
        let err = network.check("plain").await.unwrap_err();
        assert!(chain(&err).contains("refused CHECK"), "{}", chain(&err));
        network.detach("plain").await.unwrap();

        assert_eq!((addresses_held(&host), pins(&host)), (1, vec!["web".to_owned()]));
        network.detach("web").await.unwrap();
        network.detach("web").await.unwrap();
        assert_eq!((addresses_held(&host), pins(&host)), (0, vec![]));
        assert!(!sh("ip -o link").contains("veth"));
        assert!(!sh("iptables-save").contains("8080"));
    });
}

#[test]
fn a_namespace_that_is_gone_is_no_reason_to_fail_del() {
    on_a_host(|| async {
        let host = Host::new();
        configure(&host, "10-debian.conflist", &debian(&host));
        let network = host.network().await;
        let gone = pod(&network, "gone", vec![port(Protocol::Tcp, "", 8080, 80)]).await;
        // As after a reboot: the state folder is empty, the records and the plugins' files are not.
        drop(gone.netns);
        sh(&format!("umount {0}; rm -r {0}", host.config.state.join("netns/gone").display()));
        drop(network);
        let network = host.network().await;
        network.sweep(&HashSet::new()).await.unwrap();
        assert_eq!((addresses_held(&host), pins(&host)), (0, vec![]));
    });
}

#[test]
fn the_folder_is_watched_and_faults_are_told() {
    on_a_host(|| async {
        let mut host = Host::new();
        let fake = Fake::install(&mut host);
        let bin = host.path().join("late/bin");
        host.config.cni_bin_dirs.push(bin.clone());
        let network = host.network().await;
        assert_eq!(network.status().mode, Mode::BuiltIn, "the folder does not exist yet");

        fs::create_dir_all(&host.config.cni_conf_dir).unwrap();
        fs::write(host.config.cni_conf_dir.join("10-bad.conflist"), "{").unwrap();
        let status = until(&network, |status| !status.ready).await;
        assert_eq!(status.reason, "NetworkPluginNotReady");
        assert!(status.message.contains("10-bad.conflist is not JSON"), "{}", status.message);
        let err = try_pod(&network, "early", vec![]).await.unwrap_err();
        assert!(
            matches!(&err, AttachError::NotReady { .. }) && chain(&err).contains("10-bad"),
            "{}",
            chain(&err)
        );

        configure(&host, "20-good.conflist", &fake_list("1.1.0"));
        until(&network, |status| status.mode == Mode::Cni { name: "fake-net".to_owned() } && status.ready)
            .await;

        configure(
            &host,
            "05-late.conflist",
            &json!({"cniVersion": "1.1.0", "name": "late", "type": "latecomer"}),
        );
        // A `.conflist` with one plugin at its top is taken for what it means.
        let status = until(&network, |status| !status.ready).await;
        assert!(status.message.contains("CNI plugin latecomer is not in"), "{}", status.message);
        fs::create_dir_all(&bin).unwrap();
        fs::copy(fake.dir.join("bin/fake"), bin.join("latecomer")).unwrap();
        until(&network, |status| status.ready).await;

        fs::remove_file(host.config.cni_conf_dir.join("05-late.conflist")).unwrap();
        configure(&host, "10-bad.conflist", &fake_list("0.3.1"));
        let status = until(&network, |status| !status.ready).await;
        assert!(status.message.contains("plugin fake does not speak cniVersion 0.3.1"), "{}", status.message);

        fs::remove_dir_all(&host.config.cni_conf_dir).unwrap();
        until(&network, |status| status.mode == Mode::BuiltIn && status.ready).await;
        configure(&host, "30-again.conflist", &fake_list("1.1.0"));
        until(&network, |status| status.mode != Mode::BuiltIn && status.ready).await;
    });
}

#[test]
fn a_plugin_that_reports_itself_unready_makes_the_network_unready() {
    on_a_host(|| async {
        let mut host = Host::new();
        let fake = Fake::install(&mut host);
        fake.fail("STATUS", "no controller");
        configure(&host, "10-fake.conflist", &fake_list("1.1.0"));
        let network = host.network().await;
        let status = network.status();
        assert!(!status.ready && status.message.contains("refused STATUS: no controller"), "{status:?}");
        fake.recover("STATUS");
        // kubelet asks every few seconds; its asking is what has the plugins asked again.
        let asking = async {
            loop {
                if network.status().ready {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(PATIENCE * 3, asking).await.expect("ready again");
    });
}

#[test]
fn plugins_get_the_pods_identity_the_earlier_result_and_their_capabilities() {
    on_a_host(|| async {
        let mut host = Host::new();
        let fake = Fake::install(&mut host);
        configure(&host, "10-fake.conflist", &fake_list("1.1.0"));
        let network = host.network().await;
        let pod = pod(&network, "box", vec![port(Protocol::Udp, "0.0.0.0", 53, 5353)]).await;
        assert_eq!(pod.ips, [ip("10.9.9.9")]);
        network.detach("box").await.unwrap();
        let log = fs::read_to_string(&fake.log).unwrap();
        let calls: Vec<(&str, Value)> = log
            .lines()
            .filter(|line| line.starts_with("ADD") || line.starts_with("DEL"))
            .map(|line| line.split_at(line.find('{').unwrap()))
            .map(|(head, input)| (head, serde_json::from_str(input).unwrap()))
            .collect();
        let netns = host.config.state.join("netns/box");
        let head = |verb: &str| {
            format!(
                "{verb} box eth0 {} IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=box-name;\
                 K8S_POD_INFRA_CONTAINER_ID=box;K8S_POD_UID=box-uid ",
                netns.display()
            )
        };
        let result = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.9.9.9/24"}]});
        let ports = json!({"portMappings":
            [{"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": ""}]});
        let first = |previous: Option<&Value>| {
            let mut input = json!({"type": "fake", "number": 1, "name": "fake-net", "cniVersion": "1.1.0",
                "runtimeConfig": ports});
            if let Some(previous) = previous {
                input["prevResult"] = previous.clone();
            }
            input
        };
        let second = json!({"type": "fake", "number": 2, "name": "fake-net", "cniVersion": "1.1.0", "prevResult": result});
        let expected = [
            (head("ADD"), first(None)),
            (head("ADD"), second.clone()),
            (head("DEL"), second),
            (head("DEL"), first(Some(&result))),
        ];
        assert_eq!(calls.len(), expected.len());
        for ((head, input), (expected_head, expected_input)) in calls.iter().zip(&expected) {
            assert_eq!((*head, input), (expected_head.as_str(), expected_input));
        }
    });
}

#[test]
fn a_failed_add_is_undone_and_a_failed_del_is_repeated() {
    on_a_host(|| async {
        let mut host = Host::new();
        let fake = Fake::install(&mut host);
        configure(&host, "10-fake.conflist", &fake_list("1.1.0"));
        let network = host.network().await;
        fake.fail("ADD", "no address left");
        let err = try_pod(&network, "box", vec![]).await.unwrap_err();
        assert_eq!(
            chain(&err),
            "cannot connect sandbox box: CNI network fake-net: CNI plugin fake refused ADD: no address left (code 50)"
        );
        assert_eq!(fake.calls().0, ["ADD box eth0", "DEL box eth0", "DEL box eth0"]);
        assert_eq!(pins(&host), Vec::<String>::new());
        fake.recover("ADD");
        pod(&network, "box", vec![]).await;
        fake.fail("DEL", "busy");
        network.detach("box").await.unwrap_err();
        assert_eq!(pins(&host), ["box"], "kept for the next try");
        fake.recover("DEL");
        network.detach("box").await.unwrap();
        assert_eq!(pins(&host), Vec::<String>::new());
    });
}

#[test]
fn an_add_without_addresses_is_a_failure() {
    on_a_host(|| async {
        let mut host = Host::new();
        let fake = Fake::install(&mut host);
        fake.answer("ADD", &json!({"cniVersion": "1.1.0"}));
        configure(&host, "10-fake.conflist", &fake_list("1.1.0"));
        let network = host.network().await;
        let err = try_pod(&network, "box", vec![]).await.unwrap_err();
        assert!(chain(&err).ends_with("CNI network fake-net gave the pod no address"), "{}", chain(&err));
    });
}

#[test]
fn a_sweep_frees_unknown_sandboxes_and_collects_garbage() {
    on_a_host(|| async {
        let mut host = Host::new();
        let fake = Fake::install(&mut host);
        configure(&host, "10-fake.conflist", &fake_list("1.1.0"));
        let network = host.network().await;
        let _kept = pod(&network, "kept", vec![]).await;
        let _lost = pod(&network, "lost", vec![]).await;
        drop(network);
        let network = host.network().await;
        network.sweep(&HashSet::from(["kept".to_owned()])).await.unwrap();
        let (calls, last) = fake.calls();
        assert_eq!(calls[4..], ["DEL lost eth0", "DEL lost eth0", "GC  ", "GC  "]);
        let valid = json!([{"containerID": "kept", "ifname": "eth0"}]);
        let input: Value = serde_json::from_str(&last[last.find('{').unwrap()..]).unwrap();
        assert_eq!(input["cni.dev/valid-attachments"], valid);
        assert_eq!(pins(&host), ["kept"]);
        network.detach("kept").await.unwrap();
    });
}

#[test]
fn who_attached_a_pod_detaches_it() {
    on_a_host(|| async {
        let mut host = Host::new();
        let fake = Fake::install(&mut host);
        let network = host.network().await;
        let _old = pod(&network, "old", vec![]).await;
        configure(&host, "10-fake.conflist", &fake_list("1.1.0"));
        until(&network, |status| status.mode != Mode::BuiltIn).await;
        let _new = pod(&network, "new", vec![]).await;
        network.detach("old").await.unwrap();
        assert_eq!(fake.calls().0, ["ADD new eth0", "ADD new eth0"]);
        assert!(!sh("ip -o link").contains("veth"));
        fs::remove_dir_all(&host.config.cni_conf_dir).unwrap();
        until(&network, |status| status.mode == Mode::BuiltIn).await;
        network.detach("new").await.unwrap();
        assert_eq!(fake.calls().0[2..], ["DEL new eth0", "DEL new eth0"], "with the list as recorded");
        network.shutdown().await.unwrap();
    });
}

#[test]
fn a_pin_left_by_a_crash_is_swept() {
    on_a_host(|| async {
        let host = Host::new();
        let pins_dir = host.config.state.join("netns");
        fs::create_dir_all(&pins_dir).unwrap();
        let leave = |path: &Path| {
            fs::write(path, "").unwrap();
            sh(&format!("mount --bind /proc/self/ns/net {}", path.display()));
        };
        leave(&pins_dir.join("stray"));
        let network = host.network().await;
        network.sweep(&HashSet::new()).await.unwrap();
        assert_eq!(pins(&host), Vec::<String>::new());
    });
}
