//! Writes one classic BPF program, from its end to its start.
//!
//! Jumps lead forward only, so whatever an instruction leads to is written before it and its distance is
//! known. Equal instructions with equal successors are written once: branches that end alike share code.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;

/// `BPF_MAXINSNS` (linux/bpf_common.h).
const INSTRUCTIONS_MAX: usize = 4096;
/// How far a conditional jump may lead when it is written: 255, less one for the hop of its other branch.
const REACH: usize = 254;

/// The instructions in use (linux/bpf_common.h). `seccomp_is_const_allow()` of the kernel knows each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
enum Code {
    Load = 0x20,
    And = 0x54,
    Jump = 0x05,
    JumpEqual = 0x15,
    JumpAtLeast = 0x35,
    JumpAnyBit = 0x45,
    Return = 0x06,
}

/// A place in the program: the number of instructions from there to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(usize);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Instruction {
    code: Code,
    operand: u32,
    yes: Place,
    no: Place,
}

/// A program that grows at its start.
#[derive(Debug, Default)]
pub(super) struct Program {
    reversed: Vec<Instruction>,
    written: BTreeMap<Instruction, Place>,
    hops: BTreeMap<Place, Place>,
}

impl Program {
    /// Ends with this answer.
    pub(super) fn answer(&mut self, answer: u32) -> Place {
        self.write(Code::Return, answer, Place(0), Place(0))
    }

    /// Loads a word of `struct seccomp_data`.
    pub(super) fn load(&mut self, offset: u32, next: Place) -> Place {
        self.write(Code::Load, offset, next, next)
    }

    /// Keeps only these bits of what is loaded.
    pub(super) fn and(&mut self, mask: u32, next: Place) -> Place {
        self.write(Code::And, mask, next, next)
    }

    pub(super) fn if_equal(&mut self, value: u32, yes: Place, no: Place) -> Place {
        if yes == no { yes } else { self.write(Code::JumpEqual, value, yes, no) }
    }

    pub(super) fn if_at_least(&mut self, value: u32, yes: Place, no: Place) -> Place {
        if yes == no { yes } else { self.write(Code::JumpAtLeast, value, yes, no) }
    }

    pub(super) fn if_any_bit(&mut self, bits: u32, yes: Place, no: Place) -> Place {
        if yes == no { yes } else { self.write(Code::JumpAnyBit, bits, yes, no) }
    }

    fn write(&mut self, code: Code, operand: u32, yes: Place, no: Place) -> Place {
        let wanted = Instruction { code, operand, yes, no };
        if let Some(place) = self.written.get(&wanted) {
            return *place;
        }
        let (no, yes) = match code {
            Code::Return | Code::Jump => (no, yes),
            Code::Load | Code::And if yes.0 == self.reversed.len() => (no, yes),
            Code::Load | Code::And => {
                let next = self.hop(yes);
                (next, next)
            }
            Code::JumpEqual | Code::JumpAtLeast | Code::JumpAnyBit => (self.near(no), self.near(yes)),
        };
        let place = self.push(Instruction { code, operand, yes, no });
        self.written.insert(wanted, place);
        place
    }

    /// A place within reach that does what `target` does.
    fn near(&mut self, target: Place) -> Place {
        let within = |place: Place| self.reversed.len().saturating_sub(place.0) <= REACH;
        if within(target) {
            return target;
        }
        match self.hops.get(&target) {
            Some(hop) if within(*hop) => *hop,
            _ => self.hop(target),
        }
    }

    /// A copy of what stands at `target` if it is an answer, else a jump there, which has 32 bits for the way.
    fn hop(&mut self, target: Place) -> Place {
        let there = target.0.checked_sub(1).and_then(|index| self.reversed.get(index));
        let jump = Instruction { code: Code::Jump, operand: 0, yes: target, no: target };
        let copy = there.copied().filter(|i| i.code == Code::Return).unwrap_or(jump);
        let place = self.push(copy);
        self.hops.insert(target, place);
        place
    }

    fn push(&mut self, instruction: Instruction) -> Place {
        self.reversed.push(instruction);
        Place(self.reversed.len())
    }

    /// The program in the form of [`ampoule_spec::SeccompProgram`]; it starts with what was written last.
    pub(super) fn finish(self, start: Place) -> Result<Vec<u64>> {
        let length = self.reversed.len();
        ensure!(start == Place(length), "the program does not start where it should");
        ensure!(length <= INSTRUCTIONS_MAX, "{length} instructions; the kernel takes {INSTRUCTIONS_MAX}");
        self.reversed.iter().enumerate().rev().map(|(after, i)| encode(*i, after)).collect()
    }
}

/// `code << 48 | jt << 40 | jf << 32 | k` for an instruction with `after` instructions behind it.
fn encode(instruction: Instruction, after: usize) -> Result<u64> {
    let Instruction { code, operand, yes, no } = instruction;
    let distance = |to: Place| after.checked_sub(to.0).context("a jump backwards");
    let short = |to: Place| Ok::<u8, anyhow::Error>(u8::try_from(distance(to)?)?);
    let (yes, no, operand) = match code {
        Code::Return => (0, 0, operand),
        Code::Jump => (0, 0, u32::try_from(distance(yes)?)?),
        Code::Load | Code::And => {
            ensure!(distance(yes)? == 0, "an instruction that cannot jump would have to");
            (0, 0, operand)
        }
        Code::JumpEqual | Code::JumpAtLeast | Code::JumpAnyBit => (short(yes)?, short(no)?, operand),
    };
    Ok(u64::from(code as u16) << 48 | u64::from(yes) << 40 | u64::from(no) << 32 | u64::from(operand))
}
