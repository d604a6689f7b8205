//! What one call answers to which arguments, and the code that finds it out.

use super::bpf::{Place, Program};
use super::source::{Condition, Group, Op};

/// `offsetof(struct seccomp_data, args)`.
const ARGS: u32 = 16;

/// A question about a 32-bit word of the arguments: is `word & mask == value`?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Question {
    offset: u32,
    mask: u32,
    value: u32,
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
    fn new(offset: u32, mask: u32, value: u32, wanted: bool) -> Self {
        let one_bit = mask.is_power_of_two() && value == mask;
        let (value, wanted) = if one_bit { (0, !wanted) } else { (value, wanted) };
        Self { question: Question { offset, mask, value }, wanted }
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
    let mask = condition.mask.unwrap_or(u64::MAX);
    let wanted = condition.op != Op::Ne;
    let offset = ARGS + 8 * u32::from(arg);
    let words =
        [(offset, mask as u32, value as u32), (offset + 4, (mask >> 32) as u32, (value >> 32) as u32)];
    let words = words.into_iter().take(usize::from(bits) / 32).filter(|(_, mask, _)| *mask != 0);
    let literals = words.map(|(offset, mask, value)| Literal::new(offset, mask, value, wanted));
    if wanted { vec![literals.collect()] } else { literals.map(|literal| vec![literal]).collect() }
}

/// What is known about the arguments at some place in the program.
#[derive(Debug, Clone, Default)]
struct Facts(Vec<(Question, bool)>);

impl Facts {
    fn with(&self, question: Question, holds: bool) -> Self {
        Self(self.0.iter().copied().chain([(question, holds)]).collect())
    }

    /// The answer, if it follows from what is known.
    fn answer(&self, asked: Question) -> Option<bool> {
        let about = self.0.iter().filter(|(q, _)| q.offset == asked.offset);
        let (mut bits, mut value, mut excluded) = (0, 0, false);
        for (q, holds) in about {
            if *holds {
                (bits, value) = (bits | q.mask, value | q.value);
            } else {
                excluded |= q.mask & !asked.mask == 0 && asked.value & q.mask == q.value;
            }
        }
        if excluded || (asked.value ^ value) & asked.mask & bits != 0 {
            Some(false)
        } else {
            (asked.mask & !bits == 0).then_some(true)
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

/// Writes the code that answers as the first rule that holds, or with `otherwise`.
pub(super) fn write(program: &mut Program, rules: &[Rule], otherwise: u32) -> Place {
    Writer { program, rules, otherwise }.decide(&Facts::default(), None)
}

struct Writer<'a> {
    program: &'a mut Program,
    rules: &'a [Rule],
    otherwise: u32,
}

impl Writer<'_> {
    fn decide(&mut self, facts: &Facts, held: Held) -> Place {
        for rule in self.rules {
            for all in &rule.any {
                match facts.all(all) {
                    Ok(true) => return self.program.answer(rule.answer),
                    Ok(false) => {}
                    Err(question) => return self.ask(question, facts, held),
                }
            }
        }
        self.program.answer(self.otherwise)
    }

    /// Asks one question and decides either branch with its answer known.
    fn ask(&mut self, question: Question, facts: &Facts, held: Held) -> Place {
        let Question { offset, mask, value } = question;
        // A test of bits leaves the word as it is; a comparison under a mask does not.
        let needed = if value == 0 { u32::MAX } else { mask };
        let fits =
            |(at, bits): (u32, u32)| at == offset && (bits == needed || value == 0 && mask & !bits == 0);
        let after = held.filter(|held| fits(*held)).or(Some((offset, needed)));
        let yes = self.decide(&facts.with(question, true), after);
        let no = self.decide(&facts.with(question, false), after);
        let mut place = match value {
            0 => self.program.if_any_bit(mask, no, yes),
            _ => self.program.if_equal(value, yes, no),
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
