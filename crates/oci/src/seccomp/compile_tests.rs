//! Programs are run by the interpreter in `bpf` and compared with what the rules say; `tests/seccomp_kernel.rs` has the
//! kernel run them.

use super::super::{Profile, bpf, load};
use super::*;
use oci_spec::runtime::Capability;
use proptest::prelude::*;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;

struct Compiled(Vec<Instruction>);

impl Compiled {
    fn json(json: &str) -> Self {
        let seccomp =
            load(Profile::Localhost(json.as_bytes()), &Default::default(), (6, 1)).unwrap().unwrap();
        Self(compile_for(&seccomp, Machine::X86_64).unwrap().0)
    }

    fn runtime_default(capabilities: &[Capability]) -> Self {
        let capabilities = capabilities.iter().copied().collect();
        let seccomp = load(Profile::RuntimeDefault, &capabilities, (6, 1)).unwrap().unwrap();
        Self(compile_for(&seccomp, Machine::X86_64).unwrap().0)
    }

    fn ask(&self, machine: Machine, name: &str, arguments: &[u64]) -> u32 {
        let number = machine.number(name).unwrap_or_else(|| panic!("{machine:?} has no {name}"));
        self.raw(machine.audit_arch(), number, arguments)
    }

    fn raw(&self, arch: u32, number: u32, arguments: &[u64]) -> u32 {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        bpf::run(&self.0, number, arch, all)
    }

    fn call(&self, name: &str, arguments: &[u64]) -> u32 {
        self.ask(Machine::X86_64, name, arguments)
    }
}

#[test]
fn default_profile_answers_as_other_runtimes_do() {
    let filter = Compiled::runtime_default(&[]);
    assert!(filter.0.len() < 1024, "{} instructions", filter.0.len());
    for allowed in [
        "read",
        "uname",
        "openat2",
        "faccessat2",
        "pidfd_open",
        "futex_waitv",
        "mseal",
        "statmount",
        "ptrace",
    ] {
        assert_eq!(filter.call(allowed, &[]), ALLOW, "{allowed}");
    }
    for forbidden in
        ["unshare", "mount", "io_uring_setup", "keyctl", "bpf", "setns", "userfaultfd", "reboot", "chroot"]
    {
        assert_eq!(filter.call(forbidden, &[]), ERRNO | EPERM, "{forbidden}");
    }
    assert_eq!(filter.call("clone3", &[]), ERRNO | ENOSYS);
    assert_eq!(filter.call("clone", &[0x11]), ALLOW);
    for namespace in [0x20000u64, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000] {
        assert_eq!(filter.call("clone", &[namespace | 0x11]), ERRNO | EPERM, "{namespace:#x}");
    }
    for (family, answer) in
        [(1, ALLOW), (2, ALLOW), (10, ALLOW), (16, ALLOW), (38, ERRNO | EPERM), (40, ERRNO | EPERM)]
    {
        assert_eq!(filter.call("socket", &[family]), answer, "{family}");
    }
    for (value, answer) in [(0, ALLOW), (8, ALLOW), (0xffff_ffff, ALLOW), (0x0040_0000, ERRNO | EPERM)] {
        assert_eq!(filter.call("personality", &[value]), answer, "{value:#x}");
    }
}

#[test]
fn capabilities_open_what_they_are_for() {
    let filter = Compiled::runtime_default(&[Capability::SysAdmin, Capability::SysChroot]);
    for allowed in ["unshare", "mount", "clone3", "chroot", "setns"] {
        assert_eq!(filter.call(allowed, &[]), ALLOW, "{allowed}");
    }
    assert_eq!(filter.call("clone", &[0x10000000]), ALLOW);
    assert_eq!(filter.call("io_uring_setup", &[]), ERRNO | EPERM);
}

#[test]
fn calls_newer_than_the_profile_do_not_exist() {
    let filter = Compiled::runtime_default(&[]);
    assert_eq!(filter.raw(X86_64, 900, &[]), ERRNO | ENOSYS);
    assert_eq!(filter.raw(I386, 900, &[]), ERRNO | ENOSYS);
    assert_eq!(filter.raw(X86_64, X32_BIT + 900, &[]), ERRNO | ENOSYS);
    assert_eq!(filter.raw(X86_64, u32::MAX, &[]), ERRNO | ENOSYS);
    let permissive = Compiled::json(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO"}]}"#,
    );
    assert_eq!(permissive.raw(X86_64, 900, &[]), ALLOW);
    assert_eq!(permissive.call("chmod", &[]), ERRNO | EPERM);
    assert_eq!(permissive.call("fchmod", &[]), ALLOW);
}

#[test]
fn other_machines_follow_the_rules_when_listed_and_die_when_not() {
    let filter = Compiled::runtime_default(&[]);
    for machine in [Machine::X86, Machine::X32] {
        assert_eq!(filter.ask(machine, "read", &[]), ALLOW);
        assert_eq!(filter.ask(machine, "unshare", &[]), ERRNO | EPERM);
        assert_eq!(filter.ask(machine, "rt_sigaction", &[]), ALLOW);
    }
    assert_eq!(filter.raw(0xc000_00b7, 63, &[]), KILL_PROCESS);
    let alone = Compiled::json(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_S390X"]}"#,
    );
    assert_eq!(alone.call("read", &[]), ALLOW);
    assert_eq!(alone.ask(Machine::X86, "read", &[]), KILL_PROCESS);
    assert_eq!(alone.ask(Machine::X32, "read", &[]), KILL_PROCESS);
    assert_eq!(alone.raw(X86_64, u32::MAX, &[]), ALLOW);
}

#[test]
fn multiplexed_calls_cannot_be_reached_round_a_denial() {
    let filter = Compiled::json(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],"syscalls":[
            {"names":["connect","semop"],"action":"SCMP_ACT_ERRNO","errnoRet":13},
            {"names":["socket"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":38,"op":"SCMP_CMP_EQ"}]}]}"#,
    );
    assert_eq!(filter.ask(Machine::X86, "socketcall", &[3]), ERRNO | 13);
    assert_eq!(filter.ask(Machine::X86, "socketcall", &[1]), ERRNO | EPERM);
    assert_eq!(filter.ask(Machine::X86, "socketcall", &[2]), ALLOW);
    assert_eq!(filter.ask(Machine::X86, "ipc", &[0x1_0001]), ERRNO | 13);
    assert_eq!(filter.ask(Machine::X86, "ipc", &[2]), ALLOW);
    assert_eq!(filter.call("socket", &[38]), ERRNO | EPERM);
    assert_eq!(filter.call("socket", &[2]), ALLOW);
}

#[test]
fn several_tests_of_one_argument_are_alternatives_and_of_different_ones_all_hold() {
    let filter = Compiled::json(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
            {"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[
                {"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":0,"value":2,"op":"SCMP_CMP_EQ"}]},
            {"names":["ioctl"],"action":"SCMP_ACT_ALLOW","args":[
                {"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":1,"value":2,"op":"SCMP_CMP_GT"}]}]}"#,
    );
    assert_eq!(filter.call("socket", &[1]), ALLOW);
    assert_eq!(filter.call("socket", &[2]), ALLOW);
    assert_eq!(filter.call("socket", &[3]), ERRNO | EPERM);
    assert_eq!(filter.call("ioctl", &[1, 3]), ALLOW);
    assert_eq!(filter.call("ioctl", &[1, 2]), ERRNO | EPERM);
    assert_eq!(filter.call("ioctl", &[0, 3]), ERRNO | EPERM);
}

#[test]
fn rule_without_tests_beats_those_with_and_contradictions_are_refused() {
    let filter = Compiled::json(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
            {"names":["clone"],"action":"SCMP_ACT_KILL_PROCESS","args":[{"index":0,"value":0,"op":"SCMP_CMP_GE"}]},
            {"names":["clone"],"action":"SCMP_ACT_ERRNO"},
            {"names":["clone"],"action":"SCMP_ACT_ALLOW"}]}"#,
    );
    assert_eq!(filter.call("clone", &[5]), ALLOW);
    let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
        {"names":["read"],"action":"SCMP_ACT_ALLOW"},{"names":["read"],"action":"SCMP_ACT_LOG"}]}"#;
    let seccomp = load(Profile::Localhost(json.as_bytes()), &Default::default(), (6, 1)).unwrap().unwrap();
    assert!(
        matches!(compile_for(&seccomp, Machine::X86_64), Err(SeccompError::Contradiction { name }) if name == "read")
    );
}

#[test]
fn unknown_names_are_left_out_with_one_warning() {
    let json = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
        {"names":["frobnicate","chmod","zap","arm_fadvise64_64"],"action":"SCMP_ACT_ERRNO"}]}"#;
    let seccomp = load(Profile::Localhost(json.as_bytes()), &Default::default(), (6, 1)).unwrap().unwrap();
    let filter = compile(&seccomp).unwrap();
    let default = load(Profile::RuntimeDefault, &Default::default(), (6, 1)).unwrap().unwrap();
    assert!(compile(&default).unwrap().warnings.is_empty());
    assert_eq!(filter.warnings, ["seccomp profile: unknown system calls left out: frobnicate, zap"]);
    assert_eq!(filter.program.len() % 8, 0);
}

#[test]
fn arm64_kernels_filter_32_bit_arm_too() {
    let seccomp = load(Profile::RuntimeDefault, &Default::default(), (6, 1)).unwrap().unwrap();
    let mut seccomp = seccomp;
    seccomp.set_architectures(Some(vec![
        oci_spec::runtime::Arch::ScmpArchAarch64,
        oci_spec::runtime::Arch::ScmpArchArm,
    ]));
    let filter = Compiled(compile_for(&seccomp, Machine::Aarch64).unwrap().0);
    assert_eq!(filter.ask(Machine::Aarch64, "openat", &[]), ALLOW);
    assert_eq!(filter.ask(Machine::Aarch64, "unshare", &[]), ERRNO | EPERM);
    assert_eq!(filter.ask(Machine::Arm, "open", &[]), ALLOW);
    assert_eq!(filter.raw(Machine::Arm.audit_arch(), 900, &[]), ERRNO | ENOSYS);
    assert_eq!(filter.raw(Machine::X86_64.audit_arch(), 0, &[]), KILL_PROCESS);
}

fn operator() -> impl Strategy<Value = LinuxSeccompOperator> {
    use LinuxSeccompOperator as Op;
    prop::sample::select(vec![
        Op::ScmpCmpEq,
        Op::ScmpCmpNe,
        Op::ScmpCmpGt,
        Op::ScmpCmpGe,
        Op::ScmpCmpLt,
        Op::ScmpCmpLe,
        Op::ScmpCmpMaskedEq,
    ])
}

/// Values that meet often: equal halves, neighbours, extremes.
fn word() -> impl Strategy<Value = u64> {
    (prop::sample::select(vec![0u64, 1, 2, 0xffff_ffff]), prop::sample::select(vec![0u64, 1, 2, 0xffff_ffff]))
        .prop_map(|(high, low)| high << 32 | low)
}

proptest! {
    #[test]
    fn comparisons_are_of_64_unsigned_bits(op in operator(), value in word(), second in word(), argument in word()) {
        use LinuxSeccompOperator as Op;
        let arg = serde_json::json!({ "index": 2, "value": value, "valueTwo": second, "op": op });
        let json = serde_json::json!({ "defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [{ "names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": [arg] }] }).to_string();
        let filter = Compiled::json(&json);
        let holds = |argument: u64, value: u64, second: u64| match op {
            Op::ScmpCmpEq => argument == value,
            Op::ScmpCmpNe => argument != value,
            Op::ScmpCmpGt => argument > value,
            Op::ScmpCmpGe => argument >= value,
            Op::ScmpCmpLt => argument < value,
            Op::ScmpCmpLe => argument <= value,
            Op::ScmpCmpMaskedEq => argument & value == second,
        };
        prop_assert_eq!(filter.call("ioctl", &[0, 0, argument]) == ALLOW, holds(argument, value, second));
        // 32-bit calls: only the low halves exist.
        let low = |word: u64| word & 0xffff_ffff;
        prop_assert_eq!(
            filter.ask(Machine::X86, "ioctl", &[0, 0, low(argument)]) == ALLOW,
            holds(low(argument), low(value), low(second))
        );
    }

    #[test]
    fn every_number_gets_its_own_answer(allowed in proptest::collection::btree_set(0u32..460, 0..200)) {
        let names: Vec<&str> = allowed.iter().filter_map(|n| ::syscalls::x86_64::Sysno::new(*n as usize)).map(|n| n.name()).collect();
        prop_assume!(!names.is_empty());
        let json = serde_json::json!({ "defaultAction": "SCMP_ACT_KILL_PROCESS", "architectures": ["SCMP_ARCH_X32"],
            "syscalls": [{ "names": names, "action": "SCMP_ACT_ALLOW" }] }).to_string();
        let filter = Compiled::json(&json);
        let newest = names.iter().filter_map(|name| Machine::X86_64.number(name)).max().unwrap();
        for number in 0..480 {
            let named = ::syscalls::x86_64::Sysno::new(number as usize).is_some_and(|n| names.contains(&n.name()));
            let expected = if named { ALLOW } else if number > newest { ERRNO | ENOSYS } else { KILL_PROCESS };
            prop_assert_eq!(filter.raw(X86_64, number, &[]), expected, "{}", number);
        }
    }
}
