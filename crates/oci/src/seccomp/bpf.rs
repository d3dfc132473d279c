//! Classic BPF, written back to front: a jump's target always exists before the jump, so every distance is known
//! when the instruction is made, and one too far for its eight bits goes through an unconditional jump.

use std::collections::HashMap;

/// The kernel takes no longer program (`BPF_MAXINSNS`).
pub(super) const MAX_INSTRUCTIONS: usize = 4096;

/// BPF_LD | BPF_W | BPF_ABS: A = the 32-bit word at `k` of `struct seccomp_data`.
pub(super) const LOAD: u16 = 0x20;
/// BPF_ALU | BPF_AND | BPF_K: A &= k.
pub(super) const AND: u16 = 0x54;
/// BPF_JMP | BPF_JA: skip `k` instructions.
pub(super) const JUMP: u16 = 0x05;
/// BPF_RET | BPF_K: the filter's answer is `k`.
pub(super) const RETURN: u16 = 0x06;

/// A comparison of A with `k`: BPF_JMP | op | BPF_K.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Test {
    Equal = 0x15,
    Greater = 0x25,
    GreaterOrEqual = 0x35,
}

/// `struct sock_filter` of linux/filter.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) code: u16,
    pub(super) if_true: u8,
    pub(super) if_false: u8,
    pub(super) k: u32,
}

/// An instruction already written, counted from the program's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Label(usize);

#[derive(Debug, Default)]
pub(super) struct Assembler {
    /// Last instruction first.
    reversed: Vec<Instruction>,
    returns: HashMap<u32, Label>,
}

impl Assembler {
    fn push(&mut self, code: u16, k: u32) -> Label {
        self.push_jump(code, k, 0, 0)
    }

    fn push_jump(&mut self, code: u16, k: u32, if_true: u8, if_false: u8) -> Label {
        self.reversed.push(Instruction { code, if_true, if_false, k });
        Label(self.reversed.len() - 1)
    }

    /// Instructions between the next one to be written and `target`.
    fn distance(&self, target: Label) -> usize {
        self.reversed.len() - 1 - target.0
    }

    /// A way to `target` that stays within eight bits even when `later` more instructions come between.
    fn near(&mut self, target: Label, later: usize) -> Label {
        let distance = self.distance(target);
        if distance + later <= usize::from(u8::MAX) { target } else { self.push(JUMP, distance as u32) }
    }

    /// Ends the program with `value`; equal endings are one instruction.
    pub(super) fn ret(&mut self, value: u32) -> Label {
        if let Some(label) = self.returns.get(&value) {
            return *label;
        }
        let label = self.push(RETURN, value);
        self.returns.insert(value, label);
        label
    }

    /// Tests A and goes on at `yes` or `no`.
    pub(super) fn branch(&mut self, test: Test, k: u32, yes: Label, no: Label) -> Label {
        if yes == no {
            return yes;
        }
        // Reaching `yes` may cost one more instruction, which then lies between here and `no`.
        let no = self.near(no, 1);
        let yes = self.near(yes, 0);
        let (if_true, if_false) = (self.distance(yes) as u8, self.distance(no) as u8);
        self.push_jump(test as u16, k, if_true, if_false)
    }

    /// An instruction without a choice (`LOAD`, `AND`), then `next`.
    pub(super) fn then(&mut self, code: u16, k: u32, next: Label) -> Label {
        let distance = self.distance(next);
        if distance > 0 {
            self.push(JUMP, distance as u32);
        }
        self.push(code, k)
    }

    /// The finished program: it begins with the instruction written last.
    pub(super) fn finish(self) -> Vec<Instruction> {
        self.reversed.into_iter().rev().collect()
    }
}

/// The bytes of a `struct sock_filter[]` in this machine's byte order.
pub(super) fn to_bytes(program: &[Instruction]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for instruction in program {
        bytes.extend_from_slice(&instruction.code.to_ne_bytes());
        bytes.extend_from_slice(&[instruction.if_true, instruction.if_false]);
        bytes.extend_from_slice(&instruction.k.to_ne_bytes());
    }
    bytes
}

/// Runs a program over a `struct seccomp_data`, as the kernel would: the tests' oracle.
#[cfg(test)]
pub(super) fn run(program: &[Instruction], number: u32, arch: u32, arguments: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend_from_slice(&number.to_le_bytes());
    data.extend_from_slice(&arch.to_le_bytes());
    data.extend_from_slice(&0u64.to_le_bytes());
    arguments.iter().for_each(|argument| data.extend_from_slice(&argument.to_le_bytes()));
    let (mut at, mut a) = (0usize, 0u32);
    loop {
        let i = program[at];
        at += 1;
        let taken = match i.code {
            LOAD => {
                let k = i.k as usize;
                a = u32::from_le_bytes(data[k..k + 4].try_into().unwrap());
                continue;
            }
            AND => {
                a &= i.k;
                continue;
            }
            JUMP => {
                at += i.k as usize;
                continue;
            }
            RETURN => return i.k,
            0x15 => a == i.k,
            0x25 => a > i.k,
            0x35 => a >= i.k,
            other => panic!("instruction {other:#x}"),
        };
        at += usize::from(if taken { i.if_true } else { i.if_false });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_targets_are_reached_through_a_jump() {
        let mut assembler = Assembler::default();
        let bottom = assembler.ret(1);
        let mut top = assembler.ret(2);
        for k in 0..600 {
            // Each test sends one number to the far end and passes the others on.
            top = assembler.branch(Test::Equal, k, bottom, top);
        }
        let start = assembler.then(LOAD, 0, top);
        assert_eq!(start, Label(assembler.reversed.len() - 1));
        let program = assembler.finish();
        for number in [0, 1, 254, 255, 256, 599] {
            assert_eq!(run(&program, number, 0, [0; 6]), 1);
        }
        assert_eq!(run(&program, 600, 0, [0; 6]), 2);
    }
}
