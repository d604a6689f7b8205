//! Reading a form along, to compare it with another or with what stands somewhere.

use super::forms::{Kind, Part};
use super::{Form, Matcher};

/// The bytes of a form from its beginning on, as many at a time as are there.
pub(super) struct Cursor<'m> {
    matcher: &'m Matcher,
    form: Form,
    part: Part,
    /// The place behind the part, or of a text as it is.
    next: usize,
    of_part: usize,
}

impl<'m> Cursor<'m> {
    pub(super) fn new(matcher: &'m Matcher, form: Form) -> Self {
        Self { matcher, form, part: Part::new(), next: 0, of_part: 0 }
    }

    /// What comes next; nothing at the end.
    pub(super) fn rest(&mut self) -> &[u8] {
        if self.form.kind == Kind::Raw {
            return self.matcher.text(self.form.text).get(self.next..).unwrap_or_default();
        }
        if self.of_part >= self.part.bytes().len() {
            (self.part, self.next) = self.matcher.part(self.form, self.next);
            self.of_part = 0;
        }
        self.part.bytes().get(self.of_part..).unwrap_or_default()
    }

    pub(super) fn skip(&mut self, count: usize) {
        match self.form.kind {
            Kind::Raw => self.next += count,
            _ => self.of_part += count,
        }
    }
}

/// How many bytes these begin with alike.
pub(super) fn alike(a: &[u8], b: &[u8]) -> usize {
    const AT_ONCE: usize = 64;
    let pairs = a.chunks(AT_ONCE).zip(b.chunks(AT_ONCE));
    let whole: usize = pairs.take_while(|(a, b)| a == b).map(|(a, _)| a.len()).sum();
    let [a, b] = [a, b].map(|of| of.get(whole..).unwrap_or_default());
    whole + a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
