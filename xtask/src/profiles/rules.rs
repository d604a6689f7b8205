//! What one call answers to which arguments, and the code that finds it out.

use super::bpf::{Place, Program};
use super::source::{Condition, Group, Op};

/// `SECCOMP_RET_ALLOW` (linux/seccomp.h).
pub(super) const ALLOW: u32 = 0x7fff_0000;
/// `offsetof(struct seccomp_data, args)`.
const ARGS: u32 = 16;

/// A question about a 32-bit word of the arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Question {
    offset: u32,
    test: Test,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    /// `word & mask == value`?
    Bits { mask: u32, value: u32 },
    /// `word >= limit`? Never asked of 0 and 1: nothing is below 0, and below 1 is 0.
    AtLeast(u32),
}

/// A question and the answer that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Literal {
    question: Question,
    wanted: bool,
}

/// An answer to a call, given if all literals of at least one alternative hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) answer: u32,
    any: Vec<Vec<Literal>>,
}

/// What one policy says about a call: as the first rule that holds, or `otherwise`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layer {
    pub(super) rules: Vec<Rule>,
    pub(super) otherwise: u32,
}

/// What all policies say about a call: it is allowed if each allows it, and the first that does not answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    first: Layer,
    second: Option<Layer>,
}

impl Call {
    /// A second policy has nothing to say about a call that the first never allows.
    pub(super) fn new(first: Layer, second: Option<Layer>) -> Self {
        let allows = first.otherwise == ALLOW || first.rules.iter().any(|rule| rule.answer == ALLOW);
        let second = second.filter(|_| allows);
        Self { first, second }
    }
}

impl Layer {
    /// The answer, or the first question that must be asked to know.
    fn answer(&self, facts: &Facts) -> Result<u32, Question> {
        for rule in &self.rules {
            for all in &rule.any {
                if facts.all(all)? {
                    return Ok(rule.answer);
                }
            }
        }
        Ok(self.otherwise)
    }
}

impl Rule {
    /// The rule of one group.
    pub(super) fn new(answer: u32, group: &Group) -> Self {
        let mut rule = Self { answer, any: Vec::new() };
        rule.add(group);
        rule
    }

    /// Adds the alternatives of another group with the same answer.
    pub(super) fn add(&mut self, group: &Group) {
        if group.when.is_empty() {
            self.any.push(Vec::new());
        }
        self.any.extend(group.when.iter().flat_map(|conditions| alternatives(conditions)));
    }
}

impl Literal {
    /// That one bit is set is written as: not, that it is clear. So all tests of bits look alike.
    fn bits(offset: u32, mask: u32, value: u32, wanted: bool) -> Self {
        let one_bit = mask.is_power_of_two() && value == mask;
        let (value, wanted) = if one_bit { (0, !wanted) } else { (value, wanted) };
        Self { question: Question { offset, test: Test::Bits { mask, value } }, wanted }
    }

    /// That a word is at least `limit`, which is not 0; or, if that is not wanted, that it is below.
    fn at_least(offset: u32, limit: u32, wanted: bool) -> Self {
        match limit {
            1 => Self::bits(offset, u32::MAX, 0, !wanted),
            _ => Self { question: Question { offset, test: Test::AtLeast(limit) }, wanted },
        }
    }
}

/// Conditions that must all hold, as alternatives of literals: a wide `ne` holds if either half differs.
fn alternatives(conditions: &[Condition]) -> Vec<Vec<Literal>> {
    let mut result = vec![Vec::new()];
    for condition in conditions {
        let choices = literals(condition);
        result = result
            .iter()
            .flat_map(|all: &Vec<Literal>| choices.iter().map(|more| [all.as_slice(), more].concat()))
            .collect();
    }
    result
}

fn literals(condition: &Condition) -> Vec<Vec<Literal>> {
    let Condition { arg, bits, value, .. } = *condition;
    let offset = ARGS + 8 * u32::from(arg);
    match condition.op {
        Op::AtLeast => return ordered(offset, bits, value, true),
        Op::Below => return ordered(offset, bits, value, false),
        Op::Eq | Op::Ne | Op::MaskedEq => {}
    }
    let mask = condition.mask.unwrap_or(u64::MAX);
    let wanted = condition.op != Op::Ne;
    let words =
        [(offset, mask as u32, value as u32), (offset + 4, (mask >> 32) as u32, (value >> 32) as u32)];
    let words = words.into_iter().take(usize::from(bits) / 32).filter(|(_, mask, _)| *mask != 0);
    let literals = words.map(|(offset, mask, value)| Literal::bits(offset, mask, value, wanted));
    if wanted { vec![literals.collect()] } else { literals.map(|literal| vec![literal]).collect() }
}

/// That an argument is at least `limit`, or below it: the high half decides, and the low half where the high
/// half is that of the limit.
fn ordered(offset: u32, bits: u8, limit: u64, at_least: bool) -> Vec<Vec<Literal>> {
    let (high, low) = ((limit >> 32) as u32, limit as u32);
    let mut alternatives = Vec::new();
    // Above in the high half is at least one more, below in it is less than the limit's.
    let beyond = if at_least { high.checked_add(1) } else { Some(high).filter(|high| *high > 0) };
    if let (64, Some(beyond)) = (bits, beyond) {
        alternatives.push(vec![Literal::at_least(offset + 4, beyond, at_least)]);
    }
    let equal = (bits == 64).then(|| Literal::bits(offset + 4, u32::MAX, high, true));
    match (low, at_least) {
        // Any low half is at least 0, and none is below.
        (0, true) => alternatives.push(equal.into_iter().collect()),
        (0, false) => {}
        _ => {
            let low = Literal::at_least(offset, low, at_least);
            alternatives.push(equal.into_iter().chain([low]).collect());
        }
    }
    alternatives
}

/// What is known about the arguments at some place in the program.
#[derive(Debug, Clone, Default)]
struct Facts(Vec<(Question, bool)>);

impl Facts {
    fn with(&self, question: Question, holds: bool) -> Self {
        Self(self.0.iter().copied().chain([(question, holds)]).collect())
    }

    /// The answer, if it follows from what is known. That it is not seen to follow costs a question, no more.
    fn answer(&self, asked: Question) -> Option<bool> {
        let about =
            || self.0.iter().filter(|(q, _)| q.offset == asked.offset).map(|(q, holds)| (q.test, *holds));
        let (mut bits, mut value, mut least, mut most) = (0, 0, 0, u32::MAX);
        for (test, holds) in about() {
            match (test, holds) {
                (Test::Bits { mask, value: seen }, true) => (bits, value) = (bits | mask, value | seen),
                (Test::Bits { .. }, false) => {}
                (Test::AtLeast(limit), true) => least = least.max(limit),
                (Test::AtLeast(limit), false) => most = most.min(limit.saturating_sub(1)),
            }
        }
        // The smallest and the largest word with these bits.
        (least, most) = (least.max(value), most.min(value | !bits));
        let (mask, wanted) = match asked.test {
            Test::AtLeast(limit) if least >= limit => return Some(true),
            Test::AtLeast(limit) => return (most < limit).then_some(false),
            Test::Bits { mask, value } => (mask, value),
        };
        let excluded = about().any(|(test, holds)| {
            matches!(test, Test::Bits { mask: m, value: v } if !holds && m & !mask == 0 && wanted & m == v)
        });
        let outside = mask == u32::MAX && !(least..=most).contains(&wanted);
        if excluded || outside || (wanted ^ value) & mask & bits != 0 {
            Some(false)
        } else {
            (mask & !bits == 0).then_some(true)
        }
    }

    /// Whether all literals hold, or the first question that must be asked to know.
    fn all(&self, literals: &[Literal]) -> Result<bool, Question> {
        let mut open = Ok(true);
        for literal in literals {
            match self.answer(literal.question) {
                Some(holds) if holds != literal.wanted => return Ok(false),
                Some(_) => {}
                None => open = open.and(Err(literal.question)),
            }
        }
        open
    }
}

/// What the accumulator holds: a word of the arguments, and which of its bits.
type Held = Option<(u32, u32)>;

/// Writes the code that answers a call.
pub(super) fn write(program: &mut Program, call: &Call) -> Place {
    Writer { program, call }.decide(&Facts::default(), None)
}

struct Writer<'a> {
    program: &'a mut Program,
    call: &'a Call,
}

impl Writer<'_> {
    fn decide(&mut self, facts: &Facts, held: Held) -> Place {
        let call = self.call;
        for layer in std::iter::once(&call.first).chain(&call.second) {
            match layer.answer(facts) {
                Ok(ALLOW) => {}
                Ok(refused) => return self.program.answer(refused),
                Err(question) => return self.ask(question, facts, held),
            }
        }
        self.program.answer(ALLOW)
    }

    /// Asks one question and decides either branch with its answer known.
    fn ask(&mut self, question: Question, facts: &Facts, held: Held) -> Place {
        let Question { offset, test } = question;
        let (mask, value) = match test {
            Test::Bits { mask, value } => (mask, value),
            Test::AtLeast(limit) => (u32::MAX, limit),
        };
        // A test of bits leaves the word as it is; a comparison under a mask does not.
        let needed = if value == 0 { u32::MAX } else { mask };
        let fits =
            |(at, bits): (u32, u32)| at == offset && (bits == needed || value == 0 && mask & !bits == 0);
        let after = held.filter(|held| fits(*held)).or(Some((offset, needed)));
        let yes = self.decide(&facts.with(question, true), after);
        let no = self.decide(&facts.with(question, false), after);
        let mut place = match test {
            Test::AtLeast(limit) => self.program.if_at_least(limit, yes, no),
            Test::Bits { value: 0, .. } => self.program.if_any_bit(mask, no, yes),
            Test::Bits { .. } => self.program.if_equal(value, yes, no),
        };
        if held == after {
            return place;
        }
        if needed != u32::MAX {
            place = self.program.and(mask, place);
        }
        if held == Some((offset, u32::MAX)) { place } else { self.program.load(offset, place) }
    }
}
