//! What was wanted, what was reached, and whether that is enough.

use serde_json::{Value, json};

/// A figure that must not be higher, or lower, than a bound.
pub(crate) struct Verdict {
    pub(crate) what: String,
    pub(crate) reached: f64,
    pub(crate) wanted: Wanted,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted {
    AtMost(f64),
    AtLeast(f64),
}

impl Verdict {
    pub(crate) fn passes(&self) -> bool {
        match self.wanted {
            Wanted::AtMost(bound) => self.reached <= bound,
            Wanted::AtLeast(bound) => self.reached >= bound,
        }
    }

    fn row(&self) -> (String, &'static str) {
        let wanted = match self.wanted {
            Wanted::AtMost(bound) => format!("<= {bound}"),
            Wanted::AtLeast(bound) => format!(">= {bound}"),
        };
        (wanted, if self.passes() { "PASS" } else { "MISS" })
    }
}

/// Prints all of them; false if one is missed. They go into `target/bench` with the rest too.
pub(crate) fn print(verdicts: &[Verdict]) -> (bool, Vec<Value>) {
    println!("\n{:<58} {:>9} {:>9}", "", "wanted", "reached");
    let mut rows = Vec::new();
    for verdict in verdicts {
        let (wanted, said) = verdict.row();
        println!("{:<58} {wanted:>9} {:>9.2}  {said}", verdict.what, verdict.reached);
        rows.push(
            json!({ "what": verdict.what, "wanted": wanted, "reached": verdict.reached, "said": said }),
        );
    }
    (verdicts.iter().all(Verdict::passes), rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bound_that_is_missed_fails_the_whole() {
        let verdict = |reached, wanted| Verdict { what: "x".into(), reached, wanted };
        assert!(verdict(1.3, Wanted::AtMost(1.3)).passes());
        assert!(!verdict(1.31, Wanted::AtMost(1.3)).passes());
        assert!(!verdict(0.89, Wanted::AtLeast(0.9)).passes());
        let (all, rows) =
            print(&[verdict(1.0, Wanted::AtLeast(0.9)), verdict(f64::NAN, Wanted::AtMost(1.0))]);
        assert!(!all && rows.len() == 2);
    }
}
