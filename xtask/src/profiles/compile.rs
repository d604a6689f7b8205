//! From a policy to the program that the kernel runs.
//!
//! One program: the architecture, then a binary search over the numbers, then for some calls their
//! arguments. On the way to an unconditional answer it reads nothing but number and architecture, so that
//! the kernel finds out when the program is loaded and does not run it for such calls.

use super::bpf::{Place, Program};
use super::rules::{self, ALLOW, Call, Layer, Rule};
use super::source::{Action, Group, Policy, User};
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

/// `SECCOMP_RET_KILL_PROCESS`, `SECCOMP_RET_ERRNO` (linux/seccomp.h).
const KILL: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;

/// What decides first where several groups of a policy name a call.
const PRECEDENCE: [Action; 4] = [Action::Eafnosupport, Action::Eperm, Action::Enosys, Action::Allow];

/// The numbers of the calls.
const NUMBERS: &str = include_str!("x86_64.txt");

/// Numbers from `first` to the next range, which answer alike.
#[derive(Debug)]
struct Range<'a> {
    first: u32,
    call: &'a Call,
}

/// Compiles what the house's policy says for steps of one user. A list that was imported narrows it: a call is
/// allowed where both allow it, and where both refuse it the house's answer counts.
pub(crate) fn programs(house: &Policy, imported: Option<&Policy>, user: User) -> Result<Vec<SeccompProgram>> {
    let numbers = numbers()?;
    let house = Said::of(house, user, &numbers)?;
    let list = imported.map(|list| Said::of(list, user, &numbers)).transpose()?;
    let call =
        |number: Option<u32>| Call::new(house.layer(number), list.as_ref().map(|list| list.layer(number)));
    let calls: BTreeMap<u32, Call> = numbers.values().map(|number| (*number, call(Some(*number)))).collect();
    let unnamed = call(None);
    let mut program = Program::default();
    let kill = program.answer(KILL);
    let search = search(&mut program, &ranges(&calls, &unnamed));
    let number = program.load(NUMBER, search);
    let native = program.if_equal(NATIVE, number, kill);
    let start = program.load(ARCH, native);
    let name = match imported {
        None => "answers by number, for some calls by their arguments; ENOSYS for every other call",
        Some(_) => {
            "answers by number, for some calls by their arguments; allows what the house and the list allow"
        }
    };
    Ok(vec![SeccompProgram { name: name.to_owned(), instructions: program.finish(start)? }])
}

fn answer_of(action: Action) -> u32 {
    match action {
        Action::Allow => ALLOW,
        Action::Eperm => ERRNO | 1,
        Action::Enosys => ERRNO | 38,
        Action::Eafnosupport => ERRNO | 97,
    }
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

/// What a policy says for steps of one user.
struct Said {
    /// The rules of every call that has any, in the order in which they decide.
    rules: BTreeMap<u32, Vec<Rule>>,
    otherwise: u32,
}

impl Said {
    fn of(policy: &Policy, user: User, numbers: &BTreeMap<&str, u32>) -> Result<Self> {
        ensure!(policy.arch == "x86_64", "arch {:?} is not known; this build knows x86_64", policy.arch);
        let mut calls: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
        for name in policy.groups.iter().flat_map(|g| &g.names) {
            ensure!(numbers.contains_key(name.as_str()), "{name}: no such call");
        }
        for action in PRECEDENCE {
            let answer = answer_of(action);
            // To say always what is said without it needs no rule.
            let says_more = |group: &&Group| action != policy.default || !group.when.is_empty();
            for group in policy.groups_of(user).filter(|g| g.action == action).filter(says_more) {
                for number in group.names.iter().filter_map(|name| numbers.get(name.as_str())) {
                    let rules = calls.entry(*number).or_default();
                    match rules.last_mut().filter(|rule| rule.answer == answer) {
                        Some(rule) => rule.add(group),
                        None => rules.push(Rule::new(answer, group)),
                    }
                }
            }
        }
        Ok(Self { rules: calls, otherwise: answer_of(policy.default) })
    }

    /// What it says about one call, or about those that have no name.
    fn layer(&self, number: Option<u32>) -> Layer {
        let rules = number.and_then(|number| self.rules.get(&number)).cloned().unwrap_or_default();
        Layer { rules, otherwise: self.otherwise }
    }
}

/// All numbers, known or not.
fn ranges<'a>(calls: &'a BTreeMap<u32, Call>, unnamed: &'a Call) -> Vec<Range<'a>> {
    let mut ranges: Vec<Range<'_>> = Vec::new();
    let mut add = |first: u32, call| {
        if ranges.last().is_none_or(|range| range.call != call) {
            ranges.push(Range { first, call });
        }
    };
    let mut next = 0;
    for (number, call) in calls {
        if *number > next {
            add(next, unnamed);
        }
        add(*number, call);
        next = number + 1;
    }
    add(next, unnamed);
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
        (_, [only, ..]) => rules::write(program, only.call),
        // There is always a range; were there none, nothing would be allowed.
        (_, []) => program.answer(KILL),
    }
}
