//! Hostile and odd archives: each is refused by its own name, and nothing around the store changes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/mod.rs"]
mod common;

mod archives;
mod images;

use ampoule_store::worker::{self, WorkerResult};
use ampoule_store::{Limits, Refusal};
use archives::*;
use common::*;
use images::*;
use std::collections::BTreeSet;

fn check(world: &World, cases: &[Case]) -> usize {
    let before = world.snapshot();
    let mut wrong = Vec::new();
    for case in cases {
        let error = match world.import(&case.content, &case.source) {
            Err(error) => error,
            Ok(_) => {
                wrong.push(format!("{}: imported, not {}", case.what, case.refusal));
                continue;
            }
        };
        if error.name() != case.refusal {
            wrong.push(format!("{}: {error} ({}), not {}", case.what, error.name(), case.refusal));
        }
        let text = error.to_string();
        assert!(text.len() < 1100 && text.chars().all(|c| c.is_ascii_graphic() || c == ' '), "{text:?}");
        assert!(world.store.find(&case.content).unwrap().is_none());
        if world.snapshot() != before {
            wrong.push(format!("{}: something changed", case.what));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    cases.len()
}

#[test]
fn hostile_archives_are_refused_by_name_and_leave_no_trace() {
    let world = World::fast(Limits::default());
    let mut count = 0;
    let mut seen = BTreeSet::new();
    for cases in [
        names(),
        places(),
        types(),
        extensions(),
        combinations(),
        fields(),
        ends(),
        layers(),
        documents(),
        wrong_digests(),
    ] {
        seen.extend(cases.iter().map(|case| case.refusal));
        count += check(&world, &cases);
    }
    println!("{count} hostile archives");
    assert!(count >= 100, "{count}");
    // Those that are not here have tests of their own: limits below, images, workers and checkouts elsewhere.
    let elsewhere = ["ratio", "too_large", "too_many", "diff_id", "shape", "not_the_commit"];
    for name in Refusal::NAMES {
        assert!(seen.contains(name) || elsewhere.contains(name), "no archive is refused as {name}");
    }
}

#[test]
fn limits_hold_before_anything_is_spent() {
    let limits = Limits { bytes_max: 10_000, entries_max: 20, ..Limits::default() };
    let world = World::fast(limits);
    let many: Vec<_> = (0..21).map(|i| file(format!("f{i}"), "")).collect();
    let implied = [file("a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q/r/s/t/u", "")];
    let again: Vec<_> = (0..41).map(|_| dir("d/")).collect();
    let links: Vec<_> =
        std::iter::once(file("f", "x")).chain((0..20).map(|i| hardlink(format!("l{i}"), "f"))).collect();
    let zeros = tar(&[file("a", "x")]);
    let endless = [&zeros[..], &vec![0; 2 << 20]].concat();
    check(
        &world,
        &[
            entries("too_many", "21 files", &many),
            entries("too_many", "implied directories", &implied),
            entries("too_many", "one directory 41 times", &again),
            entries("too_many", "hard links", &links),
            entries("too_large", "a file that says so", &[file("a", "").size(10_001)]),
            entries("too_large", "two files together", &[file("a", vec![1; 6000]), file("b", "").size(6000)]),
            entries("too_large", "8 GiB", &[file("a", "").size((8 << 30) - 1)]),
            entries(
                "too_large",
                "2^40 by PAX",
                &[pax(record("size", (1_u64 << 40).to_string())), file("a", "")],
            ),
            case("too_large", "zeros without end", endless),
        ],
    );
    // The worker itself stops, not only the launcher behind it.
    let staging = tempfile::tempdir().unwrap();
    let source = tar(&many);
    let result = worker::run(&archive(&source), memory(&source), open_dir(staging.path()), &limits);
    assert!(matches!(result, WorkerResult::Refused { name, .. } if name == "too_many"));
    assert!(std::fs::read_dir(staging.path()).unwrap().count() <= 21);
    let exact: Vec<_> = (0..20).map(|i| file(format!("f{i}"), vec![1; 500])).collect();
    assert!(world.archive(&tar(&exact)).is_ok());
}

#[test]
fn bombs_stop_at_the_ratio() {
    let limits = Limits { ratio_free_bytes: 1 << 20, ..Limits::default() };
    let world = World::fast(limits);
    let bomb = tar(&[file("a", vec![0; 64 << 20])]);
    for (what, packed) in [("gzip", gzip(&bomb)), ("zstd", zst(&bomb))] {
        assert!(packed.len() * 200 < bomb.len(), "{what}");
        check(&world, &[case("ratio", what, packed)]);
    }
    // What is small may be repetitive.
    let small = tar(&[file("a", vec![0; 900 << 10])]);
    assert!(world.archive(&gzip(&small)).is_ok());
    assert!(world.archive(&zst(&small)).is_ok());
}
