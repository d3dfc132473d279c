//! Users, capabilities, seccomp, limits: the first process and those that follow it alike.

use std::os::unix::fs::PermissionsExt;

use berth_launcher::compile::compile;
use serde_json::{Value, json};

use crate::common::*;

pub const TESTS: &[Test] = &[
    ("first_and_further_processes_are_confined_alike", first_and_further_processes_are_confined_alike),
    ("priorities_that_cannot_be_are_told", priorities_that_cannot_be_are_told),
    ("a_user_is_a_user_with_just_its_groups", a_user_is_a_user_with_just_its_groups),
    ("capabilities_are_those_of_the_spec", capabilities_are_those_of_the_spec),
    ("no_capabilities_in_the_spec_are_none", no_capabilities_in_the_spec_are_none),
    ("seccomp_works_without_no_new_privileges", seccomp_works_without_no_new_privileges),
    ("setuid_programs_obey_no_new_privileges", setuid_programs_obey_no_new_privileges),
    (
        "limits_and_scores_are_lowered_where_the_host_says_so",
        limits_and_scores_are_lowered_where_the_host_says_so,
    ),
    ("a_working_directory_is_made_and_entered", a_working_directory_is_made_and_entered),
    ("standard_output_can_be_opened_again_by_its_user", standard_output_can_be_opened_again_by_its_user),
];

const STATUS: &str = "grep -E '^(Uid|Gid|Groups|Umask|Cap|NoNewPrivs|Seccomp)' /proc/self/status; \
                      cat /proc/self/limits /proc/self/oom_score_adj; pwd; env | sort; ls -1 /proc/self/fd; \
                      ionice; awk '{ print \"nice \" $19 \" policy \" $41 }' /proc/self/stat; \
                      awk 'NR == 1 { print \"memory \" $2 }' /proc/self/numa_maps";

/// Refuses mkdir and mkdirat with EPERM, allows the rest. x86-64 or aarch64 numbers, by libc.
fn no_mkdir() -> Vec<u8> {
    let mut numbers = vec![libc::SYS_mkdirat as u32];
    #[cfg(target_arch = "x86_64")]
    numbers.push(libc::SYS_mkdir as u32);
    let count = numbers.len() as u8;
    // BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K; SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO|EPERM.
    let mut program = vec![(0x20_u16, 0, 0, 0_u32)];
    for (index, number) in numbers.iter().enumerate() {
        program.push((0x15, count - index as u8, 0, *number));
    }
    program.push((0x06, 0, 0, 0x7fff_0000));
    program.push((0x06, 0, 0, 0x0005_0001));
    program
        .into_iter()
        .flat_map(|(code, yes, no, value)| {
            let mut bytes = code.to_ne_bytes().to_vec();
            bytes.extend([yes, no]);
            bytes.extend(value.to_ne_bytes());
            bytes
        })
        .collect()
}

fn with_seccomp(mut spec: Value) -> Value {
    // What matters is the program; compile() wants the profile it is made from to be there.
    spec["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW" });
    spec
}

fn first_and_further_processes_are_confined_alike() {
    let mut spec = with_seccomp(spec(&format!("{STATUS}; echo end; sleep 1000")));
    spec["process"]["user"] = json!({ "uid": 1234, "gid": 99, "additionalGids": [7, 8], "umask": 0o027 });
    spec["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }]);
    spec["process"]["oomScoreAdj"] = json!(500);
    spec["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 3 });
    spec["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 5 });
    spec["linux"]["memoryPolicy"] =
        json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"] });
    let filter = no_mkdir();
    let mut container = Container::create_in(busybox_root(), &spec, Some(&filter));
    container.process.ready().unwrap();
    container.process.launched.gate.open().unwrap();
    container.process.executed().unwrap();
    let mut first = String::new();
    while !first.ends_with("end\n") {
        let mut buffer = [0; 4096];
        let length = rustix::io::read(&container.process.streams.stdout, &mut buffer).unwrap();
        assert_ne!(length, 0, "{first}");
        first.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    let mut process = container.spec.process().clone().unwrap();
    process.set_args(Some(vec!["sh".into(), "-c".into(), format!("{STATUS}; echo end")]));
    // What an exec request does not say comes from the container.
    process.set_capabilities(None).set_rlimits(None).set_oom_score_adj(None).set_no_new_privileges(None);
    process.set_io_priority(None).set_scheduler(None);
    let mut exec = container.exec_process(&process, Some(&filter));
    exec.ready().unwrap();
    let second = exec.result().0;
    assert_eq!(first, second);
    for line in
        ["Uid:\t1234\t1234", "Gid:\t99\t99", "Groups:\t7 8", "Umask:\t0027", "NoNewPrivs:\t1", "Seccomp:\t2"]
    {
        assert!(first.contains(line), "{line} is not in {first}");
    }
    assert!(first.ends_with("best-effort: prio 3\nnice 5 policy 3\nmemory bind=static:0\nend\n"), "{first}");
}

fn priorities_that_cannot_be_are_told() {
    let mut refused = spec("true");
    refused["process"]["scheduler"] = json!({ "policy": "SCHED_FIFO", "priority": 1000 });
    let mut container = Container::create_in(busybox_root(), &refused, None);
    let error = container.process.ready().unwrap_err().to_string();
    assert!(error.starts_with("set the scheduler"), "{error}");
    let cgroup = OwnCgroup::new();
    for (field, value) in [
        ("ioPriority", json!({ "class": "IOPRIO_CLASS_BE", "priority": 8 })),
        ("scheduler", json!({ "policy": "SCHED_RR", "priority": -1 })),
    ] {
        let mut invalid = spec("true");
        invalid["process"][field] = value;
        let error = compile(&parse(&invalid), input(&cgroup.0)).unwrap_err().to_string();
        assert!(error.starts_with(&format!("process.{field}")), "{error}");
    }
}

fn a_user_is_a_user_with_just_its_groups() {
    let mut spec = spec("id -u; id -g; id -G; touch /etc/mine 2>&1; cat /secret 2>&1");
    spec["process"]["user"] = json!({ "uid": 1000, "gid": 1001, "additionalGids": [50000] });
    let root = busybox_root();
    std::fs::write(root.path().join("secret"), "x").unwrap();
    std::fs::set_permissions(root.path().join("secret"), PermissionsExt::from_mode(0o600)).unwrap();
    let mut container = Container::create_in(root, &spec, None);
    container.process.ready().unwrap();
    assert_eq!(
        container.process.finish().0,
        "1000\n1001\n1001 50000\ntouch: /etc/mine: Permission denied\ncat: can't open '/secret': Permission denied\n"
    );
}

fn capabilities_are_those_of_the_spec() {
    let mut spec = spec("grep ^Cap /proc/self/status");
    spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    let few = json!(["CAP_CHOWN", "CAP_NET_BIND_SERVICE"]);
    spec["process"]["capabilities"] =
        json!({ "bounding": few, "effective": few, "permitted": few, "inheritable": few, "ambient": few });
    let set = "0000000000000401";
    assert_eq!(
        run_container(&spec).0,
        format!("CapInh:\t{set}\nCapPrm:\t{set}\nCapEff:\t{set}\nCapBnd:\t{set}\nCapAmb:\t{set}\n")
    );
}

fn no_capabilities_in_the_spec_are_none() {
    let mut spec = spec("grep ^Cap /proc/self/status | grep -v 0000000000000000");
    spec["process"]["capabilities"] = Value::Null;
    assert_eq!(run_container(&spec).0, "");
}

fn seccomp_works_without_no_new_privileges() {
    for uid in [0, 1000] {
        let mut spec = with_seccomp(spec(
            "mkdir /tmp/no 2>&1; grep -E '^(NoNewPrivs|Seccomp:|CapBnd|CapPrm)' /proc/self/status",
        ));
        spec["process"]["noNewPrivileges"] = json!(false);
        spec["process"]["user"] = json!({ "uid": uid, "gid": uid });
        let mut container = Container::create_in(busybox_root(), &spec, Some(&no_mkdir()));
        container.process.ready().unwrap();
        let (output, status) = container.process.finish();
        assert_eq!(status, 0);
        // The capability that loading took is not the program's.
        let permitted = if uid == 0 { "00000000a80425fb" } else { "0000000000000000" };
        assert_eq!(
            output,
            format!(
                "mkdir: can't create directory '/tmp/no': Operation not permitted\n\
                 CapPrm:\t{permitted}\nCapBnd:\t00000000a80425fb\nNoNewPrivs:\t0\nSeccomp:\t2\n"
            )
        );
    }
}

fn setuid_programs_obey_no_new_privileges() {
    for no_new_privileges in [true, false] {
        let mut spec = spec("");
        spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        // busybox's su says so when its setuid bit has no effect.
        spec["process"]["args"] = json!(["/bin/busybox", "su", "nobody"]);
        let root = busybox_root();
        std::fs::set_permissions(root.path().join("bin/busybox"), PermissionsExt::from_mode(0o4755)).unwrap();
        let mut container = Container::create_in(root, &spec, None);
        container.process.ready().unwrap();
        container.process.finish();
        let errors = container.process.streams.errors();
        assert_eq!(errors.contains("must be suid"), no_new_privileges, "{errors}");
    }
}

fn limits_and_scores_are_lowered_where_the_host_says_so() {
    let may = |name: &str| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let set = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap().to_owned();
        let number = if name == "CAP_SYS_RESOURCE" { 24 } else { unreachable!() };
        u64::from_str_radix(&set, 16).unwrap() & (1 << number) != 0
    };
    if may("CAP_SYS_RESOURCE") {
        return;
    }
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    let mut spec = spec("grep 'open files' /proc/self/limits; cat /proc/self/oom_score_adj");
    spec["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": hard + 5, "hard": hard + 10 }]);
    spec["process"]["oomScoreAdj"] = json!(-999);
    let mut container = Container::create(&spec);
    let warnings = container.process.ready().unwrap();
    assert!(warnings.iter().any(|text| text.contains("RLIMIT_NOFILE")), "{warnings:?}");
    assert!(warnings.iter().any(|text| text.contains("oom_score_adj -999")), "{warnings:?}");
    let output = container.process.finish().0;
    let fields: Vec<_> = output.split_whitespace().collect();
    assert_eq!(fields[3..5], [hard.to_string(), hard.to_string()], "{output}");
}

fn a_working_directory_is_made_and_entered() {
    let mut spec = spec("pwd; readlink /proc/self/cwd");
    spec["process"]["cwd"] = json!("/srv/new/place");
    assert_eq!(run_container(&spec).0, "/srv/new/place\n/srv/new/place\n");
}

fn standard_output_can_be_opened_again_by_its_user() {
    let mut spec = spec("echo again > /dev/stdout");
    spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    assert_eq!(run_container(&spec), ("again\n".to_owned(), 0));
}
