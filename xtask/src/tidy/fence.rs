//! Code that the compiler cannot check lives in `runner/sys` only, and every block says why it is sound.

use super::rust::{code_of, has_word};
use super::{Finding, Tree};

const FENCED: &str = "runner/sys/";

/// Put together, so that the word itself stands in this file only where it is a rule.
const WORD: &str = concat!("un", "safe");

pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, text) in tree.with_extension("rs") {
        let code = code_of(text);
        let raw: Vec<&str> = text.lines().collect();
        for (index, _) in code.lines().enumerate().filter(|(_, line)| has_word(line, WORD)) {
            if !file.starts_with(FENCED) {
                findings.push(Finding::new(
                    file,
                    index + 1,
                    format!("`{WORD}` outside {FENCED}"),
                    "move it into a safe function of ampoule-sys, or use one of rustix's",
                ));
            } else if opens_block(&code, index) && !is_explained(&raw, index) {
                findings.push(Finding::new(
                    file,
                    index + 1,
                    format!("`{WORD}` block without a `// SAFETY:` comment"),
                    "write above it which of the callee's conditions hold, and why",
                ));
            }
        }
    }
    findings
}

/// Whether the word on this line is followed by an opening brace, perhaps on the next line.
fn opens_block(code: &str, index: usize) -> bool {
    let rest: String = code.lines().skip(index).take(2).collect::<Vec<_>>().join(" ");
    rest.split(WORD).skip(1).any(|after| after.trim_start().starts_with('{'))
}

/// Whether a comment stands above, with nothing but lines of the same statement between.
fn is_explained(raw: &[&str], index: usize) -> bool {
    let here = raw.get(index).is_some_and(|line| line.contains("// SAFETY:"));
    let above = raw.get(..index).unwrap_or_default().iter().rev().map(|line| line.trim());
    here || above
        .take_while(|line| !line.is_empty() && (line.starts_with("//") || !line.ends_with([';', '{', '}'])))
        .any(|line| line.starts_with("// SAFETY:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(file: &str, text: &str) -> Vec<usize> {
        let text = text.replace("WORD", WORD);
        check(&Tree::of(&[(file, &text)])).iter().map(|f| f.line).collect()
    }

    #[test]
    fn fence_word_outside_sys_is_red() {
        assert_eq!(lines("agent/src/a.rs", "fn a() {\n    WORD { b() }\n}"), [2]);
        assert_eq!(lines("runner/src/a.rs", "WORD fn a() {}"), [1]);
        assert_eq!(lines("runner/src/a.rs", "// WORD\nlet a = \"WORD\";\n#![forbid(WORD_code)]"), [0; 0]);
    }

    #[test]
    fn fence_block_without_reason_is_red() {
        assert_eq!(lines("runner/sys/src/a.rs", "fn a() {\n    WORD { b() }\n}"), [2]);
        assert_eq!(lines("runner/sys/src/a.rs", "// SAFETY: b.\nlet x = c;\nlet y = WORD { b() };"), [3]);
        assert_eq!(lines("runner/sys/src/a.rs", "let y = WORD\n{ b() };"), [1]);
    }

    #[test]
    fn fence_block_with_reason_is_green() {
        assert_eq!(lines("runner/sys/src/a.rs", "// SAFETY: b takes anything.\nWORD { b() }"), [0; 0]);
        assert_eq!(
            lines("runner/sys/src/a.rs", "// SAFETY: b takes\n// anything.\nlet y =\n    WORD { b() };"),
            [0; 0]
        );
        assert_eq!(lines("runner/sys/src/a.rs", "/// # Safety\n/// Never.\npub WORD fn b() {}"), [0; 0]);
    }
}
