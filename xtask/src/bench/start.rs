//! Time to start, run and end /bin/true: contenders take turns, so that a busy moment hits all alike.

use super::build_release;
use super::contender::{Contender, NEEDED, Place};
use super::worker::Worker;
use crate::shell;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

struct Lane {
    contender: Contender,
    worker: Worker,
    took: Vec<Duration>,
    phases: BTreeMap<String, Vec<Duration>>,
}

struct Numbers {
    median: Duration,
    p90: Duration,
}

/// Measures, prints a table and writes `target/bench/start.json`.
pub(crate) fn run(root: &Path, runs: usize, warm_up: usize) -> Result<()> {
    ensure!(runs > 0, "--runs must be at least 1");
    shell::install(NEEDED);
    let folder = root.join("target/bench");
    fs::create_dir_all(&folder)?;
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(root).no_deps().exec()?;
    build_release(root, &["ampoule-runner"])?;
    let place = Place::make(&folder, metadata.target_directory.join("release").into_std_path_buf())?;
    let (mut lanes, mut absent) = (Vec::new(), Vec::new());
    for contender in Contender::ALL {
        match lane(contender, &place, &folder) {
            Ok(lane) => lanes.push(lane),
            Err(error) => absent.push((contender, format!("{error:#}"))),
        }
    }
    for round in 0..warm_up + runs {
        for lane in &mut lanes {
            let timed = lane.worker.once().with_context(|| lane.contender.name())?;
            if round >= warm_up {
                lane.took.push(timed.took);
                for (phase, micros) in timed.phases {
                    lane.phases.entry(phase).or_default().push(Duration::from_micros(micros));
                }
            }
        }
    }
    report(&folder, lanes, &absent)
}

/// Sets a contender up and lets it run once, to see that it can.
fn lane(contender: Contender, place: &Place, folder: &Path) -> Result<Lane> {
    let line = contender.line(place)?;
    let mut worker = Worker::start(&line, folder)?;
    worker.once()?;
    Ok(Lane { contender, worker, took: Vec::new(), phases: BTreeMap::new() })
}

fn report(folder: &Path, lanes: Vec<Lane>, absent: &[(Contender, String)]) -> Result<()> {
    let ours = lanes.iter().filter(|lane| lane.contender == Contender::Ampoule);
    let phases: Vec<(String, Numbers)> =
        ours.flat_map(|lane| lane.phases.clone()).map(|(name, took)| (name, numbers(took))).collect();
    let measured: Vec<(Contender, usize, Numbers)> =
        lanes.into_iter().map(|lane| (lane.contender, lane.took.len(), numbers(lane.took))).collect();
    let reference = measured.iter().find(|(c, ..)| *c == Contender::REFERENCE).map(|(_, _, n)| n.median);
    println!("{:<12} {:>5} {:>12} {:>12} {:>9}", "", "runs", "median", "p90", "/ bwrap");
    let mut rows = Vec::new();
    for (contender, runs, n) in &measured {
        let ratio = reference.map(|r| n.median.as_secs_f64() / r.as_secs_f64());
        let shown = ratio.map_or_else(|| "-".into(), |r| format!("{r:.2}"));
        let micros = |d: Duration| format!("{} us", d.as_micros());
        println!(
            "{:<12} {runs:>5} {:>12} {:>12} {shown:>9}",
            contender.name(),
            micros(n.median),
            micros(n.p90)
        );
        rows.push(json!({
            "name": contender.name(), "runs": runs, "ratio": ratio,
            "median_ns": nanos(n.median), "p90_ns": nanos(n.p90),
        }));
    }
    for (contender, why) in absent {
        println!("{:<12} not measured: {why}", contender.name());
        rows.push(json!({ "name": contender.name(), "absent": why }));
    }
    println!(
        "\nWhere the time of ampoule goes (medians of the same runs; the rest is exec, admission and fsync):"
    );
    let mut parts = Vec::new();
    for (phase, n) in &phases {
        println!("  {phase:<40} {:>8} us", n.median.as_micros());
        parts.push(json!({ "phase": phase, "median_ns": nanos(n.median), "p90_ns": nanos(n.p90) }));
    }
    let file = folder.join("start.json");
    let all = json!({
        "bench": "start", "reference": Contender::REFERENCE.name(), "contenders": rows, "phases": parts,
    });
    fs::write(&file, serde_json::to_string_pretty(&all)? + "\n").with_context(|| file.display().to_string())
}

fn nanos(d: Duration) -> Value {
    u64::try_from(d.as_nanos()).map_or(Value::Null, Value::from)
}

fn numbers(mut took: Vec<Duration>) -> Numbers {
    took.sort();
    let at = |tenths: usize| {
        let index = (took.len() * tenths / 10).min(took.len().saturating_sub(1));
        took.get(index).copied().unwrap_or_default()
    };
    Numbers { median: at(5), p90: at(9) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_order_statistics() {
        let took: Vec<Duration> = (1..=100).rev().map(Duration::from_micros).collect();
        let n = numbers(took);
        assert_eq!((n.median, n.p90), (Duration::from_micros(51), Duration::from_micros(91)));
        assert_eq!(numbers(vec![Duration::from_micros(7)]).p90, Duration::from_micros(7));
    }
}
