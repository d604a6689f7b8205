//! From a policy to the program that the kernel runs.
//!
//! One program: the architecture, then a binary search over the numbers, then for some calls their
//! arguments. On the way to an unconditional answer it reads nothing but number and architecture, so that
//! the kernel finds out when the program is loaded and does not run it for such calls.

use super::bpf::{Place, Program};
use super::rules::{self, Rule};
use super::source::{Action, Policy};
use ampoule_spec::SeccompProgram;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;

/// `AUDIT_ARCH_X86_64` (linux/audit.h).
const NATIVE: u32 = 0xc000_003e;
/// `__X32_SYSCALL_BIT` (asm/unistd.h): numbers from here on belong to another interface.
const X32_BIT: u32 = 0x4000_0000;
/// Offsets in `struct seccomp_data` (linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

/// `SECCOMP_RET_KILL_PROCESS`, `SECCOMP_RET_ALLOW`, `SECCOMP_RET_ERRNO` (linux/seccomp.h).
const KILL: u32 = 0x8000_0000;
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const EPERM: u32 = ERRNO | 1;
const ENOSYS: u32 = ERRNO | 38;
const EAFNOSUPPORT: u32 = ERRNO | 97;

/// What decides first where several groups name a call. What none of them answers gets ENOSYS.
const PRECEDENCE: [(Action, u32); 3] =
    [(Action::Eafnosupport, EAFNOSUPPORT), (Action::Eperm, EPERM), (Action::Allow, ALLOW)];

/// The numbers of the calls.
const NUMBERS: &str = include_str!("x86_64.txt");

/// Numbers from `first` to the next range, which have the same rules.
#[derive(Debug)]
struct Range<'a> {
    first: u32,
    rules: &'a [Rule],
}

/// Compiles a policy.
pub(crate) fn programs(policy: &Policy) -> Result<Vec<SeccompProgram>> {
    ensure!(policy.arch == "x86_64", "arch {:?} is not known; this build knows x86_64", policy.arch);
    let calls = rules_of(policy, &numbers()?)?;
    let mut program = Program::default();
    let kill = program.answer(KILL);
    let search = search(&mut program, &ranges(&calls));
    let number = program.load(NUMBER, search);
    let native = program.if_equal(NATIVE, number, kill);
    let start = program.load(ARCH, native);
    let name = "answers by number, for some calls by their arguments; ENOSYS for every other call";
    Ok(vec![SeccompProgram { name: name.to_owned(), instructions: program.finish(start)? }])
}

/// The number of every call that has a name.
pub(crate) fn numbers() -> Result<BTreeMap<&'static str, u32>> {
    let lines = NUMBERS.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, number) = line.split_once(' ').with_context(|| format!("{line:?}: no number"))?;
            let number = number.parse().with_context(|| line.to_owned())?;
            ensure!(number < X32_BIT, "{line}: not a number of this architecture");
            Ok((name, number))
        })
        .collect()
}

/// The rules of every call, in the order in which they decide.
fn rules_of(policy: &Policy, numbers: &BTreeMap<&str, u32>) -> Result<BTreeMap<u32, Vec<Rule>>> {
    let mut calls: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    for name in policy.groups.iter().flat_map(|g| &g.names) {
        ensure!(numbers.contains_key(name.as_str()), "{name}: no such call");
    }
    for (action, answer) in PRECEDENCE {
        for group in policy.groups.iter().filter(|g| g.action == action) {
            for number in group.names.iter().filter_map(|name| numbers.get(name.as_str())) {
                let rules = calls.entry(*number).or_default();
                match rules.last_mut().filter(|rule| rule.answer == answer) {
                    Some(rule) => rule.add(group),
                    None => rules.push(Rule::new(answer, group)),
                }
            }
        }
    }
    Ok(calls)
}

/// All numbers, known or not.
fn ranges(calls: &BTreeMap<u32, Vec<Rule>>) -> Vec<Range<'_>> {
    let mut ranges: Vec<Range<'_>> = Vec::new();
    let mut add = |first: u32, rules| {
        if ranges.last().is_none_or(|range| range.rules != rules) {
            ranges.push(Range { first, rules });
        }
    };
    let mut next = 0;
    for (number, rules) in calls {
        if *number > next {
            add(next, &[]);
        }
        add(*number, rules);
        next = number + 1;
    }
    add(next, &[]);
    ranges
}

/// Writes the search among these ranges; the number is loaded.
fn search(program: &mut Program, ranges: &[Range<'_>]) -> Place {
    let (low, high) = ranges.split_at(ranges.len() / 2);
    match (low, high) {
        ([.., _], [first, ..]) => {
            let yes = search(program, high);
            let no = search(program, low);
            program.if_at_least(first.first, yes, no)
        }
        _ => rules::write(program, ranges.first().map_or(&[], |range| range.rules), ENOSYS),
    }
}
