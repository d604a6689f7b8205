//! The cost of an import against the bytes and against the files in it.

use super::intake::Intake;
use super::layout;
use super::median;
use super::usage::{Peak, children};
use super::verdict::{Verdict, Wanted};
use super::volume::Volume;
use ampoule_spec::Sha256;
use ampoule_spec::wire::Content;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

/// Files in a directory.
const WIDTH: usize = 100;

/// What is imported: so many files of so many bytes, as a layer.
struct Size {
    name: &'static str,
    files: usize,
    bytes: usize,
}

const BYTES: [Size; 4] = [
    Size { name: "1 MB", files: 1, bytes: 1 << 20 },
    Size { name: "10 MB", files: 10, bytes: 1 << 20 },
    Size { name: "100 MB", files: 100, bytes: 1 << 20 },
    Size { name: "1 GB", files: 1000, bytes: 1 << 20 },
];
const FILES: [Size; 3] = [
    Size { name: "1,000 files", files: 1_000, bytes: 300 },
    Size { name: "10,000 files", files: 10_000, bytes: 300 },
    Size { name: "100,000 files", files: 100_000, bytes: 300 },
];

/// By how much the largest import, ten times as large as the next, may take more memory than all smaller ones.
const MEMORY: f64 = 1.25;

/// Makes files that compress to about a half, in directories of a hundred.
pub(crate) fn fill(folder: &Path, files: usize, bytes: usize) -> Result<()> {
    let _ = fs::remove_dir_all(folder);
    let mut random = File::open("/dev/urandom")?;
    let mut body = vec![0; bytes];
    for number in 0..files {
        let dir = folder.join(format!("{:04}", number / WIDTH));
        if number % WIDTH == 0 {
            fs::create_dir_all(&dir)?;
        }
        if let Some(half) = body.get_mut(..bytes.div_ceil(2)) {
            random.read_exact(half)?;
        }
        File::create(dir.join(format!("{number:06}")))?.write_all(&body)?;
    }
    Ok(())
}

/// Imports each size on new file systems and prints a table.
pub(crate) fn run(runner: &Path, folder: &Path, runs: usize) -> Result<(Vec<Verdict>, Vec<Value>)> {
    println!(
        "\nImports of gzip layers; medians of {runs} runs, each on a new ext4, memory the most of all runs:"
    );
    println!("{:<14} {:>11} {:>10} {:>14} {:>14}", "", "time", "user+sys", "launcher RSS", "worker RSS");
    let mut rows = Vec::new();
    let mut verdicts = Vec::new();
    for (what, group) in [("bytes", BYTES.as_slice()), ("files", FILES.as_slice())] {
        let mut peaks = Vec::new();
        for size in group {
            let (row, peak) = one(runner, folder, size, runs).with_context(|| size.name)?;
            rows.push(row);
            peaks.push(peak);
        }
        for (who, of) in [("launcher", (|p| p.process) as fn(&Peak) -> u64), ("worker", |p| p.child)] {
            // The smallest has no work for a second thread, whose stack and buffer the others have: a step, no growth.
            let (last, smaller) = peaks.split_last().context("nothing was imported")?;
            let smaller = smaller.iter().map(of).max().unwrap_or(0);
            verdicts.push(Verdict {
                what: format!("{who}'s peak memory, most {what} / fewer"),
                reached: of(last) as f64 / smaller as f64,
                wanted: Wanted::AtMost(MEMORY),
            });
        }
    }
    Ok((verdicts, rows))
}

fn one(runner: &Path, folder: &Path, size: &Size, runs: usize) -> Result<(Value, Peak)> {
    let (tree, tar) = (folder.join("size"), folder.join("size.tar"));
    fill(&tree, size.files, size.bytes)?;
    layout::tar(&tree, &tar)?;
    fs::remove_dir_all(&tree)?;
    let image = layout::of_tar(&tar, &folder.join("size.oci"), "-1")?;
    fs::remove_file(&tar)?;
    let (mut took, mut cpu, mut peak) = (Vec::new(), Vec::new(), Peak::default());
    for _ in 0..runs {
        let volume = Volume::new(folder)?;
        let before = children()?;
        let intake = Intake::start(runner, &volume.dir.join("state"))?;
        let start = Instant::now();
        let layer = Content::OciLayer { sha256: Sha256::new(image.layer.sha256) };
        let seen = intake.import_watched(layer, &image.layer.file)?;
        took.push(start.elapsed().as_secs_f64());
        drop(intake);
        cpu.push(children()? - before);
        peak = Peak { process: peak.process.max(seen.process), child: peak.child.max(seen.child) };
    }
    fs::remove_dir_all(&image.dir)?;
    let (took, cpu) = (median(took), median(cpu));
    println!("{:<14} {took:>9.3} s {cpu:>8.2} s {:>10} KiB {:>10} KiB", size.name, peak.process, peak.child);
    let row = json!({
        "name": size.name, "median_s": took, "cpu_s": cpu,
        "launcher_peak_kib": peak.process, "worker_peak_kib": peak.child,
    });
    Ok((row, peak))
}
