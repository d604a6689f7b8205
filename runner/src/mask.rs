//! Masking: what a step writes of its own secrets becomes `***`, whatever the reads are cut into.
//!
//! Every form ([`forms`]) of every text ([`texts`]) of a value is looked for by its first bytes ([`anchors`]) and read on
//! from there. What could still become a form is held back: of bytes that begin none, only a suffix that begins a form's
//! first bytes; at most the longest form and what came with its end. At the end of a stream what is held back is no secret,
//! and goes. It guarantees that no form stands in what comes out; it does not know forms that nobody listed.

mod anchors;
mod cursor;
mod forms;
mod texts;
mod values;

use ampoule_spec::SECRET_BYTES_MIN;
use anchors::{ANCHOR, Anchors, Compared, Entry};
use cursor::{Cursor, alike};
use forms::Kind;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::ops::Range;
use texts::{Role, Text, Texts};
pub(crate) use values::Values;

/// What stands where a secret stood.
const MASK: &[u8] = b"***";
/// The most beginnings that are followed at a time. Only values that repeat themselves have more; of those that come then
/// it is not asked whether they become a form: all is masked up to where they would end, and an output is refused.
const CANDIDATES_MAX: usize = 1024;
/// The most bytes of a text of which base64 of base64 is looked for.
const DOUBLED_BYTES_MAX: usize = 2 << 10;
/// Once there are so many forms, lines and fields get no others than themselves and backwards, and nothing its double
/// encodings: first come those of whole values, then fields, then lines.
const MORE_FORMS_MAX: usize = 32 << 10;
/// The most forms at all. The largest values that a step may have need half of them.
const FORMS_MAX: usize = 256 << 10;
/// From so many bytes on a line or field is looked for in outputs even if there is no digit in it.
const PLAIN_PART_BYTES_MIN: usize = 16;

/// The hash by which equal forms are found (FNV-1a); each is compared then.
const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x100_0000_01b3;

/// Why a value cannot be masked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MaskError {
    #[error("a secret has fewer than {SECRET_BYTES_MIN} bytes, which cannot be masked")]
    TooShort,
    #[error("the secrets have more than {FORMS_MAX} forms")]
    TooMany,
}

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Everything that is known.
    Log,
    /// Nothing that may as well be somebody else's: of lines and fields only those that are long or have a digit in them.
    Outputs,
}

/// A form of a text.
#[derive(Debug, Clone, Copy)]
struct Form {
    text: u32,
    bytes: u32,
    kind: Kind,
}

/// The forms of all values of a step.
#[derive(Debug)]
pub(crate) struct Matcher {
    purpose: Purpose,
    texts: Texts,
    forms: Vec<Form>,
    /// The first form with a hash: most encodings of most texts are the same.
    known: HashMap<u32, u32>,
    anchors: Anchors,
}

impl Matcher {
    /// Builds it.
    pub(crate) fn new(purpose: Purpose, values: &Values) -> Result<Self, MaskError> {
        let mut matcher = Self {
            purpose,
            texts: Texts::default(),
            forms: Vec::new(),
            known: HashMap::new(),
            anchors: Anchors::default(),
        };
        matcher.add(values)?;
        Ok(matcher)
    }

    /// Adds values; those that were there stay. Streams have to be [resumed](Stream::resume).
    pub(crate) fn add(&mut self, values: &Values) -> Result<(), MaskError> {
        self.add_all(&values.iter().collect::<Vec<_>>())
    }

    /// Whether this is one of the values.
    pub(crate) fn has(&self, value: &[u8]) -> bool {
        let mut whole = self.texts.all().iter().filter(|text| text.role == Role::Whole);
        whole.any(|text| self.texts.bytes(text.at()) == value)
    }

    /// As [`Self::add`].
    pub(crate) fn add_all(&mut self, values: &[&[u8]]) -> Result<(), MaskError> {
        let from = self.texts.all().len();
        for value in values {
            if value.trim_ascii_end().len() < SECRET_BYTES_MIN {
                return Err(MaskError::TooShort);
            }
            self.texts.add(value);
        }
        for number in from..self.texts.all().len() {
            self.list(number, usize::MAX, |role, bytes| {
                let mut kinds = forms::plain(bytes);
                if matches!(role, Role::Whole | Role::Joined) {
                    kinds.extend(forms::digits(bytes));
                }
                if role == Role::Whole {
                    kinds.extend(forms::quoted(bytes));
                }
                kinds
            })?;
        }
        for wanted in [Role::Whole, Role::Leaf, Role::Line] {
            for number in from..self.texts.all().len() {
                self.list(number, MORE_FORMS_MAX, |role, bytes| {
                    let mut kinds = Vec::new();
                    if role == wanted && role != Role::Whole {
                        kinds.extend(forms::digits(bytes));
                        kinds.extend(forms::quoted(bytes));
                    }
                    if role == wanted && role != Role::Line && bytes.len() <= DOUBLED_BYTES_MAX {
                        kinds.extend(forms::doubled(bytes));
                    }
                    kinds
                })?;
            }
        }
        self.arrange();
        Ok(())
    }

    fn arrange(&mut self) {
        let mut anchors = std::mem::take(&mut self.anchors);
        let begins_with = |form, shorter| self.parting(form, shorter).0 == self.form(shorter).bytes as usize;
        anchors.arrange(|a, b| self.parting(a, b).1, begins_with, |form| self.form(form).bytes);
        self.anchors = anchors;
    }

    fn is_wanted(&self, text: Text, bytes: &[u8]) -> bool {
        let is_part = matches!(text.role, Role::Line | Role::Leaf | Role::JoinedLeaf);
        let is_plain = bytes.len() < PLAIN_PART_BYTES_MIN && !bytes.iter().any(u8::is_ascii_digit);
        self.purpose == Purpose::Log || !is_part || !(is_plain || texts::is_armour(bytes))
    }

    /// Lists a text's forms that are none of another already, up to so many of all.
    fn list(
        &mut self,
        number: usize,
        forms_max: usize,
        kinds: impl Fn(Role, &[u8]) -> Vec<Kind>,
    ) -> Result<(), MaskError> {
        let Some(text) = self.texts.all().get(number).copied() else { return Ok(()) };
        let bytes = self.texts.bytes(text.at());
        if self.forms.len() >= forms_max || !self.is_wanted(text, bytes) {
            return Ok(());
        }
        for kind in kinds(text.role, bytes) {
            let form = Form { text: u32::try_from(number).unwrap_or(u32::MAX), bytes: 0, kind };
            let (hash, bytes, anchor) = self.measure(form);
            let Some(anchor) = anchor.filter(|_| bytes as usize >= ANCHOR) else { continue };
            let form = Form { bytes, ..form };
            let number = u32::try_from(self.forms.len()).unwrap_or(u32::MAX);
            let first = *self.known.entry(hash).or_insert(number);
            if first != number && self.are_equal(first, form) {
                continue;
            }
            if self.forms.len() >= forms_max {
                break;
            }
            if self.forms.len() >= FORMS_MAX {
                return Err(MaskError::TooMany);
            }
            self.forms.push(form);
            self.anchors.add(anchor, number);
        }
        Ok(())
    }

    /// A form's hash, length and anchor.
    fn measure(&self, form: Form) -> (u32, u32, Option<u64>) {
        let (mut hash, mut bytes, mut anchor) = (FNV_BASIS, 0_usize, None);
        let mut place = 0;
        loop {
            let (part, next) = self.part(form, place);
            if part.bytes().is_empty() {
                return ((hash >> 32) as u32, u32::try_from(bytes).unwrap_or(u32::MAX), anchor);
            }
            anchor = anchor.or_else(|| anchors::anchor_of(part.bytes()));
            for byte in part.bytes() {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
            }
            bytes += part.bytes().len();
            place = next;
        }
    }

    fn are_equal(&self, first: u32, form: Form) -> bool {
        let Some(first) = self.forms.get(first as usize) else { return false };
        let mut made = Made::default();
        let mut place = 0;
        loop {
            let (part, next) = self.part(form, place);
            if part.bytes().is_empty() {
                return first.bytes == form.bytes;
            }
            if first.bytes != form.bytes || !self.continues(*first, &mut made, part.bytes()) {
                return false;
            }
            place = next;
        }
    }

    fn form(&self, number: u32) -> Form {
        let none = Form { text: u32::MAX, bytes: 0, kind: Kind::Raw };
        self.forms.get(number as usize).copied().unwrap_or(none)
    }

    /// How many bytes two forms begin with alike, and which is before the other.
    fn parting(&self, a: u32, b: u32) -> (usize, Ordering) {
        let (mut a, mut b) = (Cursor::new(self, self.form(a)), Cursor::new(self, self.form(b)));
        let mut common = 0;
        loop {
            let (of_a, of_b) = (a.rest(), b.rest());
            let count = alike(of_a, of_b);
            common += count;
            match (of_a.get(count), of_b.get(count)) {
                (Some(of_a), Some(of_b)) => return (common, of_a.cmp(of_b)),
                _ if of_a.is_empty() || of_b.is_empty() => return (common, of_a.len().cmp(&of_b.len())),
                _ => {}
            }
            a.skip(count);
            b.skip(count);
        }
    }

    fn compare(&self, number: u32, there: &[u8]) -> Compared {
        let mut form = Cursor::new(self, self.form(number));
        let mut common = 0;
        loop {
            let (bytes, rest) = (form.rest(), there.get(common..).unwrap_or_default());
            let count = alike(bytes, rest);
            common += count;
            match (bytes.get(count), rest.get(count)) {
                _ if bytes.is_empty() => return (Ordering::Less, common),
                (None, _) => form.skip(count),
                (Some(_), None) => return (Ordering::Greater, common),
                (Some(form), Some(there)) => return (form.cmp(there), common),
            }
        }
    }

    fn part(&self, form: Form, place: usize) -> (forms::Part, usize) {
        form.kind.part(self.text(form.text), place)
    }

    fn text(&self, number: u32) -> &[u8] {
        let text = self.texts.all().get(number as usize);
        text.map(|text| self.texts.bytes(text.at())).unwrap_or_default()
    }

    /// Whether a form goes on with these bytes, or has ended before them.
    fn continues(&self, form: Form, made: &mut Made, mut bytes: &[u8]) -> bool {
        if form.kind == Kind::Raw {
            let rest = self.text(form.text).get(made.bytes..).unwrap_or_default();
            let count = rest.len().min(bytes.len());
            made.bytes += count;
            return rest.get(..count) == bytes.get(..count);
        }
        while made.bytes < form.bytes as usize && !bytes.is_empty() {
            let (part, next) = self.part(form, made.place);
            let rest = part.bytes().get(made.of_part..).unwrap_or_default();
            let count = rest.len().min(bytes.len());
            if count == 0 || rest.get(..count) != bytes.get(..count) {
                return false;
            }
            made.bytes += count;
            made.of_part += count;
            if count == rest.len() {
                (made.place, made.of_part) = (next, 0);
            }
            bytes = bytes.get(count..).unwrap_or_default();
        }
        true
    }
}

/// How far a form was made.
#[derive(Debug, Clone, Copy, Default)]
struct Made {
    bytes: usize,
    place: usize,
    /// Bytes of the part that begins at the place.
    of_part: usize,
}

/// A form that has begun.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    /// Where, in the whole stream.
    start: u64,
    form: Form,
    made: Made,
}

/// One stream's state.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// What has not gone yet, and where it begins in the whole stream.
    held: Vec<u8>,
    base: u64,
    /// No anchor begins before that which has not been seen.
    next: u64,
    candidates: Vec<Candidate>,
    /// What is to be masked, and where it ends.
    spans: Vec<Range<u64>>,
    /// Up to here everything is masked and said to be.
    masked_to: u64,
    /// How many masks went out.
    pub(crate) masked: u64,
    /// Of which value the first one was.
    pub(crate) first: Option<u32>,
    /// Whether more began at a time than are followed.
    pub(crate) is_over: bool,
}

impl Stream {
    /// Takes bytes, and gives those that may go.
    pub(crate) fn feed(&mut self, matcher: &Matcher, bytes: &[u8], out: &mut Vec<u8>) {
        self.held.extend_from_slice(bytes);
        let held = std::mem::take(&mut self.held);
        let mut before = std::mem::take(&mut self.candidates);
        before.retain_mut(|candidate| self.goes_on(matcher, candidate, &held));
        self.candidates = before;
        let from = usize::try_from(self.next.saturating_sub(self.base)).unwrap_or(usize::MAX);
        matcher.anchors.find(&held, from, |at, alike| {
            self.begin(matcher, alike, at, held.get(at..).unwrap_or_default());
        });
        self.held = held;
        let end = self.base + self.held.len() as u64;
        let to = end - matcher.anchors.beginning(&self.held) as u64;
        self.next = self.next.max(to);
        let first = self.candidates.iter().map(|candidate| candidate.start).min();
        self.let_go(first.map_or(to, |first| first.min(to)), out);
    }

    /// Gives what was held back: nothing comes any more.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        self.candidates.clear();
        self.let_go(self.base + self.held.len() as u64, out);
    }

    /// Goes on with a matcher that has got more forms: what is held is looked at again.
    pub(crate) fn resume(&mut self) {
        self.candidates.clear();
        self.next = self.base;
    }

    /// An anchor of these forms is at this place of what is held.
    fn begin(&mut self, matcher: &Matcher, alike: &[Entry], at: usize, there: &[u8]) {
        let start = self.base + at as u64;
        if self.candidates.len() < CANDIDATES_MAX {
            let candidate = self.stands(matcher, alike, start, there);
            self.candidates.extend(candidate);
            return;
        }
        self.is_over = true;
        // What nobody has proven is masked, and is no find.
        if let (Purpose::Log, Some(first)) = (matcher.purpose, alike.first()) {
            let form = matcher.form(first.form);
            self.span(matcher, start, form, matcher.anchors.longest(alike).unwrap_or(form.bytes));
        }
    }

    /// Masks the longest of these forms that is whole at a place; the first that goes on behind what is there.
    fn stands(&mut self, matcher: &Matcher, alike: &[Entry], start: u64, there: &[u8]) -> Option<Candidate> {
        let len = |form| matcher.form(form).bytes as usize;
        let standing = anchors::standing(alike, there.len(), len, |form| matcher.compare(form, there));
        if let Some(whole) = standing.whole.map(|whole| matcher.form(whole)) {
            self.span(matcher, start, whole, whole.bytes);
        }
        let form = matcher.form(standing.begun?);
        let mut made = Made::default();
        matcher.continues(form, &mut made, there);
        Some(Candidate { start, form, made })
    }

    /// Reads a form on. Whether it, or another that begins like it, may still become whole; what is, is masked.
    fn goes_on(&mut self, matcher: &Matcher, candidate: &mut Candidate, held: &[u8]) -> bool {
        let at = usize::try_from(candidate.start.saturating_sub(self.base)).unwrap_or(usize::MAX);
        let all = held.get(at..).unwrap_or_default();
        let there = all.get(candidate.made.bytes..).unwrap_or_default();
        let goes = matcher.continues(candidate.form, &mut candidate.made, there);
        if goes && candidate.made.bytes < candidate.form.bytes as usize {
            return true;
        }
        let alike = anchors::anchor_of(all).map_or(&[][..], |anchor| matcher.anchors.alike(anchor));
        match self.stands(matcher, alike, candidate.start, all) {
            Some(other) => {
                *candidate = other;
                true
            }
            None => false,
        }
    }

    /// So many bytes are to be masked, for a form that stands there or may.
    fn span(&mut self, matcher: &Matcher, start: u64, form: Form, bytes: u32) {
        let text = matcher.texts.all().get(form.text as usize);
        self.first = self.first.or(text.map(|text| text.of));
        let span = start..start + u64::from(bytes);
        match self.spans.last_mut() {
            Some(last) if span.start < last.end && last.start < span.end => {
                *last = last.start.min(span.start)..last.end.max(span.end);
            }
            _ => self.spans.push(span),
        }
    }

    /// Gives everything up to a place of the stream.
    fn let_go(&mut self, to: u64, out: &mut Vec<u8>) {
        let mut spans = std::mem::take(&mut self.spans);
        spans.sort_unstable_by_key(|span| (span.start, span.end));
        let mut cursor = self.base.max(self.masked_to.min(to));
        for span in spans {
            if span.start >= to {
                self.spans.push(span);
                continue;
            }
            if span.start >= self.masked_to {
                out.extend_from_slice(self.between(cursor, span.start));
                out.extend_from_slice(MASK);
                self.masked += 1;
            }
            self.masked_to = self.masked_to.max(span.end);
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

#[cfg(test)]
#[path = "mask/tests.rs"]
mod tests;
