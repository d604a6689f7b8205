//! Whether a job begins later because it is given more, and what imports cost against size.

use super::usage::children;
use super::verdict::{self, Verdict, Wanted};
use super::volume::{Volume, quiet};
use super::{build_release, layout, median, sizes};
use crate::shell::{self, Needed};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// What the images have for a root file system.
const NEEDED: &[Needed] = &[Needed { probe: &["busybox", "true"], package: "busybox-static" }];

/// The two kinds of job of a comparison, and by how much the larger may be slower.
struct Pair {
    what: &'static str,
    small: &'static str,
    large: &'static str,
    bound: f64,
}

const PAIRS: [Pair; 5] = [
    Pair { what: "start to exit, image of 1 GB / of 1 MB", small: "small", large: "large", bound: 1.1 },
    Pair {
        what: "start to exit, OCI image of 1 GB / of 1 MB",
        small: "oci-small",
        large: "oci-large",
        bound: 1.1,
    },
    Pair { what: "start to exit, archive of 100,000 files / of 1", small: "one", large: "many", bound: 1.2 },
    Pair {
        what: "start to exit, directory of 100,000 files / of 1, by digest",
        small: "pinned-one",
        large: "pinned-many",
        bound: 1.2,
    },
    // Nobody says what is in it, so it is read.
    Pair {
        what: "start to exit, directory of 100,000 files / of 1, read",
        small: "dir-one",
        large: "dir-many",
        bound: 1.2,
    },
];

/// Measures, prints tables and writes `target/bench/staging.json`. False if something that was wanted is missed.
pub(crate) fn run(root: &Path, runs: usize) -> Result<bool> {
    ensure!(runs > 0, "--runs must be at least 1");
    ensure!(shell::is_root(), "the hermetic profile needs root");
    let missing = shell::install(NEEDED);
    ensure!(missing.is_empty(), "missing: {}", missing.join(" "));
    let folder = root.join("target/bench/staging");
    fs::create_dir_all(&folder)?;
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(root).no_deps().exec()?;
    let programs = metadata.target_directory.join("release").into_std_path_buf();
    build_release(root, &["ampoule-runner", "ampoule"])?;
    let place = Place { folder, programs };
    place.make()?;
    let (mut verdicts, jobs) = place.starts(runs)?;
    let (more, costs) = sizes::run(&place.programs.join("ampoule-runner"), &place.folder, runs.div_ceil(3))?;
    verdicts.extend(more);
    let (all, verdicts) = verdict::print(&verdicts);
    let text =
        json!({ "bench": "staging", "runs": runs, "jobs": jobs, "costs": costs, "verdicts": verdicts });
    fs::write(root.join("target/bench/staging.json"), serde_json::to_string_pretty(&text)? + "\n")?;
    Ok(all)
}

struct Place {
    folder: PathBuf,
    programs: PathBuf,
}

impl Place {
    /// Images, archives, directories and job files.
    fn make(&self) -> Result<()> {
        let at = |name: &str| self.folder.join(name);
        let image = at("image");
        let _ = fs::remove_dir_all(&image);
        fs::create_dir_all(image.join("bin"))?;
        fs::copy(
            quiet(Command::new("sh").args(["-c", "command -v busybox"]))?.trim(),
            image.join("bin/true"),
        )?;
        layout::tar(&image, &at("small.tar"))?;
        sizes::fill(&image.join("data"), 1000, 1 << 20)?;
        layout::tar(&image, &at("large.tar"))?;
        fs::remove_dir_all(&image)?;
        for (name, files) in [("one", 1), ("many", 100_000)] {
            sizes::fill(&at(name), files, 300)?;
            layout::tar(&at(name), &at(&format!("{name}.tar")))?;
        }
        for name in ["small", "large"] {
            let tar = at(&format!("{name}.tar"));
            let oci = at(&format!("oci-{name}"));
            let image = layout::of_tar(&tar, &oci, "-1")?;
            let pinned = format!(
                "oci:{}:{}@sha256:{}",
                oci.display(),
                layout::TAG,
                hex::encode(image.manifest.sha256)
            );
            self.job(&format!("oci-{name}"), &pinned, "")?;
            self.job(name, &pinned_tar(&tar)?, "")?;
        }
        let image = pinned_tar(&at("small.tar"))?;
        for name in ["one", "many"] {
            let (tar, dir) = (at(&format!("{name}.tar")), at(name));
            let sha256 = hex::encode(layout::digest(&tar)?.0);
            let source = format!("tar = {{ path = \"{}\", sha256 = \"{sha256}\" }}", tar.display());
            self.job(name, &image, &source)?;
            let source = format!("path = \"{}\"", dir.display());
            self.job(&format!("dir-{name}"), &image, &source)?;
            let pinned = format!("pinned-{name}");
            self.job(&pinned, &image, &source)?;
            let mut pin = Command::new(self.programs.join("ampoule"));
            pin.arg("pin").arg(self.folder.join(format!("{pinned}.toml"))).args(["--path", "input"]);
            quiet(&mut pin)?;
        }
        Ok(())
    }

    fn job(&self, name: &str, image: &str, source: &str) -> Result<()> {
        let mut text =
            format!("ampoule = 1\nname = \"bench\"\nprofile = \"hermetic\"\nimage = \"{image}\"\n");
        if !source.is_empty() {
            write!(text, "[[input]]\nname = \"input\"\n{source}\nmount = \"/build/input\"\n")?;
        }
        text.push_str("[[step]]\nname = \"true\"\nrun = [\"/bin/true\"]\n");
        Ok(fs::write(self.folder.join(format!("{name}.toml")), text)?)
    }

    /// All jobs in turn through one store; what the first runs import is not counted.
    fn starts(&self, runs: usize) -> Result<(Vec<Verdict>, Vec<serde_json::Value>)> {
        let volume = Volume::new(&self.folder)?;
        let names: Vec<&str> = PAIRS.iter().flat_map(|pair| [pair.small, pair.large]).collect();
        let mut measured: Vec<(&str, f64, Vec<f64>, Vec<f64>)> =
            names.into_iter().map(|name| (name, 0.0, Vec::new(), Vec::new())).collect();
        for round in 0..runs + 2 {
            for (name, first, took, cpu) in &mut measured {
                let (start, before) = (Instant::now(), children()?);
                self.start(&volume, name)?;
                let seconds = start.elapsed().as_secs_f64();
                match round {
                    0 => *first = seconds,
                    1 => {}
                    _ => {
                        took.push(seconds);
                        cpu.push(children()? - before);
                    }
                }
            }
        }
        println!(
            "\n`ampoule run` of /bin/true, exec to exit, evidence signed; medians of {runs} interleaved runs:"
        );
        println!("{:<12} {:>16} {:>14} {:>10}", "", "first use", "second use", "user+sys");
        let mut rows = Vec::new();
        for (name, first, took, cpu) in &measured {
            let (again, cpu) = (median(took.clone()), median(cpu.clone()));
            println!("{name:<12} {first:>14.3} s {:>11.1} ms {cpu:>8.2} s", again * 1e3);
            rows.push(
                json!({ "name": name, "first_s": first, "median_s": again, "cpu_s": cpu, "all_s": took }),
            );
        }
        let took = |name: &str| {
            let found = measured.iter().find(|(other, ..)| *other == name);
            found.map_or(f64::NAN, |(_, _, took, _)| median(took.clone()))
        };
        let verdict = |pair: &Pair| Verdict {
            what: pair.what.to_owned(),
            reached: took(pair.large) / took(pair.small),
            wanted: Wanted::AtMost(pair.bound),
        };
        Ok((PAIRS.iter().map(verdict).collect(), rows))
    }

    fn start(&self, volume: &Volume, name: &str) -> Result<()> {
        let out = volume.dir.join("out");
        let mut run = Command::new(self.programs.join("ampoule"));
        run.arg("run").arg(self.folder.join(format!("{name}.toml")));
        run.arg("--state").arg(volume.dir.join("state")).arg("--out").arg(&out);
        quiet(&mut run).with_context(|| name.to_owned())?;
        Ok(fs::remove_dir_all(out)?)
    }
}

fn pinned_tar(tar: &Path) -> Result<String> {
    Ok(format!("tar:{}@sha256:{}", tar.display(), hex::encode(layout::digest(tar)?.0)))
}
