//! Canaries: secrets that occur nowhere else, printed by jobs in twelve encodings, and looked for in everything that is
//! kept. Twelve jobs by default; `AMPOULE_CANARY_JOBS=1000` for as many.

use super::leased;
use super::{output, sh};
use crate::ampouled::Ampouled;
use crate::check::{Ending, Ran, equal};
use crate::harness::Test;
use crate::lab::Lab;
use crate::procs;
use crate::servers::Servers;
use crate::vault::Storage;
use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

pub(super) const TESTS: &[Test] = &[
    Test::root("canaries_that_jobs_print_are_kept_nowhere", printed),
    Test::root("canary_that_is_planted_or_not_masked_is_found", planted),
    Test::root("output_with_a_canary_has_no_provenance", in_output),
    Test::root("canaries_of_a_server_are_kept_nowhere", of_a_server),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);
/// How long a run of bytes of an encoding is that must not be found.
const RUN: usize = 16;
/// Prints a value in each encoding: at once, in two writes, on both streams; one of them many times, so that it stands
/// across each border of what is read at a time.
const SCRIPT: &str = r#"
raw() { cat "$v"; }
b0() { base64 -w 0 < "$v"; }
b1() { { printf x; cat "$v"; } | base64 -w 0; }
b2() { { printf u:; cat "$v"; } | base64 -w 0; }
bu() { base64 -w 0 < "$v" | tr '+/' '-_'; }
bb() { base64 < "$v" | base64; }
hx() { od -An -v -tx1 < "$v" | tr -d ' \n'; }
HX() { hx | tr a-f A-F; }
ur() { od -An -v -tx1 < "$v" | tr -d '\n' | sed 's/ /%/g'; }
js() { sed 's/[\\"]/\\&/g' < "$v"; }
sq() { sed "s/'/'\\\\''/g" < "$v"; }
rv() { rev < "$v"; }
twice() { cat e; echo; head -c 9 e; sleep 0.02; tail -c +10 e; echo; }
n=0
for f in raw b0 b1 b2 bu bb hx HX ur js sq rv; do
    $f > e; twice; twice >&2
    if [ $n = BORDER ]; then
        { cat e; echo; } > r; for k in 1 2 3 4 5 6 7 8 9 10 11 12; do cat r r > s; mv s r; done
        cat r; cat r >&2
    fi
    n=$((n + 1))
done
rm -f e r
"#;

/// What nobody else has, with everything in it that encodings treat in their own way.
fn canary() -> Result<String> {
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")?.replace('-', "");
    let part = |at: usize| uuid.get(at..at + 8).unwrap_or_default();
    Ok(format!("Kq\"{}'\\/{}+ {}=~{}", part(0), part(8), part(16), part(24)))
}

/// By the book, not by the runner's code.
fn encodings(value: &str) -> Vec<(&'static str, String)> {
    let once = BASE64_STANDARD.encode(value);
    let hex = hex::encode(value);
    let percent: String = value.bytes().map(|byte| format!("%{byte:02x}")).collect();
    vec![
        ("raw", value.to_owned()),
        ("base64", once.clone()),
        ("base64 after one byte", BASE64_STANDARD.encode(format!("x{value}"))),
        ("base64 after two bytes", BASE64_STANDARD.encode(format!("u:{value}"))),
        ("base64url", BASE64_URL_SAFE.encode(value)),
        ("base64 twice", BASE64_STANDARD.encode(format!("{once}\n"))),
        ("hex", hex.clone()),
        ("HEX", hex.to_uppercase()),
        ("url", percent),
        ("json", value.replace('\\', "\\\\").replace('"', "\\\"")),
        ("shell", value.replace('\'', r"'\''")),
        ("reversed", value.chars().rev().collect()),
    ]
}

/// Every run of every encoding of some values.
#[derive(Default)]
struct Needles {
    runs: HashSet<[u8; RUN]>,
    /// The first two bytes of each, so that most places are passed by at once.
    begins: BTreeSet<[u8; 2]>,
}

impl Needles {
    fn of(values: &[&str]) -> Self {
        let mut needles = Self::default();
        values.iter().for_each(|value| needles.add(value));
        needles
    }

    fn add(&mut self, value: &str) {
        for (_, encoding) in encodings(value) {
            for run in encoding.as_bytes().windows(RUN) {
                if let (Some(run), Some(begin)) = (run.first_chunk(), run.first_chunk()) {
                    self.runs.insert(*run);
                    self.begins.insert(*begin);
                }
            }
        }
    }

    fn are_in(&self, bytes: &[u8]) -> bool {
        let mut begins = vec![false; 1 << 16];
        for begin in &self.begins {
            if let Some(place) = begins.get_mut(usize::from(u16::from_le_bytes(*begin))) {
                *place = true;
            }
        }
        let may = |run: &[u8]| {
            let begin = run.first_chunk().map_or(0, |begin| u16::from_le_bytes(*begin));
            begins.get(usize::from(begin)) == Some(&true)
        };
        let mut runs = bytes.windows(RUN).filter(|run| may(run));
        runs.any(|run| run.first_chunk().is_some_and(|run| self.runs.contains::<[u8; RUN]>(run)))
    }

    /// Files below a directory in which one stands, or in whose name; `but` is passed by. How many bytes were looked at.
    fn holders(&self, dir: &Path, but: &Path, found: &mut Vec<PathBuf>) -> Result<u64> {
        let mut bytes = 0;
        for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
            let path = entry?.path();
            let meta = fs::symlink_metadata(&path)?;
            if path == but {
                continue;
            }
            if path.file_name().is_some_and(|name| self.are_in(name.as_bytes())) {
                found.push(path.clone());
            }
            if meta.is_dir() {
                bytes += self.holders(&path, but, found)?;
            } else if meta.is_file() {
                let content = fs::read(&path)?;
                bytes += content.len() as u64;
                if self.are_in(&content) {
                    found.push(path);
                }
            }
        }
        Ok(bytes)
    }
}

/// What processes of ours and of jobs show in `/proc`.
#[derive(Debug, Default)]
struct Shown {
    looks: u32,
    /// Processes of steps that were told a canary in their environment.
    told: u32,
    /// Everything else with one.
    leaks: Vec<String>,
}

impl Shown {
    /// Looks for a canary that is in no environment, and one that its own step has there.
    fn look(&mut self, never: &Needles, told: &Needles) {
        self.looks += 1;
        let ours = |process: &procs::Process| process.is_of_a_job() || process.comm.starts_with("ampoule");
        for process in procs::all().into_iter().filter(ours) {
            let read = |what: &str| fs::read(format!("/proc/{}/{what}", process.pid)).unwrap_or_default();
            let (args, variables) = (read("cmdline"), read("environ"));
            if never.are_in(&args) || told.are_in(&args) {
                self.leaks.push(format!("the arguments of {process:?}"));
            }
            if never.are_in(&variables) {
                self.leaks.push(format!("the environment of {process:?}, which has it as a file"));
            }
            if told.are_in(&variables) {
                // Asked afterwards: a step's process has its environment and its name from when it becomes the program.
                let name = fs::read_to_string(format!("/proc/{}/comm", process.pid)).unwrap_or_default();
                match process.is_of_a_job() && !name.starts_with("ampoule") {
                    true => self.told += 1,
                    false => self.leaks.push(format!("the environment of {process:?}")),
                }
            }
        }
    }
}

/// A daemon whose secrets `c` and `e` are two files, which are written anew for each job.
struct Place<'l> {
    lab: &'l Lab<'l>,
    daemon: Ampouled<'l>,
    sources: PathBuf,
}

impl<'l> Place<'l> {
    fn start(lab: &'l Lab<'l>) -> Result<Self> {
        let sources = lab.path("canaries");
        fs::create_dir(&sources)?;
        fs::set_permissions(&sources, PermissionsExt::from_mode(0o700))?;
        let rule = |name: &str| {
            let file = sources.join(name);
            format!(
                "[[secret]]\nproject = \"app\"\nname = {name:?}\nfile = \"{}\"\nenv_allowed = true\n",
                file.display()
            )
        };
        let rules = lab.write("secrets.toml", format!("format = 1\n{}{}", rule("c"), rule("e")))?;
        fs::set_permissions(&rules, PermissionsExt::from_mode(0o600))?;
        let daemon = Ampouled::start_with(lab, &format!("[secrets]\nfile = \"{}\"\n", rules.display()))?;
        Ok(Self { lab, daemon, sources })
    }

    /// New canaries.
    fn renew(&self) -> Result<[String; 2]> {
        let values = [canary()?, canary()?];
        for (name, value) in ["c", "e"].iter().zip(&values) {
            let file = self.sources.join(name);
            fs::write(&file, value)?;
            fs::set_permissions(&file, PermissionsExt::from_mode(0o600))?;
        }
        Ok(values)
    }

    fn submit(&self, job: &str, key: &str) -> Result<Ran> {
        let call = self.daemon.submit(&self.lab.job(job)?, key).args(["--project", "app"]);
        self.daemon.ended(call.start()?)
    }

    /// Where these stand, of everything that a test has left.
    fn holders(&self, needles: &Needles) -> Result<(Vec<PathBuf>, u64)> {
        let mut found = Vec::new();
        let bytes = needles.holders(&self.lab.path(""), &self.sources, &mut found)?;
        Ok((found, bytes))
    }
}

const DECLARED: &str =
    "[[secret]]\nname = \"c\"\nfile = \"/run/secrets/c\"\n[[secret]]\nname = \"e\"\nenv = \"E\"\n";

/// Two steps that print, and an output of which a digest is in it.
fn printing(border: u64) -> String {
    let script = SCRIPT.replace("BORDER", &(border % 12).to_string());
    let of_file = sh("file", &format!("cd /build; v=/run/secrets/c\n{script}\nsha256sum < $v > out"));
    let of_variable =
        sh("variable", &format!("cd /build; v=/build/v; printf %s \"$E\" > $v\n{script}\nrm $v"));
    format!(
        "{DECLARED}{of_file}secrets = [\"c\"]\n{of_variable}secrets = [\"e\"]\n{}",
        output("digest", "/build/out")
    )
}

fn jobs() -> u64 {
    std::env::var("AMPOULE_CANARY_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(12)
}

fn printed(lab: &Lab) -> Result<()> {
    let place = Place::start(lab)?;
    let (mut all, mut shown, mut masks) = (Needles::default(), Shown::default(), Vec::new());
    for number in 0..jobs() {
        let values = place.renew()?;
        let [file, variable] = values.each_ref().map(|value| Needles::of(&[value]));
        values.iter().for_each(|value| all.add(value));
        let is_over = AtomicBool::new(false);
        let ran = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    shown.look(&file, &variable);
                }
            });
            let ran = place.submit(&printing(number), &format!("canary-{number}"));
            is_over.store(true, Ordering::SeqCst);
            ran
        });
        let ran = ran?.ended(&SUCCEEDED).with_context(|| format!("job {number}"))?;
        let report = ran.report()?;
        let of = |step: usize, stream: usize| report["steps"][step]["logs"][stream]["masked"].clone();
        masks.extend([of(0, 0), of(0, 1), of(1, 0), of(1, 1)]);
        equal("places in /proc", &shown.leaks, &Vec::new())?;
        let last = number + 1 == jobs();
        if last || number % 100 == 99 {
            let (found, bytes) = place.holders(&all)?;
            equal("files with a canary", &found, &Vec::new())?;
            ensure!(bytes > 100_000, "{bytes} bytes were looked at: where is everything?");
        }
    }
    // Of each stream: each encoding twice, and one 4096 times.
    masks.retain(|masked| *masked != json!(24 + 4096));
    equal("other numbers of masks", &masks, &Vec::new())?;
    ensure!(shown.told > 0 && shown.looks > 0, "no step was seen with its canary: {shown:?}");
    place.daemon.stop()
}

/// The search finds each encoding in a file, a name, and the log of a step whose secret nobody had declared.
fn planted(lab: &Lab) -> Result<()> {
    let place = Place::start(lab)?;
    let value = canary()?;
    let needles = Needles::of(&[&value]);
    equal("before", &place.holders(&needles)?.0, &Vec::new())?;
    for (name, encoding) in encodings(&value) {
        let file = lab.path("daemon/planted");
        fs::write(&file, format!("{}{encoding}{}", "x".repeat(70_000), "y".repeat(10)))?;
        equal(name, &place.holders(&needles)?.0, &vec![file.clone()])?;
        fs::remove_file(&file)?;
    }
    let named = lab.path(&format!("state/{}", hex::encode(&value)));
    fs::write(&named, "")?;
    equal("by its name", &place.holders(&needles)?.0, &vec![named.clone()])?;
    fs::remove_file(&named)?;
    let octal: String = value.bytes().map(|byte| format!("\\0{byte:03o}")).collect();
    let script = SCRIPT.replace("BORDER", "0");
    let job = sh("plain", &format!("cd /build; v=/build/v; printf '%b' '{octal}' > $v\n{script}"));
    let ran = place.submit(&job, "planted")?.ended(&SUCCEEDED)?;
    let (found, _) = place.holders(&needles)?;
    let id = ran.result()?["job"].as_str().context("no job")?.to_owned();
    let events = lab.state().join("jobs").join(id).join("events");
    ensure!(found.contains(&events), "not in {}: {found:?}", events.display());
    let events = fs::read(events)?;
    for (name, encoding) in encodings(&value) {
        let core = encoding.as_bytes().get(4..4 + RUN).context(name)?;
        ensure!(events.windows(RUN).any(|run| run == core), "the script prints no {name}");
    }
    place.daemon.stop()
}

fn in_output(lab: &Lab) -> Result<()> {
    let place = Place::start(lab)?;
    let values = place.renew()?;
    let needles = Needles::of(&[&values[0], &values[1]]);
    let step = sh("leaks", "mkdir /build/f; base64 < /run/secrets/c > /build/f/x; echo fine > /build/g");
    let job = format!(
        "{DECLARED}{step}secrets = [\"c\"]\n{}{}",
        output("fine", "/build/g"),
        output("leak", "/build/f")
    );
    let ran = place.submit(&job, "leak")?.ended(&Ending("failed", "secret.in_output", 1))?;
    let run = ran.statement("run.intoto.jsonl")?;
    let failure = &run["predicate"]["failure"];
    equal("code", &failure["code"], &Value::from("secret.in_output")).with_context(|| run.to_string())?;
    let said = failure["message"].as_str().unwrap_or_default();
    ensure!(said.contains("output leak at /build/f: secret c,"), "{said}");
    equal("files with a canary", &place.holders(&needles)?.0, &Vec::new())?;
    place.daemon.stop()
}

fn of_a_server(lab: &Lab) -> Result<()> {
    let servers = Servers::start(lab, Storage::Memory)?;
    let daemon = Ampouled::start_with(lab, &servers.table(lab)?)?;
    let (mut needles, mut masks) = (Needles::default(), Vec::new());
    for number in 0..2 {
        let value = canary()?;
        let token = json!({"data": {"token": value}});
        servers.rig.ask("POST", "secret/data/app/npm", Some(&token))?;
        needles.add(&value);
        let script = SCRIPT.replace("BORDER", &number.to_string());
        let job = leased::job(lab, &["npm"], &format!("cd /build; v=/run/secrets/npm\n{script}"))?;
        let ran = leased::submit(&daemon, &job, &format!("server-{number}"))?.ended(&SUCCEEDED)?;
        masks.push(ran.report()?["steps"][0]["logs"][0]["masked"].clone());
    }
    let mut found = Vec::new();
    needles.holders(&lab.path(""), &lab.path("secrets.toml"), &mut found)?;
    equal("files with a canary", &found, &Vec::new())?;
    equal("masks", &masks, &vec![json!(24 + 4096); 2])?;
    daemon.stop()
}
