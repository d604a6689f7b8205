//! How many tests a suite ran, from what it printed.

use std::ops::Add;

/// Numbers of tests by result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    pub(crate) const FAILED: Self = Self { passed: 0, failed: 1, skipped: 0 };
    pub(crate) const SKIPPED: Self = Self { passed: 0, failed: 0, skipped: 1 };
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

/// Where a suite says its numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Counting {
    /// Nowhere: the command is one test.
    Status,
    /// `test result: ok. 5 passed; 0 failed; 1 ignored; …`, any number of times.
    CargoTest,
    /// `Summary [ 0.01s] 5 tests run: 5 passed, 0 skipped`.
    Nextest,
    /// A last line `5 passed, 0 failed, 1 skipped`.
    Summary,
}

impl Counting {
    /// Reads the numbers. A command that fails without a failed test, or succeeds without saying its
    /// numbers, has failed.
    pub(crate) fn count(self, output: &str, success: bool) -> Counts {
        let found = match self {
            Self::Status => Some(Counts { passed: u64::from(success), ..Counts::default() }),
            Self::CargoTest => output
                .lines()
                .filter_map(|line| line.trim().strip_prefix("test result: ")?.split_once(". "))
                .map(|(_, numbers)| tally(numbers, ';'))
                .reduce(Add::add),
            Self::Nextest => output
                .lines()
                .filter(|line| line.trim_start().starts_with("Summary ["))
                .filter_map(|line| line.split_once(" run: "))
                .map(|(_, numbers)| tally(numbers, ','))
                .next_back(),
            Self::Summary => output.trim_end().lines().next_back().and_then(|line| {
                let words: Vec<&str> = line.split(' ').collect();
                matches!(words.as_slice(), [_, "passed,", _, "failed,", _, "skipped"])
                    .then(|| tally(line, ','))
            }),
        };
        let counts = found.unwrap_or_default();
        let unsaid = found.is_none() || (!success && counts.failed == 0);
        if unsaid { counts + Counts::FAILED } else { counts }
    }
}

/// Adds up `3 passed (1 slow, 1 flaky)`, `1 timed out`, `2 skipped`.
fn tally(text: &str, separator: char) -> Counts {
    let mut plain = String::new();
    let mut depth = 0u32;
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            c if depth == 0 => plain.push(c),
            _ => {}
        }
    }
    let mut counts = Counts::default();
    for part in plain.split(separator) {
        let Some((number, what)) = part.trim().split_once(' ') else { continue };
        let Ok(number) = number.parse::<u64>() else { continue };
        match what.trim() {
            "passed" => counts.passed += number,
            "failed" | "exec failed" | "timed out" => counts.failed += number,
            "skipped" | "ignored" => counts.skipped += number,
            _ => {}
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(passed: u64, failed: u64, skipped: u64) -> Counts {
        Counts { passed, failed, skipped }
    }

    #[test]
    fn cargo_test_results_are_added_up() {
        let output = "running 2 tests\ntest result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 9 filtered out\n\
            test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured\n";
        assert_eq!(Counting::CargoTest.count(output, false), counts(5, 1, 1));
    }

    #[test]
    fn nextest_summary_is_read_with_its_remarks() {
        let line = "     Summary [   0.5s] 7 tests run: 4 passed (1 slow, 2 flaky), 1 failed, 1 exec failed, \
            1 timed out, 2 skipped";
        assert_eq!(Counting::Nextest.count(line, false), counts(4, 3, 2));
        assert_eq!(
            Counting::Nextest.count(" Summary [ 0.5s] 2/5 tests run: 2 passed, 0 skipped", true),
            counts(2, 0, 0)
        );
    }

    #[test]
    fn summary_must_be_the_last_line() {
        assert_eq!(Counting::Summary.count("x\n3 passed, 0 failed, 2 skipped\n", true), counts(3, 0, 2));
        assert_eq!(Counting::Summary.count("3 passed, 0 failed, 2 skipped\nx\n", true), counts(0, 1, 0));
    }

    #[test]
    fn silent_failure_and_silent_success_fail() {
        assert_eq!(Counting::Status.count("", false), counts(0, 1, 0));
        assert_eq!(Counting::CargoTest.count("error: could not compile", false), counts(0, 1, 0));
        assert_eq!(Counting::Nextest.count("", true), counts(0, 1, 0));
        assert_eq!(Counting::Summary.count("3 passed, 0 failed, 0 skipped", false), counts(3, 1, 0));
    }
}
