//! Both digests of a file in one pass, beside the programs that take one of them.

use super::median;
use super::verdict::{Verdict, Wanted};
use super::volume::quiet;
use crate::shell;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// How large the file is.
const BYTES: u64 = 1 << 30;

/// Hashes the same file in turn. Everything lies in the page cache, and each process starts, hashes and ends.
pub(crate) fn run(root: &Path, programs: &Path, folder: &Path, runs: usize) -> Result<Verdict> {
    let mut build = shell::cargo(root);
    build.args(["build", "--release", "--locked", "-p", "ampoule-store", "--example", "digests"]);
    shell::run(&mut build)?;
    let file = folder.join("random");
    io::copy(&mut File::open("/dev/urandom")?.take(BYTES), &mut File::create(&file)?)?;
    let both = programs.join("examples/digests");
    let file = file.to_str().context("a path in UTF-8")?;
    let lines: [(&str, Vec<&str>); 3] = [
        ("sha256sum", vec!["sha256sum", file]),
        ("b3sum", vec!["b3sum", file]),
        ("both digests, as the store takes them", vec![both.to_str().context("a path in UTF-8")?, file]),
    ];
    let mut took: [Vec<f64>; 3] = Default::default();
    let mut said: [String; 3] = Default::default();
    for round in 0..=runs {
        for (((_, line), all), said) in lines.iter().zip(&mut took).zip(&mut said) {
            let (program, args) = line.split_first().context("no command")?;
            let start = Instant::now();
            *said = quiet(Command::new(program).args(args))?;
            if round > 0 {
                all.push(start.elapsed().as_secs_f64());
            }
        }
    }
    let [sha256, blake3, both] = &said;
    for one in [sha256, blake3] {
        let digest = one.split_whitespace().next().context("a digest")?;
        ensure!(both.contains(digest), "our digests are {both}, theirs {digest}");
    }
    std::fs::remove_file(file)?;
    let medians = took.map(median);
    println!("\nHashing {} MiB in the page cache; medians of {runs} interleaved runs:", BYTES >> 20);
    for ((name, _), took) in lines.iter().zip(medians) {
        println!("{name:<40} {took:>7.3} s {:>8.2} GB/s", BYTES as f64 / took / 1e9);
    }
    let [sha256, blake3, both] = medians;
    Ok(Verdict {
        what: "both digests / the slower of sha256sum and b3sum, speed".to_owned(),
        reached: sha256.max(blake3) / both,
        wanted: Wanted::AtLeast(0.9),
    })
}
