//! Device rules on cgroup v2: an eBPF program that the kernel asks at every open and mknod.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use super::resources::{DeviceAccess, DeviceKind, DeviceRule};
use crate::sys::bpf::{self, Instruction};

// linux/bpf.h: operation codes, and what struct bpf_cgroup_dev_ctx says.
const LOAD_WORD: u8 = 0x61;
const MOVE_REGISTER: u8 = 0xbf;
const MOVE_VALUE: u8 = 0xb7;
const AND_VALUE: u8 = 0x54;
const SHIFT_RIGHT_VALUE: u8 = 0x74;
const JUMP_NOT_EQUAL_VALUE: u8 = 0x55;
const JUMP_EQUAL_VALUE: u8 = 0x15;
const JUMP_NOT_EQUAL_REGISTER: u8 = 0x5d;
const EXIT: u8 = 0x95;

const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;

/// Registers: the context comes in 1; 2 holds the kind, 3 the access, 4 major, 5 minor; 0 is the answer.
const ANSWER: u8 = 0;
const SCRATCH: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Loads the program for `rules` and attaches it to the cgroup at `folder`.
pub(super) fn attach(folder: &Path, rules: &[DeviceRule]) -> io::Result<()> {
    let program = bpf::load_device_filter(&assemble(rules))?;
    let folder = File::open(folder)?;
    bpf::attach_device_filter(folder.as_fd(), program.as_fd())
}

/// The rules from the last, which wins, to the first; what no rule speaks about is denied.
fn assemble(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut program = vec![
        // The first word of the context is kind | access << 16.
        instruction(LOAD_WORD, KIND, SCRATCH, 0, 0),
        instruction(AND_VALUE, KIND, 0, 0, 0xffff),
        instruction(LOAD_WORD, ACCESS, SCRATCH, 0, 0),
        instruction(SHIFT_RIGHT_VALUE, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, SCRATCH, 4, 0),
        instruction(LOAD_WORD, MINOR, SCRATCH, 8, 0),
    ];
    for rule in rules.iter().rev() {
        program.extend(one_rule(rule));
        if rule.is_everything() {
            // Nothing gets past it, and the verifier refuses code that cannot be reached.
            return program;
        }
    }
    program.extend(answer(false));
    program
}

fn one_rule(rule: &DeviceRule) -> Vec<Instruction> {
    let mut tests = Vec::new();
    match rule.kind {
        DeviceKind::All => {}
        DeviceKind::Block => tests.push(instruction(JUMP_NOT_EQUAL_VALUE, KIND, 0, 0, BLOCK)),
        DeviceKind::Character => tests.push(instruction(JUMP_NOT_EQUAL_VALUE, KIND, 0, 0, CHARACTER)),
    }
    if rule.access != DeviceAccess::ALL {
        tests.push(instruction(MOVE_REGISTER, SCRATCH, ACCESS, 0, 0));
        tests.push(instruction(AND_VALUE, SCRATCH, 0, 0, mask(rule.access)));
        tests.push(if rule.allow {
            // All that is asked for must be in the rule.
            instruction(JUMP_NOT_EQUAL_REGISTER, SCRATCH, ACCESS, 0, 0)
        } else {
            // Any of it is enough to be denied.
            instruction(JUMP_EQUAL_VALUE, SCRATCH, 0, 0, 0)
        });
    }
    for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
        if let Some(number) = number {
            tests.push(instruction(JUMP_NOT_EQUAL_VALUE, register, 0, 0, number.cast_signed()));
        }
    }
    // Every jump leads past this rule's answer.
    let length = tests.len() + answer(rule.allow).len();
    for (index, test) in tests.iter_mut().enumerate() {
        if [JUMP_NOT_EQUAL_VALUE, JUMP_EQUAL_VALUE, JUMP_NOT_EQUAL_REGISTER].contains(&test.code) {
            test.offset = i16::try_from(length - index - 1).expect("a rule is a dozen instructions");
        }
    }
    tests.extend(answer(rule.allow));
    tests
}

fn answer(allow: bool) -> [Instruction; 2] {
    [instruction(MOVE_VALUE, ANSWER, 0, 0, i32::from(allow)), instruction(EXIT, 0, 0, 0, 0)]
}

fn mask(access: DeviceAccess) -> i32 {
    [(access.mknod, MKNOD), (access.read, READ), (access.write, WRITE)]
        .into_iter()
        .map(|(given, bit)| if given { bit } else { 0 })
        .sum()
}

const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: to | from << 4, offset, immediate }
}
