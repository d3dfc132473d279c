//! A profile, resolved for one container, to the program the kernel loads.
//!
//! The program first tells machines apart, then finds the call's number by bisection (neighbours with the same answer
//! are one interval), then tests arguments where a rule has any. Rules about one call mean what they mean to other
//! runtimes, which use libseccomp:
//! - a rule that says the same as the default action says nothing;
//! - a rule without argument tests beats those with them, whatever their order; among the latter the first match wins;
//! - tests of different arguments in one rule must all hold; several tests of *one* argument are alternatives;
//! - calls newer than every call the profile names fail with ENOSYS instead of a forbidding default action, so that C
//!   libraries fall back to what they did before the call existed.

use super::SeccompError;
use super::bpf::{AND, Assembler, Instruction, LOAD, Label, MAX_INSTRUCTIONS, Test, to_bytes};
use super::syscalls::{ARM_PRIVATE, Machine, X32_BIT, known_anywhere};
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};
use std::collections::{BTreeMap, BTreeSet};

const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// The kernel cuts larger ones to this (`MAX_ERRNO`).
const MAX_ERRNO: u32 = 4095;

/// Offsets in `struct seccomp_data`, on the little-endian machines that [`Machine::native`] admits.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

/// A profile as the kernel takes it. The profile's flags stay in the spec, for whoever calls seccomp(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// `struct sock_filter[]`, native byte order.
    pub program: Vec<u8>,
    /// What was left out: names of calls that no machine we know has.
    pub warnings: Vec<String>,
}

/// Compiles `seccomp` for the machine this program runs on.
///
/// # Errors
/// What no filter can express or we do not support: see [`SeccompError`].
pub fn compile(seccomp: &LinuxSeccomp) -> Result<Filter, SeccompError> {
    let native = Machine::native().ok_or(SeccompError::Machine)?;
    let (program, warnings) = compile_for(seccomp, native)?;
    Ok(Filter { program: to_bytes(&program), warnings })
}

pub(super) fn compile_for(
    seccomp: &LinuxSeccomp,
    native: Machine,
) -> Result<(Vec<Instruction>, Vec<String>), SeccompError> {
    if seccomp.listener_path().is_some() {
        return Err(SeccompError::Notify);
    }
    let default = action_value(seccomp.default_action(), seccomp.default_errno_ret())?;
    let rules = seccomp.syscalls().as_deref().unwrap_or_default();

    // The host's own machine is always filtered by the rules, whether the profile lists it or not.
    let mut machines = BTreeSet::from([native]);
    for arch in seccomp.architectures().iter().flatten() {
        machines.extend(Machine::from_oci(*arch, native).filter(|machine| machine.runs_on(native)));
    }
    let mut assembler = Assembler::default();
    let foreign = assembler.ret(KILL_PROCESS);
    let beyond = if forbids(seccomp.default_action()) { ERRNO | ENOSYS } else { default };

    let mut start = foreign;
    for machine in machines.iter().rev().filter(|machine| **machine != Machine::X32) {
        let mut intervals = table(&mut assembler, rules, *machine, default, beyond)?;
        if *machine == Machine::X86_64 {
            if machines.contains(&Machine::X32) {
                intervals.append(&mut table(&mut assembler, rules, Machine::X32, default, beyond)?);
            } else {
                intervals.insert(X32_BIT, foreign);
            }
            // What a tracer writes to skip a call: no x32 call, though the bit is set.
            intervals.insert(u32::MAX, assembler.ret(beyond));
        }
        let intervals: Vec<(u32, Label)> = intervals.into_iter().collect();
        let search = bisect(&mut assembler, &intervals);
        let numbers = assembler.then(LOAD, OFFSET_NUMBER, search);
        start = assembler.branch(Test::Equal, machine.audit_arch(), numbers, start);
    }
    assembler.then(LOAD, OFFSET_ARCH, start);
    let program = assembler.finish();
    if program.len() > MAX_INSTRUCTIONS {
        return Err(SeccompError::TooLarge { instructions: program.len() });
    }

    let unknown: BTreeSet<&str> = rules
        .iter()
        .flat_map(LinuxSyscall::names)
        .map(String::as_str)
        .filter(|name| !known_anywhere(name))
        .collect();
    let warnings = match unknown.is_empty() {
        true => Vec::new(),
        false => vec![format!(
            "seccomp profile: unknown system calls left out: {}",
            unknown.into_iter().collect::<Vec<_>>().join(", ")
        )],
    };
    Ok((program, warnings))
}

/// Whether an action keeps a call from happening, so that calls the profile's author could not know need ENOSYS.
fn forbids(action: Action) -> bool {
    !matches!(action, Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace)
}

fn action_value(action: Action, errno: Option<u32>) -> Result<u32, SeccompError> {
    let data = errno.unwrap_or(EPERM);
    let checked =
        |limit: u32| if data <= limit { Ok(data) } else { Err(SeccompError::Errno { value: data }) };
    Ok(match action {
        Action::ScmpActKill | Action::ScmpActKillThread => KILL_THREAD,
        Action::ScmpActKillProcess => KILL_PROCESS,
        Action::ScmpActTrap => TRAP,
        Action::ScmpActErrno => ERRNO | checked(MAX_ERRNO)?,
        Action::ScmpActTrace => TRACE | checked(0xffff)?,
        Action::ScmpActLog => LOG,
        Action::ScmpActAllow => ALLOW,
        Action::ScmpActNotify => return Err(SeccompError::Notify),
    })
}

/// What a profile says about one call: an answer for every case, or answers under conditions.
#[derive(Default)]
struct Verdict {
    always: Option<u32>,
    /// First match wins; no match is the default action.
    sometimes: Vec<(Vec<Condition>, u32)>,
}

/// `argument & mask` compared with `value`.
#[derive(Clone, Copy)]
struct Condition {
    argument: u32,
    operator: LinuxSeccompOperator,
    mask: u64,
    value: u64,
}

impl Condition {
    fn new(name: &str, arg: &LinuxSeccompArg) -> Result<Self, SeccompError> {
        let argument = u32::try_from(arg.index())
            .ok()
            .filter(|index| *index < 6)
            .ok_or_else(|| SeccompError::Argument { name: name.to_owned(), index: arg.index() })?;
        // MASKED_EQ: `value` is the mask, `valueTwo` what must be left.
        let masked = arg.op() == LinuxSeccompOperator::ScmpCmpMaskedEq;
        let (mask, value) =
            if masked { (arg.value(), arg.value_two().unwrap_or(0)) } else { (u64::MAX, arg.value()) };
        Ok(Self { argument, operator: arg.op(), mask, value })
    }
}

/// The answer for each number of `machine`: an entry's answer holds up to the next entry.
fn table(
    assembler: &mut Assembler,
    rules: &[LinuxSyscall],
    machine: Machine,
    default: u32,
    beyond: u32,
) -> Result<BTreeMap<u32, Label>, SeccompError> {
    let first = if machine == Machine::X32 { X32_BIT } else { 0 };
    let (verdicts, newest) = verdicts(rules, machine, default)?;
    let default_label = assembler.ret(default);
    let mut answers = BTreeMap::new();
    for (number, verdict) in &verdicts {
        answers.insert(*number, emit(assembler, verdict, machine, default_label));
    }
    // Each number's answer ends right after it.
    let mut intervals = BTreeMap::from([(first, default_label)]);
    for (number, label) in &answers {
        intervals.insert(*number, *label);
        if !answers.contains_key(&(number + 1)) {
            intervals.insert(number + 1, default_label);
        }
    }
    if let Some(newest) = newest {
        intervals.insert(newest + 1, assembler.ret(beyond));
    }
    Ok(intervals)
}

/// The rules sorted by number, and the highest ordinary number that any rule names.
fn verdicts(
    rules: &[LinuxSyscall],
    machine: Machine,
    default: u32,
) -> Result<(BTreeMap<u32, Verdict>, Option<u32>), SeccompError> {
    let mut verdicts: BTreeMap<u32, Verdict> = BTreeMap::new();
    let mut newest = None;
    for rule in rules {
        let value = action_value(rule.action(), rule.errno_ret())?;
        for name in rule.names() {
            let alternatives = alternatives(name, rule.args().as_deref().unwrap_or_default())?;
            let number = machine.number(name);
            // ARM's private calls lie far above the numbers that grow with time.
            newest = newest.max(number.filter(|n| machine != Machine::Arm || *n < ARM_PRIVATE));
            if value == default {
                continue;
            }
            if let Some(number) = number {
                verdicts.entry(number).or_default().add(name, &alternatives, value)?;
            }
            // A multiplexer's arguments are behind a pointer. What is forbidden in some case is forbidden there in
            // every case; what is only allowed in some cases is not allowed there.
            let Some((multiplexer, call, mask)) = machine.multiplexed(name) else { continue };
            if alternatives.is_empty() || forbids(rule.action()) {
                let condition = Condition {
                    argument: 0,
                    operator: LinuxSeccompOperator::ScmpCmpMaskedEq,
                    mask: u64::from(mask),
                    value: u64::from(call),
                };
                if let Some(number) = machine.number(multiplexer) {
                    verdicts.entry(number).or_default().add(name, &[vec![condition]], value)?;
                }
            }
        }
    }
    Ok((verdicts, newest))
}

/// A rule's argument tests as alternatives of tests that must all hold; none for a rule without tests.
fn alternatives(name: &str, args: &[LinuxSeccompArg]) -> Result<Vec<Vec<Condition>>, SeccompError> {
    let conditions = args.iter().map(|arg| Condition::new(name, arg)).collect::<Result<Vec<_>, _>>()?;
    let distinct: BTreeSet<u32> = conditions.iter().map(|condition| condition.argument).collect();
    Ok(match conditions.len() {
        0 => Vec::new(),
        all if distinct.len() == all => vec![conditions],
        _ => conditions.into_iter().map(|condition| vec![condition]).collect(),
    })
}

impl Verdict {
    fn add(&mut self, name: &str, alternatives: &[Vec<Condition>], value: u32) -> Result<(), SeccompError> {
        if !alternatives.is_empty() {
            self.sometimes.extend(alternatives.iter().map(|conditions| (conditions.clone(), value)));
            return Ok(());
        }
        match self.always {
            Some(other) if other != value => Err(SeccompError::Contradiction { name: name.to_owned() }),
            _ => {
                self.always = Some(value);
                Ok(())
            }
        }
    }
}

fn emit(assembler: &mut Assembler, verdict: &Verdict, machine: Machine, default: Label) -> Label {
    if let Some(value) = verdict.always {
        return assembler.ret(value);
    }
    verdict.sometimes.iter().rev().fold(default, |otherwise, (conditions, value)| {
        let answer = assembler.ret(*value);
        conditions
            .iter()
            .rev()
            .fold(answer, |yes, condition| compare(assembler, condition, machine, yes, otherwise))
    })
}

/// One argument test. BPF has 32-bit words only, so a 64-bit argument is two comparisons.
fn compare(
    assembler: &mut Assembler,
    condition: &Condition,
    machine: Machine,
    yes: Label,
    no: Label,
) -> Label {
    use LinuxSeccompOperator as Op;
    let Condition { argument, operator, mask, value } = *condition;
    let low_offset = OFFSET_ARGUMENTS + 8 * argument;
    // LT is "not GE", LE is "not GT", NE is "not EQ".
    let (test, yes, no) = match operator {
        Op::ScmpCmpEq | Op::ScmpCmpMaskedEq => (Test::Equal, yes, no),
        Op::ScmpCmpNe => (Test::Equal, no, yes),
        Op::ScmpCmpGt => (Test::Greater, yes, no),
        Op::ScmpCmpLe => (Test::Greater, no, yes),
        Op::ScmpCmpGe => (Test::GreaterOrEqual, yes, no),
        Op::ScmpCmpLt => (Test::GreaterOrEqual, no, yes),
    };
    let load = |assembler: &mut Assembler, offset: u32, mask: u32, next: Label| {
        let next = if mask == u32::MAX { next } else { assembler.then(AND, mask, next) };
        assembler.then(LOAD, offset, next)
    };
    let low = assembler.branch(test, value as u32, yes, no);
    let low = load(assembler, low_offset, mask as u32, low);
    if !machine.wide_arguments() {
        return low;
    }
    let (high_mask, high_value) = ((mask >> 32) as u32, (value >> 32) as u32);
    let high = assembler.branch(Test::Equal, high_value, low, no);
    let high = match test {
        Test::Equal => high,
        Test::Greater | Test::GreaterOrEqual => assembler.branch(Test::Greater, high_value, yes, high),
    };
    load(assembler, low_offset + 4, high_mask, high)
}

/// Finds the interval that A lies in. `intervals` starts at or below every number that can come.
fn bisect(assembler: &mut Assembler, intervals: &[(u32, Label)]) -> Label {
    let mut merged: Vec<(u32, Label)> = Vec::with_capacity(intervals.len());
    for (start, label) in intervals {
        if merged.last().is_none_or(|(_, last)| last != label) {
            merged.push((*start, *label));
        }
    }
    fn search(assembler: &mut Assembler, intervals: &[(u32, Label)]) -> Label {
        if let [(_, label)] = intervals {
            return *label;
        }
        let (below, above) = intervals.split_at(intervals.len() / 2);
        let (yes, no) = (search(assembler, above), search(assembler, below));
        assembler.branch(Test::GreaterOrEqual, above[0].0, yes, no)
    }
    search(assembler, &merged)
}

#[cfg(test)]
#[path = "compile_tests.rs"]
mod tests;
