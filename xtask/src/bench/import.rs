//! What an import of an image costs beside plain unpacking and beside others' imports, and hashing beside hashing.

use super::intake::Intake;
use super::layout::{self, Layout, TAG};
use super::usage::{Peak, children};
use super::verdict::{self, Verdict, Wanted};
use super::volume::{Volume, quiet};
use super::{build_release, median};
use crate::shell::{self, Needed};
use ampoule_spec::Sha256;
use ampoule_spec::wire::Content;
use anyhow::{Context, Result, ensure};
use rustix::fs::sync;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// What is compared with, and what makes the image.
const NEEDED: &[Needed] = &[
    Needed { probe: &["mmdebstrap", "--version"], package: "mmdebstrap" },
    Needed { probe: &["umoci", "--version"], package: "umoci" },
    Needed { probe: &["podman", "--version"], package: "podman" },
    Needed { probe: &["skopeo", "--version"], package: "skopeo" },
    Needed { probe: &["b3sum", "--version"], package: "b3sum" },
];

/// Who unpacks the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    /// `gzip -dc | tar x`: no digest, no check, nothing durable.
    Plain,
    /// The same, and the file system synced behind it.
    PlainSynced,
    Ampoule,
    /// A launcher that is started, and finds the image in its store.
    Again,
    Umoci,
    Podman,
    Skopeo,
}

impl Lane {
    const ALL: [Self; 7] =
        [Self::Plain, Self::PlainSynced, Self::Ampoule, Self::Again, Self::Umoci, Self::Podman, Self::Skopeo];

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "gzip -dc | tar x",
            Self::PlainSynced => "gzip -dc | tar x, then sync",
            Self::Ampoule => "ampoule",
            Self::Again => "ampoule, second import",
            Self::Umoci => "umoci unpack",
            Self::Podman => "podman pull",
            Self::Skopeo => "skopeo copy",
        }
    }
}

/// One run.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    took: f64,
    /// User and system time of all processes.
    cpu: f64,
    peak: Peak,
}

/// Measures, prints tables and writes `target/bench/import.json`. False if something that was wanted is missed.
pub(crate) fn run(root: &Path, runs: usize) -> Result<bool> {
    ensure!(runs > 0, "--runs must be at least 1");
    ensure!(shell::is_root(), "needs root: owners are kept, and file systems are mounted");
    let missing = shell::install(NEEDED);
    ensure!(missing.is_empty(), "missing: {}", missing.join(" "));
    let folder = root.join("target/bench/import");
    fs::create_dir_all(&folder)?;
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(root).no_deps().exec()?;
    let programs = metadata.target_directory.join("release").into_std_path_buf();
    build_release(root, &["ampoule-runner"])?;
    let image = layout::debian(&folder)?;
    let bench = Bench { runner: programs.join("ampoule-runner"), folder, image };
    let mut measured: Vec<(Lane, Vec<Run>)> = Lane::ALL.map(|lane| (lane, Vec::new())).into();
    for round in 0..=runs {
        for (lane, all) in &mut measured {
            let run = bench.once(*lane).with_context(|| lane.name())?;
            // The first fills caches.
            if round > 0 {
                all.push(run);
            }
        }
    }
    let (mut verdicts, rows) = bench.report(&measured, runs);
    verdicts.push(super::hashing::run(root, &programs, &bench.folder, runs)?);
    let (all, verdicts) = verdict::print(&verdicts);
    let file = root.join("target/bench/import.json");
    let text = json!({ "bench": "import", "runs": runs, "lanes": rows, "verdicts": verdicts });
    fs::write(file, serde_json::to_string_pretty(&text)? + "\n")?;
    Ok(all)
}

struct Bench {
    runner: PathBuf,
    folder: PathBuf,
    image: Layout,
}

impl Bench {
    /// One run on a new file system.
    fn once(&self, lane: Lane) -> Result<Run> {
        let volume = Volume::new(&self.folder)?;
        let layer = self.image.layer.file.display();
        let image = format!("{}:{TAG}", self.image.dir.display());
        let at = |name: &str| volume.dir.join(name).display().to_string();
        let into = at("tree");
        fs::create_dir_all(&into)?;
        let plain = format!("gzip -dc {layer} | tar x --numeric-owner -C {into}");
        let line = match lane {
            Lane::Ampoule => return self.ampoule(&volume.dir),
            Lane::Again => return self.again(&volume.dir),
            Lane::Plain => vec!["sh".into(), "-c".into(), plain],
            Lane::PlainSynced => vec!["sh".into(), "-c".into(), format!("{plain} && sync -f {into}")],
            Lane::Umoci => ["umoci", "unpack", "--image", &image, &at("bundle")].map(str::to_owned).into(),
            Lane::Podman => {
                let (root, run, image) = (at("root"), at("run"), format!("oci:{image}"));
                let line = ["podman", "--root", &root, "--runroot", &run, "--storage-driver", "overlay"];
                line.into_iter().chain(["pull", "--quiet", &image]).map(str::to_owned).collect()
            }
            Lane::Skopeo => {
                let to = format!("containers-storage:[overlay@{}+{}]{TAG}:latest", at("root"), at("run"));
                let line = ["skopeo", "--insecure-policy", "copy", "--quiet", &format!("oci:{image}"), &to];
                line.map(str::to_owned).into()
            }
        };
        let (program, args) = line.split_first().context("no command")?;
        timed(|| quiet(Command::new(program).args(args)).map(|_| Peak::default()))
    }

    /// From the first request to the answer that manifest, configuration and layer are there, durable.
    fn ampoule(&self, volume: &Path) -> Result<Run> {
        let mut took = Duration::ZERO;
        let mut run = timed(|| {
            let intake = Intake::start(&self.runner, &volume.join("state"))?;
            let start = Instant::now();
            let peak = self.import(&intake)?;
            took = start.elapsed();
            Ok(peak)
        })?;
        run.took = took.as_secs_f64();
        Ok(run)
    }

    fn import(&self, intake: &Intake) -> Result<Peak> {
        let image = &self.image;
        let layer = Content::OciLayer { sha256: Sha256::new(image.layer.sha256) };
        let peak = intake.import_watched(layer, &image.layer.file)?;
        intake.import(Content::OciConfig { sha256: Sha256::new(image.config.sha256) }, &image.config.file)?;
        intake.import(self.manifest(), &image.manifest.file)?;
        Ok(peak)
    }

    fn manifest(&self) -> Content {
        Content::OciManifest { sha256: Sha256::new(self.image.manifest.sha256) }
    }

    /// From the exec of a launcher to its exit, with the image in its store.
    fn again(&self, volume: &Path) -> Result<Run> {
        let state = volume.join("state");
        self.import(&Intake::start(&self.runner, &state)?)?;
        sync();
        timed(|| {
            let intake = Intake::start(&self.runner, &state)?;
            ensure!(intake.find(self.manifest())?.is_some(), "the image is not in the store");
            Ok(Peak::default())
        })
    }

    fn report(&self, measured: &[(Lane, Vec<Run>)], runs: usize) -> (Vec<Verdict>, Vec<Value>) {
        let of = |lane: Lane, what: fn(&Run) -> f64| {
            let all = measured.iter().find(|(other, _)| *other == lane).map(|(_, all)| all.as_slice());
            median(all.unwrap_or_default().iter().map(what).collect())
        };
        let took = |lane| of(lane, |run| run.took);
        let (bytes, layer) = (self.image.unpacked >> 20, self.image.layer.bytes >> 20);
        println!(
            "\nA Debian of {bytes} MiB in a gzip layer of {layer} MiB; medians of {runs} interleaved runs, \
             each on a new ext4:"
        );
        println!(
            "{:<30} {:>9} {:>10} {:>9} {:>14} {:>14}",
            "", "time", "user+sys", "/ plain", "launcher RSS", "worker RSS"
        );
        let mut rows = Vec::new();
        for (lane, all) in measured {
            let ratio = took(*lane) / took(Lane::Plain);
            let cpu = of(*lane, |run| run.cpu);
            let process = all.iter().map(|run| run.peak.process).max().unwrap_or(0);
            let child = all.iter().map(|run| run.peak.child).max().unwrap_or(0);
            let kib = |peak: u64| if peak == 0 { "-".to_owned() } else { format!("{peak} KiB") };
            println!(
                "{:<30} {:>7.3} s {cpu:>8.2} s {ratio:>9.2} {:>14} {:>14}",
                lane.name(),
                took(*lane),
                kib(process),
                kib(child)
            );
            let seconds: Vec<f64> = all.iter().map(|run| run.took).collect();
            rows.push(json!({
                "name": lane.name(), "median_s": took(*lane), "cpu_s": cpu, "ratio": ratio, "all_s": seconds,
                "launcher_peak_kib": process, "worker_peak_kib": child,
            }));
        }
        let ratio = |what: &str, beside: Lane, bound: f64| Verdict {
            what: format!("import / {what}"),
            reached: took(Lane::Ampoule) / took(beside),
            wanted: Wanted::AtMost(bound),
        };
        let verdicts = vec![
            ratio("gzip -dc | tar x", Lane::Plain, 1.3),
            ratio("umoci unpack", Lane::Umoci, 1.0),
            ratio("podman pull", Lane::Podman, 1.0),
            ratio("skopeo copy", Lane::Skopeo, 1.0),
            Verdict {
                what: "second import, milliseconds".to_owned(),
                reached: took(Lane::Again) * 1e3,
                wanted: Wanted::AtMost(50.0),
            },
        ];
        (verdicts, rows)
    }
}

/// Time, and processor time of what was waited for.
fn timed(work: impl FnOnce() -> Result<Peak>) -> Result<Run> {
    let (start, before) = (Instant::now(), children()?);
    let peak = work()?;
    Ok(Run { took: start.elapsed().as_secs_f64(), cpu: children()? - before, peak })
}
