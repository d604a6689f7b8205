//! What the guest said, by service.

use crate::test::count::{Counting, Counts};

/// What a service wrote, and whether it ended well.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Section {
    text: String,
    success: bool,
}

/// Finds what `guest.sh` put between `== NAME` and `== NAME ended with STATUS`.
pub(super) fn section(output: &str, name: &str) -> Option<Section> {
    let head = format!("== {name}");
    let end = format!("== {name} ended with ");
    let mut lines = output.lines().skip_while(|line| *line != head).skip(1);
    let mut text = String::new();
    let status = loop {
        let line = lines.next()?;
        if let Some(status) = line.strip_prefix(&end) {
            break status;
        }
        text.push_str(line);
        text.push('\n');
    };
    Some(Section { text, success: status.trim() == "0" })
}

/// The numbers of a section; none is a failure, and so is one in which nothing was tried: names of suites that are
/// another service's leave none.
pub(super) fn counts(section: Option<&Section>) -> Counts {
    let counted = section.map(|s| Counting::Summary.count(&s.text, s.success));
    counted.filter(|counts| counts.passed + counts.failed + counts.skipped > 0).unwrap_or(Counts::FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    // A serial line ends lines with a carriage return too.
    const SAID: &str = "== guest\r\nkernel 6.1\r\n== plain\r\npassed a/b\r\n\r\n5 passed, 0 failed, 1 skipped\r\n\
        == plain ended with 0\r\n== delegated\r\n2 passed, 1 failed, 0 skipped\r\n== delegated ended with 1\r\n";

    fn counted(output: &str, name: &str) -> (u64, u64, u64) {
        let Counts { passed, failed, skipped } = counts(section(output, name).as_ref());
        (passed, failed, skipped)
    }

    #[test]
    fn section_of_each_service_has_its_own_numbers() {
        assert_eq!(counted(SAID, "plain"), (5, 0, 1));
        assert_eq!(counted(SAID, "delegated"), (2, 1, 0));
    }

    #[test]
    fn section_that_is_missing_or_cut_is_a_failure() {
        assert_eq!(counted("", "plain"), (0, 1, 0));
        let cut = SAID.split_once("== plain ended").unwrap().0;
        assert_eq!(counted(cut, "plain"), (0, 1, 0));
        assert_eq!(counted("== plain\nno numbers\n== plain ended with 0\n", "plain"), (0, 1, 0));
        assert_eq!(
            counted("== plain\n0 passed, 0 failed, 0 skipped\n== plain ended with 0\n", "plain"),
            (0, 1, 0)
        );
        let lies = "== plain\n1 passed, 0 failed, 0 skipped\n== plain ended with 101\n";
        assert_eq!(counted(lies, "plain"), (1, 1, 0));
    }
}
