//! Every target over its seeds, and over every input that once broke something: `regressions/TARGET/…`.
#![allow(clippy::unwrap_used, clippy::panic)]

use ampoule_fuzz::TARGETS;
use std::fs;
use std::path::Path;
use std::process::Command;

fn replay(dir: &Path, run: fn(&[u8])) -> usize {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let mut count = 0;
    for entry in entries {
        run(&fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    count
}

#[test]
fn seeds_and_regressions_break_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let wrote = Command::new(env!("CARGO_BIN_EXE_fuzz-seeds")).arg(temp.path()).status().unwrap();
    assert!(wrote.success());
    let regressions = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    for (name, run) in TARGETS {
        let seeds = replay(&temp.path().join(name), *run);
        println!("{name}: {seeds} seeds, {} regressions", replay(&regressions.join(name), *run));
        assert!(seeds >= 5, "{name}: {seeds} seeds");
        run(b"");
    }
}

/// A target that refuses everything looks at nothing.
#[test]
fn seeds_reach_what_is_looked_at_behind_the_first_refusal() {
    let temp = tempfile::tempdir().unwrap();
    let wrote = Command::new(env!("CARGO_BIN_EXE_fuzz-seeds")).arg(temp.path()).status().unwrap();
    assert!(wrote.success());
    let count = |target: &str, good: fn(&[u8]) -> bool| {
        let entries = fs::read_dir(temp.path().join(target)).unwrap();
        entries.filter(|entry| good(&fs::read(entry.as_ref().unwrap().path()).unwrap())).count()
    };
    assert!(count("tar", ampoule_fuzz::tar::is_read) >= 100);
    assert_eq!(count("oci", ampoule_fuzz::oci::both_read), 3);
    let jobs = count("jobfile", ampoule_fuzz::jobfile::is_planned);
    assert!(jobs >= 5, "{jobs}");
}
