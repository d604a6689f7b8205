//! Masking: what a step writes of its own secrets becomes `***`, whatever the reads are cut into.
//!
//! Every form of a value ([`forms`]) is looked for by its first bytes with one automaton, and read on from there. What
//! could still become a form is held back: of bytes that begin none, only a suffix that begins a form's first bytes; at
//! most the longest form and what came with its end. At the end of a stream what is held back is no secret, and goes.
//! It guarantees that no form stands in what comes out; it does not know forms that nobody listed.

pub(crate) mod forms;

use aho_corasick::automaton::Automaton;
use aho_corasick::dfa::DFA;
use aho_corasick::nfa::contiguous::NFA;
use aho_corasick::{Anchored, MatchKind, PatternID, StartKind};
use ampoule_spec::SECRET_BYTES_MIN;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// What stands where a secret stood.
const MASK: &[u8] = b"***";
/// How many first bytes of a form the automaton knows. No form is shorter.
const ANCHOR: usize = SECRET_BYTES_MIN;
/// Up to so many anchors the automaton is the one that is fastest and largest: tens of megabytes.
const FAST_ANCHORS_MAX: usize = 4096;
/// The most beginnings that are followed at a time. Only values that repeat themselves have more; then all is masked
/// from the first on.
const CANDIDATES_MAX: usize = 4096;

/// Why a value cannot be masked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MaskError {
    #[error("a secret has fewer than {SECRET_BYTES_MIN} bytes, which cannot be masked")]
    TooShort,
    #[error("the automaton over the secrets' forms cannot be built")]
    Automaton(#[from] aho_corasick::BuildError),
}

/// The forms of all values of a step.
#[derive(Debug)]
pub(crate) struct Matcher {
    forms: Vec<Vec<u8>>,
    known: BTreeSet<Vec<u8>>,
    /// The forms that begin with each anchor, by the anchor's pattern.
    by_anchor: Vec<Vec<usize>>,
    /// Every beginning of an anchor that is none yet.
    beginnings: HashSet<Vec<u8>>,
    automaton: Scan,
}

#[derive(Debug)]
enum Scan {
    Fast(DFA),
    Small(NFA),
}

impl Matcher {
    /// Builds it.
    pub(crate) fn new(values: &[Vec<u8>]) -> Result<Self, MaskError> {
        let mut matcher = Self {
            forms: Vec::new(),
            known: BTreeSet::new(),
            by_anchor: Vec::new(),
            beginnings: HashSet::new(),
            automaton: scan(&[])?,
        };
        matcher.add(values)?;
        Ok(matcher)
    }

    /// Adds values; those that were there stay. Streams have to be [resumed](Stream::resume).
    pub(crate) fn add(&mut self, values: &[Vec<u8>]) -> Result<(), MaskError> {
        for value in values {
            if value.trim_ascii_end().len() < SECRET_BYTES_MIN {
                return Err(MaskError::TooShort);
            }
            for form in forms::of(value) {
                if self.known.insert(form.clone()) {
                    self.forms.push(form);
                }
            }
        }
        let mut anchors: BTreeMap<&[u8], Vec<usize>> = BTreeMap::new();
        for (at, form) in self.forms.iter().enumerate() {
            anchors.entry(form.get(..ANCHOR).unwrap_or_default()).or_default().push(at);
        }
        let begins = |anchor: &[u8]| {
            (1..ANCHOR).filter_map(|n| anchor.get(..n).map(<[u8]>::to_vec)).collect::<Vec<_>>()
        };
        self.beginnings = anchors.keys().flat_map(|anchor| begins(anchor)).collect();
        self.automaton = scan(&anchors.keys().copied().collect::<Vec<_>>())?;
        self.by_anchor = anchors.into_values().collect();
        Ok(())
    }
}

fn scan(anchors: &[&[u8]]) -> Result<Scan, MaskError> {
    if anchors.len() > FAST_ANCHORS_MAX {
        let mut small = NFA::builder();
        return Ok(Scan::Small(small.match_kind(MatchKind::Standard).prefilter(false).build(anchors)?));
    }
    let mut fast = DFA::builder();
    let fast = fast.match_kind(MatchKind::Standard).start_kind(StartKind::Unanchored).prefilter(false);
    Ok(Scan::Fast(fast.build(anchors)?))
}

/// A form that has begun.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    /// Where, in the whole stream.
    start: u64,
    form: usize,
    /// How many bytes of it are there.
    seen: usize,
}

/// One stream's state.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    state: Option<aho_corasick::automaton::StateID>,
    /// What has not gone yet, and where it begins in the whole stream.
    held: Vec<u8>,
    base: u64,
    candidates: Vec<Candidate>,
    /// What is to be masked, and where it ends.
    spans: Vec<(u64, u64)>,
    /// Up to here everything is masked and said to be.
    masked_to: u64,
    /// How many masks went out.
    pub(crate) masked: u64,
}

impl Stream {
    /// Takes bytes, and gives those that may go.
    pub(crate) fn feed(&mut self, matcher: &Matcher, bytes: &[u8], out: &mut Vec<u8>) {
        let from = self.held.len();
        self.held.extend_from_slice(bytes);
        let mut before = std::mem::take(&mut self.candidates);
        before.retain_mut(|candidate| self.goes_on(matcher, candidate));
        self.candidates = before;
        match &matcher.automaton {
            Scan::Fast(dfa) => self.scan(matcher, dfa, from),
            Scan::Small(nfa) => self.scan(matcher, nfa, from),
        }
        let end = self.base + self.held.len() as u64;
        let first = self.candidates.iter().map(|candidate| candidate.start).min();
        if self.candidates.len() > CANDIDATES_MAX {
            self.spans.extend(first.map(|first| (first, end)));
            self.candidates.clear();
            self.let_go(end, out);
            return;
        }
        let to = end - self.beginning(matcher) as u64;
        self.let_go(first.map_or(to, |first| first.min(to)), out);
    }

    /// Gives what was held back: nothing comes any more.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        self.candidates.clear();
        self.let_go(self.base + self.held.len() as u64, out);
    }

    /// Goes on with a matcher that has got more forms.
    pub(crate) fn resume(&mut self, matcher: &Matcher) {
        let tail = self.held.get(self.held.len().saturating_sub(ANCHOR - 1)..).unwrap_or_default();
        self.state = match &matcher.automaton {
            Scan::Fast(dfa) => state_after(dfa, tail),
            Scan::Small(nfa) => state_after(nfa, tail),
        };
    }

    /// Reads the bytes that came, from this place of what is held.
    fn scan<A: Automaton>(&mut self, matcher: &Matcher, automaton: &A, from: usize) {
        let Some(mut state) = self.state.or_else(|| state_after(automaton, &[])) else { return };
        let held = std::mem::take(&mut self.held);
        for (at, byte) in held.iter().enumerate().skip(from) {
            state = automaton.next_state(Anchored::No, state, *byte);
            if automaton.is_special(state) && automaton.is_match(state) {
                let start = self.base + (at + 1).saturating_sub(ANCHOR) as u64;
                for which in 0..automaton.match_len(state) {
                    let pattern: PatternID = automaton.match_pattern(state, which);
                    let begun = matcher.by_anchor.get(pattern.as_usize()).into_iter().flatten();
                    let begun = begun.map(|form| Candidate { start, form: *form, seen: ANCHOR });
                    let begun: Vec<_> = begun.filter(|_| self.candidates.len() <= CANDIDATES_MAX).collect();
                    for mut candidate in begun {
                        if read_on(&mut self.spans, matcher, &held, self.base, &mut candidate) {
                            self.candidates.push(candidate);
                        }
                    }
                }
            }
        }
        self.held = held;
        self.state = Some(state);
    }

    fn goes_on(&mut self, matcher: &Matcher, candidate: &mut Candidate) -> bool {
        read_on(&mut self.spans, matcher, &self.held, self.base, candidate)
    }

    /// How many of the last bytes begin an anchor.
    fn beginning(&self, matcher: &Matcher) -> usize {
        let longest = (1..ANCHOR).rev().find(|count| {
            let tail = self.held.len().checked_sub(*count).and_then(|from| self.held.get(from..));
            tail.is_some_and(|tail| matcher.beginnings.contains(tail))
        });
        longest.unwrap_or(0)
    }

    /// Gives everything up to a place of the stream.
    fn let_go(&mut self, to: u64, out: &mut Vec<u8>) {
        let mut spans = std::mem::take(&mut self.spans);
        spans.sort_unstable();
        let mut cursor = self.base.max(self.masked_to.min(to));
        for (start, end) in spans {
            if start >= to {
                self.spans.push((start, end));
                continue;
            }
            if start >= self.masked_to {
                out.extend_from_slice(self.between(cursor, start));
                out.extend_from_slice(MASK);
                self.masked += 1;
            }
            self.masked_to = self.masked_to.max(end);
            cursor = cursor.max(self.masked_to.min(to));
        }
        out.extend_from_slice(self.between(cursor, to));
        let gone = usize::try_from(to - self.base).unwrap_or(usize::MAX).min(self.held.len());
        self.held.drain(..gone);
        self.base = to;
    }

    fn between(&self, from: u64, to: u64) -> &[u8] {
        let place = |at: u64| usize::try_from(at.saturating_sub(self.base)).unwrap_or(usize::MAX);
        self.held.get(place(from)..place(to)).unwrap_or_default()
    }
}

fn state_after<A: Automaton>(automaton: &A, bytes: &[u8]) -> Option<aho_corasick::automaton::StateID> {
    let start = automaton.start_state(Anchored::No).ok()?;
    Some(bytes.iter().fold(start, |state, byte| automaton.next_state(Anchored::No, state, *byte)))
}

/// Reads a form on. Whether it may still become whole; if it is, its place is to be masked.
fn read_on(
    spans: &mut Vec<(u64, u64)>,
    matcher: &Matcher,
    held: &[u8],
    base: u64,
    candidate: &mut Candidate,
) -> bool {
    let form = matcher.forms.get(candidate.form).map(Vec::as_slice).unwrap_or_default();
    let rest = form.get(candidate.seen..).unwrap_or_default();
    let at = usize::try_from(candidate.start.saturating_sub(base)).unwrap_or(usize::MAX);
    let there = held.get(at.saturating_add(candidate.seen)..).unwrap_or_default();
    let count = rest.len().min(there.len());
    if rest.get(..count) != there.get(..count) {
        return false;
    }
    candidate.seen += count;
    if candidate.seen < form.len() {
        return true;
    }
    spans.push((candidate.start, candidate.start + form.len() as u64));
    false
}

#[cfg(test)]
#[path = "mask/tests.rs"]
mod tests;
