//! No Rust file grows beyond what one can read in a sitting. (Functions are clippy's business.)

use super::rust::lines_before_tests;
use super::{Finding, Tree};

const LINES_MAX: usize = 500;

pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    tree.with_extension("rs")
        .filter(|(file, _)| !is_test(file))
        .filter_map(|(file, text)| {
            let lines = lines_before_tests(text);
            let message = format!("{lines} lines, {LINES_MAX} are allowed (tests not counted)");
            (lines > LINES_MAX)
                .then(|| Finding::new(file, LINES_MAX + 1, message, "split the file by what it is about"))
        })
        .collect()
}

fn is_test(file: &str) -> bool {
    file.ends_with("/tests.rs") || file.split('/').rev().skip(1).any(|folder| folder == "tests")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_long_files_are_red_and_tests_do_not_count() {
        let long = "x\n".repeat(501);
        assert_eq!(check(&Tree::of(&[("a/src/a.rs", &long)])).len(), 1);
        let fits = format!("{}#[cfg(test)]\nmod tests {{\n{long}}}\n", "x\n".repeat(500));
        assert_eq!(check(&Tree::of(&[("a/src/a.rs", &fits), ("a/src/tests.rs", &long)])).len(), 0);
        assert_eq!(check(&Tree::of(&[("tests/src/a.rs", &long), ("a/tests/b.rs", &long)])).len(), 0);
    }
}
