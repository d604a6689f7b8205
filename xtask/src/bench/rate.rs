//! How many sandboxes a second, with two in flight.

use super::contender::{Contender, NEEDED, Place};
use super::launch::Launcher;
use super::worker::Worker;
use super::{build_release, median};
use crate::shell;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// How many are in flight.
const FLIGHT: usize = 2;
/// How long each contender works in a round.
const ROUND: Duration = Duration::from_secs(3);

/// Measures the runner and crun in turn, and prints medians.
pub(crate) fn run(root: &Path, rounds: usize) -> Result<()> {
    shell::install(NEEDED);
    let folder = root.join("target/bench");
    fs::create_dir_all(&folder)?;
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(root).no_deps().exec()?;
    build_release(root, &["ampoule-runner"])?;
    let programs = metadata.target_directory.join("release").into_std_path_buf();
    let place = Place::make(&folder, programs.clone())?;
    let mut lines = (0..FLIGHT).map(|_| Contender::Crun.line(&place)).collect::<Result<Vec<_>>>()?;
    for (number, line) in lines.iter_mut().enumerate() {
        // Names of containers are the host's: two workers must not share them.
        line.argv.iter_mut().for_each(|word| *word = word.replace("{n}", &format!("{number}-{{n}}")));
    }
    let mut workers = lines.iter().map(|line| Worker::start(line, &folder)).collect::<Result<Vec<_>>>()?;
    let mut launcher = Launcher::start(&programs.join("ampoule-runner"), &folder, FLIGHT)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        ours.push(ampoule(&mut launcher)?);
        theirs.push(crun(&mut workers)?);
    }
    let (ours, theirs) = (median(ours), median(theirs));
    println!("{FLIGHT} in flight, medians of {rounds} rounds of {} s:", ROUND.as_secs());
    println!("ampoule {ours:8.1} /s\ncrun    {theirs:8.1} /s\nratio   {:8.2}", ours / theirs);
    Ok(())
}

fn ampoule(launcher: &mut Launcher) -> Result<f64> {
    let begun = Instant::now();
    let mut count = 0_u32;
    for _ in 0..FLIGHT {
        launcher.send()?;
    }
    let mut flying = FLIGHT;
    while flying > 0 {
        let (job, _) = launcher.finished()?;
        launcher.succeeded(&job)?;
        launcher.forget(job)?;
        count += 1;
        if begun.elapsed() < ROUND {
            launcher.send()?;
        } else {
            flying -= 1;
        }
    }
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}

fn crun(workers: &mut [Worker]) -> Result<f64> {
    let begun = Instant::now();
    let counts: Vec<Result<u32>> = std::thread::scope(|scope| {
        let work = |worker| {
            scope.spawn(move || -> Result<u32> {
                let (worker, mut count): (&mut Worker, u32) = (worker, 0);
                while begun.elapsed() < ROUND {
                    worker.once()?;
                    count += 1;
                }
                Ok(count)
            })
        };
        let threads: Vec<_> = workers.iter_mut().map(work).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(Ok(0))).collect()
    });
    let count = counts.into_iter().sum::<Result<u32>>().context("crun")?;
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}
