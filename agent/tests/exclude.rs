//! Patterns of what is left out, beside what Git makes of them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use ampoule_agent::inputs::exclude::{Excludes, check_pattern};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Files; the directories are those above them.
const FILES: &[&str] = &[
    "a",
    "b",
    "ab",
    "a.o",
    "b.o",
    "keep.o",
    "#a",
    "!a",
    " a",
    "a b",
    "a[",
    "a]b",
    "[ab]",
    "a*",
    "a\\b",
    "-",
    "A",
    "d/a",
    "d/b",
    "d/a.o",
    "d/keep.o",
    "d/e/a",
    "d/e/b.o",
    "d/e/f/a",
    "d/e/f/ab",
    "e/a",
    "e/d/a",
    "e/d/e/a",
    "target/a",
    "target/d/a.o",
    "d/target/x",
    "src/target",
    "src/main.c",
    "src/a/b/c/a",
    ".hidden",
    "d/.hidden",
    "x/y/z/a",
    "x/y/a",
    "x/a",
    "xy/z",
    "docs/a.md",
    "docs/d/a.md",
    "\u{e4}",
    "d/\u{e4}\u{f6}",
];

struct Repository {
    dir: tempfile::TempDir,
}

impl Repository {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for file in FILES {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        let repository = Self { dir };
        assert!(repository.git(&["init", "-q"]).status().unwrap().success(), "git is needed");
        repository
    }

    fn git(&self, args: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.current_dir(self.dir.path()).args(["-c", "core.ignoreCase=false"]);
        command.args(["-c", "core.excludesFile=/dev/null"]).args(args);
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
        command
    }

    /// The files that Git ignores for these patterns.
    fn ignored(&self, patterns: &[String]) -> BTreeSet<String> {
        fs::write(self.dir.path().join(".gitignore"), patterns.join("\n") + "\n").unwrap();
        let mut child = self
            .git(&["check-ignore", "--no-index", "--stdin", "-z"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all((FILES.join("\0") + "\0").as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        // 1: nothing is ignored.
        assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect()
    }
}

/// The files that are not reached when whatever is left out is not entered.
fn left_out(patterns: &[String]) -> BTreeSet<String> {
    let excludes = Excludes::new(patterns);
    let is_left_out = |file: &&&str| {
        let mut parents: Vec<PathBuf> = Path::new(file).ancestors().map(Path::to_owned).collect();
        parents.pop();
        parents.iter().rev().any(|path| {
            let is_dir = path != Path::new(file);
            excludes.has(path.to_str().unwrap().as_bytes(), is_dir)
        })
    };
    FILES.iter().filter(is_left_out).map(|file| (*file).to_owned()).collect()
}

fn owned(patterns: &[&str]) -> Vec<String> {
    patterns.iter().map(|pattern| (*pattern).to_owned()).collect()
}

#[test]
fn patterns_leave_out_what_git_ignores() {
    let repository = Repository::new();
    let tables: &[&[&str]] = &[
        &["target/", "*.o", "!keep.o"],
        &["*.o", "!keep.o", "d/keep.o"],
        &["!keep.o", "*.o"],
        &["target"],
        &["target/"],
        &["/target"],
        &["/target/"],
        &["src/target/"],
        &["d/", "!d/a"],
        &["d/*", "!d/a"],
        &["d/**", "!d/e/", "!d/e/f/"],
        &["d/e"],
        &["/d/e"],
        &["e/d"],
        &["**/e"],
        &["**/e/a"],
        &["e/**"],
        &["x/**/a"],
        &["x/**a"],
        &["x/*/a"],
        &["x*z"],
        &["x**z"],
        &["x/**/**/a"],
        &["**"],
        &["*"],
        &["*", "!*/", "!*.md"],
        &["/*", "!/docs"],
        &["a"],
        &["/a"],
        &["?"],
        &["??"],
        &["d/?"],
        &["[ab]"],
        &["[!a]"],
        &["[^a]"],
        &["[a-c].o"],
        &["[[:alpha:]]"],
        &["[[:digit:]-]"],
        &["[[:upper:]]"],
        &["[]a]"],
        &["a["],
        &["[a"],
        &["a]b"],
        &["\\[ab\\]"],
        &["\\#a"],
        &["\\!a"],
        &["a\\ b"],
        &[" a"],
        &["a\\*"],
        &["a\\\\b"],
        &["A"],
        &[".*"],
        &["*.*"],
        &["docs/*.md"],
        &["docs/**/*.md"],
        &["**/docs/*.md"],
        &["src/a/**/a"],
        &["src/a/b/c"],
        &["c/a"],
        &["\u{e4}"],
        &["d/\u{e4}?"],
        &["-"],
        &["!a", "a", "!d/a"],
        &["a", "!a", "a"],
        &["foo/"],
        &["a/"],
        &["a//"],
        &["d//a"],
        &["./a"],
        &["d/./a"],
        &["d/../a"],
        &["/**"],
        &["/**/a"],
        &["**/"],
        &["*/"],
        &["d/*/"],
        &["*/a"],
        &["*/*/a"],
    ];
    for patterns in tables {
        let patterns = owned(patterns);
        for pattern in &patterns {
            check_pattern(pattern).unwrap_or_else(|reason| panic!("{pattern:?}: {reason}"));
        }
        assert_eq!(left_out(&patterns), repository.ignored(&patterns), "{patterns:?}");
    }
}

/// The same for patterns that nobody thought of.
#[test]
fn random_patterns_leave_out_what_git_ignores() {
    let repository = Repository::new();
    const PARTS: &[&str] = &[
        "a", "b", "d", "e", "x", "y", "target", ".o", "*", "*", "**", "?", "/", "/", "/", "!", "[ab]",
        "[!b]", "\\", ".", "-", "[", "]", "src", "keep",
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % below
    };
    let (mut tried, mut matched) = (0, 0);
    while tried < 600 {
        let patterns: Vec<String> = (0..1 + random(3))
            .map(|_| (0..1 + random(6)).map(|_| PARTS[random(PARTS.len())]).collect::<String>())
            .collect();
        if patterns.iter().any(|pattern| check_pattern(pattern).is_err()) {
            continue;
        }
        let (ours, theirs) = (left_out(&patterns), repository.ignored(&patterns));
        assert_eq!(ours, theirs, "{patterns:?}");
        tried += 1;
        matched += usize::from(!ours.is_empty());
    }
    assert!(matched > 100, "only {matched} of them left something out");
}

#[test]
fn patterns_that_are_none_are_refused_with_the_remedy() {
    for (pattern, says) in [
        ("", "names nothing"),
        ("!", "names nothing"),
        ("/", "names nothing"),
        ("!/", "names nothing"),
        ("#a", "comment"),
        ("a\nb", "control character"),
        ("a\0", "control character"),
        ("a ", "ends with a blank"),
        ("a\\\\ ", "ends with a blank"),
        ("a\\", "ends with a backslash"),
    ] {
        assert!(check_pattern(pattern).unwrap_err().contains(says), "{pattern:?}");
    }
    for pattern in ["a\\ ", "\\#a", "a\\\\", "!\\!a"] {
        check_pattern(pattern).unwrap();
    }
}

/// A pattern is matched in bounded time, whatever it is.
#[test]
fn pattern_with_many_stars_is_answered_soon() {
    let patterns = vec!["*a".repeat(40) + "b", "**/a".repeat(20) + "/b", "a*".repeat(100) + "[b"];
    let excludes = Excludes::new(&patterns);
    let begun = std::time::Instant::now();
    for depth in [1, 8, 60] {
        let path = vec!["a".repeat(250); depth].join("/");
        assert!(!excludes.has(path.as_bytes(), false));
    }
    assert!(begun.elapsed() < std::time::Duration::from_secs(2), "{:?}", begun.elapsed());
}
