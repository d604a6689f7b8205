//! Ten thousand broken archives: none makes the worker panic, and none reaches out of its staging directory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use ampoule_spec::wire::Content;
use ampoule_store::{Limits, worker};
use common::*;
use std::fs;
use std::time::{Duration, Instant};

const ARCHIVES: usize = 10_000;
/// On a machine that is slow or shared, fewer have to do.
const TIME_MAX: Duration = Duration::from_secs(20);

fn seeds() -> Vec<Vec<u8>> {
    let many = tar(&[
        dir("d/"),
        file("d/a", vec![b'a'; 700]),
        symlink("s", "../outside"),
        symlink("t", ".."),
        hardlink("h", "d/a"),
        pax([record("path", "d/p"), record("mtime", "5.5"), record("size", "3")].concat()),
        file("x", "abc"),
        long(b'L', "d/long"),
        file("y", "def").gnu(),
        long(b'K', "../victim"),
        symlink("k", "z").gnu(),
        file("s2/passwd", "x"),
        file("d/.wh.gone", ""),
        file("d/.wh..wh..opq", ""),
        H::new(b'3', "dev/null"),
    ]);
    let small = tar(&[file("outside/passwd", "x"), symlink("outside2", "outside"), file("b", "")]);
    let escape = tar(&[symlink("s", "../outside"), file("s/new", "x")]);
    vec![gzip(&many), zst(&many), gzip(&small), many, small, escape]
}

#[test]
fn mutated_archives_never_panic_and_never_write_outside() {
    const THREADS: usize = 4;
    let start = Instant::now();
    let counts: Vec<_> = std::thread::scope(|scope| {
        let tasks: Vec<_> =
            (0..THREADS as u64).map(|seed| scope.spawn(move || mutate(seed, ARCHIVES / THREADS))).collect();
        tasks.into_iter().map(|task| task.join().expect("a worker panicked")).collect()
    });
    let (done, accepted) = counts.iter().fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
    println!("{done} archives in {:?}, {accepted} accepted", start.elapsed());
    assert!(done == ARCHIVES || start.elapsed() >= TIME_MAX);
    assert!(accepted > done / 50, "the mutations are too coarse to reach the code behind the header");
}

/// Imports so many broken archives; says how many, and how many of them were good after all.
fn mutate(seed: u64, archives: usize) -> (usize, usize) {
    let world = World::fast(Limits::default());
    let staging = world.path("worker");
    let seeds = seeds();
    let limits = Limits { bytes_max: 1 << 20, entries_max: 200, ..Limits::default() };
    let before = world.snapshot();
    let mut random = Random(0x5eed_0002 + seed);
    let (mut done, mut accepted) = (0, 0);
    let start = Instant::now();
    while done < archives && start.elapsed() < TIME_MAX {
        let source = match random.below(4) {
            0 => cut_and_paste(&mut random, &seeds),
            1 => flip(&mut random, &seeds),
            _ => random.header_mutation(&seeds[3..]),
        };
        let digest = sha(b"");
        let content = match random.below(4) {
            0 => Content::Archive { sha256: digest, epoch: EPOCH },
            1 => Content::Directory { tree: None, epoch: EPOCH },
            2 => Content::ImageTar { sha256: digest },
            _ => Content::OciLayer { sha256: digest },
        };
        fs::create_dir(&staging).unwrap();
        let result = worker::run(&content, memory(&source), open_dir(&staging), &limits);
        accepted += usize::from(matches!(result, worker::WorkerResult::Done(_)));
        if let worker::WorkerResult::Refused { name, message, .. } = &result {
            // A failing system call would mean that an archive reached the kernel with something unchecked.
            assert_ne!(name, "io", "{message}");
        }
        fs::remove_dir_all(&staging).unwrap();
        done += 1;
        if done % 500 == 0 {
            assert!(world.snapshot() == before, "something outside changed");
        }
    }
    assert!(world.snapshot() == before, "something outside changed");
    (done, accepted)
}

fn flip(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut source = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(source.len());
        source[at] ^= 1 << random.below(8);
    }
    source
}

fn cut_and_paste(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut source = seeds[random.below(seeds.len())].clone();
    let other = &seeds[random.below(seeds.len())];
    let unit = if random.below(2) == 0 { 512 } else { 1 };
    let place = |random: &mut Random, length: usize| random.below(length / unit + 1) * unit;
    match random.below(3) {
        0 => source.truncate(place(random, source.len())),
        1 => {
            let (from, to) = (place(random, other.len()), place(random, other.len()));
            let part = other[from.min(to)..from.max(to)].to_vec();
            let at = place(random, source.len());
            source.splice(at..at, part);
        }
        _ => {
            let (from, to) = (place(random, source.len()), place(random, source.len()));
            source.drain(from.min(to)..from.max(to));
        }
    }
    source
}
