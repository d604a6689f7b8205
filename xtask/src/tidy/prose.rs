//! Papers that every release needs.

use super::{Finding, Tree};

pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    match tree.texts.get("CHANGELOG.md") {
        Some(text) if text.lines().any(|line| matches!(line.trim(), "## [Unreleased]" | "## Unreleased")) => {
        }
        Some(_) => findings.push(Finding::new(
            "CHANGELOG.md",
            1,
            "no section for what is not released yet",
            "add `## [Unreleased]` at the top",
        )),
        None => findings.push(Finding::new(
            "CHANGELOG.md",
            1,
            "missing",
            "add it, with a `## [Unreleased]` section",
        )),
    }
    if tree.has("README.md") && !tree.has("docs/glossary.md") {
        findings.push(Finding::new(
            "docs/glossary.md",
            1,
            "missing: one word per idea needs its list",
            "add it; the words are in the design",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(files: &[(&str, &str)]) -> usize {
        check(&Tree::of(files)).len()
    }

    #[test]
    fn prose_missing_papers_are_red() {
        assert_eq!(count(&[]), 1);
        assert_eq!(count(&[("CHANGELOG.md", "# Changelog\n## 1.0\n")]), 1);
        assert_eq!(count(&[("CHANGELOG.md", "## [Unreleased]\n")]), 0);
        assert_eq!(count(&[("CHANGELOG.md", "## [Unreleased]\n"), ("README.md", "")]), 1);
        assert_eq!(
            count(&[("CHANGELOG.md", "## [Unreleased]\n"), ("README.md", ""), ("docs/glossary.md", "")]),
            0
        );
    }
}
