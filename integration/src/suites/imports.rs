//! `kill -9`, errors and a full disk in the middle of imports: what was announced is there, what is there is whole, and
//! nothing of a half import is seen or in the way.

use crate::check::equal;
use crate::harness::Test;
use crate::importing::{Place, Thing, import, things};
use crate::lab::Lab;
use crate::procs;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(super) const TESTS: &[Test] = &[
    Test::root("launcher_killed_at_any_call_of_an_import_leaves_a_whole_store", killed_at_calls),
    Test::root("errors_at_any_call_of_an_import_leave_a_whole_store", errors_at_calls),
    Test::both("killed_at_random_times_imports_leave_a_whole_store", killed_at_times),
    Test::root("imports_into_a_disk_that_fills_leave_a_whole_store", full_disks),
    Test::root("import_is_synced_before_it_is_named_and_announced", sync_order),
];

/// Calls by which an import changes what is on the disk: between two of them nothing changes.
const CALLS: &str = "mkdirat,openat2,write,fsync,fdatasync,syncfs,renameat,renameat2,unlinkat,fchmod,fchown,fchownat,\
                     utimensat,linkat,symlinkat,mknodat,fsetxattr,fremovexattr";
/// Those of them that a full disk fails.
const FULL: &str = "mkdirat,openat2,write,fsync,syncfs,renameat2,linkat,symlinkat,fsetxattr,utimensat";
/// Those of them that a broken disk fails.
const BROKEN: &str = "write,fsync,syncfs,renameat2,unlinkat";

/// strace of a launcher's own process, with an injection.
fn strace(calls: &str, injection: &str, log: &Path) -> Vec<String> {
    let mut args = vec!["strace".to_owned(), "-qq".to_owned(), "-o".to_owned(), log.display().to_string()];
    args.extend(["-e".to_owned(), format!("trace={calls}")]);
    if !injection.is_empty() {
        args.extend(["-e".to_owned(), format!("inject={injection}")]);
    }
    args
}

/// The calls in a log of strace's, each with its line and the how many-th of its name it is.
fn numbered(log: &Path) -> Result<Vec<(String, usize, String)>> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut calls = Vec::new();
    for line in fs::read_to_string(log)?.lines() {
        if let Some((call, _)) = line.split_once('(') {
            let count = counts.entry(call.to_owned()).or_insert(0);
            *count += 1;
            calls.push((call.to_owned(), *count, line.to_owned()));
        }
    }
    Ok(calls)
}

/// Every call by which a launcher changes something, from its greeting until it has imported these things: its name, and the
/// how many-th of that name it is.
fn points(place: &Place, log: &Path, calls: &str, things: &[&Thing]) -> Result<Vec<(String, usize)>> {
    place.start(&strace(calls, "", log))?.context("it died")?.close()?;
    let greeting: BTreeMap<_, _> =
        numbered(log)?.into_iter().map(|(call, number, _)| (call, number)).collect();
    let mut launcher = place.start(&strace(calls, "", log))?.context("it died")?;
    let announced = place.import_all(&mut launcher, things)?;
    equal("announced", &announced.len(), &things.len())?;
    launcher.close()?;
    let mut points = Vec::new();
    for (call, number, line) in numbered(log)? {
        let changes = !call.starts_with("open") || line.contains("O_CREAT");
        if changes && number > greeting.get(&call).copied().unwrap_or(0) {
            points.push((call, number));
        }
    }
    ensure!(points.len() > 10, "only {} calls were seen", points.len());
    Ok(points)
}

/// What is imported at each point: one thing, and another after it, at whose points the first one is announced.
fn pairs(things: &[Thing]) -> Vec<(Vec<&Thing>, Vec<&Thing>)> {
    let [directory, file, archive, image, lower, upper, config, manifest] = things else { return Vec::new() };
    vec![
        (vec![], vec![directory, file]),
        (vec![], vec![archive, config]),
        (vec![image], vec![lower, upper]),
        (vec![lower, upper, config], vec![manifest, file]),
    ]
}

/// Walks the points of all pairs with one injection, and says how many were hit.
fn walk(
    lab: &Lab,
    calls: &str,
    injection: &str,
    mut each: impl FnMut(&Place, &[&Thing], Vec<String>) -> Result<Vec<usize>>,
) -> Result<usize> {
    let memory = Small::mount(&lab.path("memory"), "size=256m,mode=0755")?;
    let things = things(lab, 9)?;
    let log = lab.path("strace");
    let mut tried = 0;
    for (before, pair) in pairs(&things) {
        let prepared = || -> Result<Place> {
            let place = Place::new(&lab.program("ampoule-runner"), memory.0.join("walked"))?;
            let mut launcher = place.start(&[])?.context("it died")?;
            place.import_all(&mut launcher, &before)?;
            launcher.close()?;
            Ok(place)
        };
        let place = prepared()?;
        let points = points(&place, &log, calls, &pair)?;
        place.remove()?;
        for (call, number) in points.iter().step_by(procs::stride() as usize) {
            let place = prepared()?;
            let through = strace(calls, &format!("{call}:{injection}:when={number}"), &log);
            let at = || format!("{injection} at {call} {number}");
            let announced = each(&place, &pair, through).with_context(at)?;
            place.is_whole(&pair, &announced).with_context(at)?;
            place.remove()?;
            tried += 1;
        }
    }
    Ok(tried)
}

fn killed_at_calls(lab: &Lab) -> Result<()> {
    let mut deaths = 0;
    let tried = walk(lab, CALLS, "signal=KILL", |place, pair, through| {
        let Some(mut launcher) = place.start(&through)? else {
            deaths += 1;
            return Ok(Vec::new());
        };
        let announced = place.import_all(&mut launcher, pair)?;
        deaths += usize::from(announced.len() < pair.len());
        launcher.close()?;
        Ok(announced)
    })?;
    println!("imports: {deaths} launchers were killed, at {tried} calls");
    // Some lie behind the last answer.
    ensure!(deaths * 10 >= tried * 8, "{deaths} of {tried} died");
    ensure!(deaths >= 150 / procs::stride() as usize, "{deaths} died");
    Ok(())
}

fn errors_at_calls(lab: &Lab) -> Result<()> {
    for (calls, error) in [(FULL, "ENOSPC"), (BROKEN, "EIO")] {
        let mut refused = 0;
        let tried = walk(lab, calls, &format!("error={error}"), |place, pair, through| {
            let Some(mut launcher) = place.start(&through)? else { return Ok(Vec::new()) };
            let announced = place.import_all(&mut launcher, pair)?;
            refused += usize::from(announced.len() < pair.len());
            launcher.close()?;
            Ok(announced)
        })?;
        println!("imports: {error} at {tried} calls, {refused} imports refused for it");
        ensure!(refused * 3 >= tried, "only {refused} of {tried} were noticed");
    }
    Ok(())
}

/// A small generator with a seed, so that the times of a failure come again as far as times do.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % end.max(1)
    }
}

/// The worker of a launcher, or the next that it makes within so many microseconds.
fn next_worker(launcher: i32, micros: u64) -> Option<i32> {
    let children = format!("/proc/{launcher}/task/{launcher}/children");
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_micros(micros) {
        let child = fs::read_to_string(&children).ok()?;
        if let Some(child) = child.split_whitespace().next() {
            return child.parse().ok();
        }
    }
    None
}

fn killed_at_times(lab: &Lab) -> Result<()> {
    const KILLS: u32 = 80;
    let things = things(lab, 20)?;
    // In memory: every import waits for a disk, and a kill is none of a disk's business.
    let memory = tempfile::Builder::new().prefix("ampoule-it-").tempdir_in("/dev/shm")?;
    let state = memory.path().join("timed");
    let all: Vec<&Thing> = things.iter().collect();
    let mut random = Random(0x5eed_0004);
    let (mut launchers, mut workers) = (0, 0);
    let begun = std::time::Instant::now();
    // How long all of it takes here, so that the kills lie within.
    let place = Place::new(&lab.program("ampoule-runner"), state.clone())?;
    let mut launcher = place.start(&[])?.context("it died")?;
    place.import_all(&mut launcher, &all)?;
    launcher.close()?;
    place.remove()?;
    let span = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    while launchers + workers < KILLS {
        let place = Place::new(&lab.program("ampoule-runner"), state.clone())?;
        let mut launcher = place.start(&[])?.context("it died")?;
        let (pid, at, of_worker) = (launcher.pid(), random.below(span), random.below(2) == 0);
        let (announced, killed) = std::thread::scope(|scope| -> Result<_> {
            let killer = scope.spawn(move || {
                std::thread::sleep(Duration::from_micros(at));
                let victim = if of_worker { next_worker(pid, span) } else { Some(pid) };
                victim.is_some_and(|victim| procs::signal(victim, Signal::KILL).is_ok())
            });
            let announced = place.import_all(&mut launcher, &all)?;
            Ok((announced, killer.join().is_ok_and(|killed| killed)))
        })?;
        launcher.kill()?;
        if killed && announced.len() < all.len() {
            *(if of_worker { &mut workers } else { &mut launchers }) += 1;
        }
        place.is_whole(&all, &announced).with_context(|| format!("killed after {at} µs"))?;
        place.remove()?;
        let limit = procs::patience(Duration::from_secs(240));
        ensure!(begun.elapsed() < limit, "only {launchers} and {workers} kills fell into an import");
    }
    ensure!(launchers >= 20 && workers >= 10, "{launchers} launchers and {workers} workers");
    println!("imports: {launchers} launchers and {workers} workers were killed at random times");
    Ok(())
}

/// A tmpfs for a state directory; gone when this is.
pub(super) struct Small(PathBuf);

impl Small {
    pub(super) fn mount(path: &Path, options: &str) -> Result<Self> {
        fs::create_dir_all(path)?;
        let options = std::ffi::CString::new(options)?;
        rustix::mount::mount(
            "tmpfs",
            path,
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            Some(options.as_c_str()),
        )?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// A disk with less and less room, and one with fewer and fewer inodes.
fn full_disks(lab: &Lab) -> Result<()> {
    let things = things(lab, 60)?;
    let all: Vec<&Thing> = things.iter().collect();
    let (mut refused, mut levels) = (0, 0);
    // A quarter of it is kept for others: what imports may take is from nothing to all that they need.
    let bytes = (0..30_u64)
        .map(|level| ("size=4m,mode=0700,nr_inodes=8k".to_owned(), (3 << 20) - level * (64 << 10)));
    // 1,024 are kept for others.
    let inodes = (0..30_u64).map(|level| (format!("size=64m,mode=0700,nr_inodes={}", 1_040 + 16 * level), 0));
    for (options, filled) in bytes.chain(inodes) {
        let place = Place::new(&lab.program("ampoule-runner"), lab.path("small"))?;
        let small = Small::mount(&place.state, &options)?;
        let mut launcher = place.start(&[])?.context("it does not start")?;
        let filler = place.state.join("filler");
        fs::write(&filler, vec![0; usize::try_from(filled)?])?;
        let announced = place.import_all(&mut launcher, &all)?;
        refused += all.len() - announced.len();
        levels += 1;
        launcher.close()?;
        fs::remove_file(&filler)?;
        // With room again.
        rustix::mount::mount_remount(
            &place.state,
            rustix::mount::MountFlags::empty(),
            c"size=64m,nr_inodes=16k",
        )?;
        place.is_whole(&all, &announced).with_context(|| format!("{options}, {filled} bytes filled"))?;
        drop(small);
        place.remove()?;
    }
    println!("imports: {refused} of {} were refused on {levels} small disks", levels * all.len());
    ensure!(refused >= levels, "the disks are not small enough: {refused} refused");
    ensure!(refused < levels * all.len(), "nothing was imported");
    Ok(())
}

/// What power loss may take: what lies behind the last sync. So everything of an object is synced before its name, its
/// name before the entry of the index that leads to it, and that before the answer.
fn sync_order(lab: &Lab) -> Result<()> {
    let things = things(lab, 9)?;
    let log = lab.path("order");
    // Few entries are synced one by one, many by one call.
    for (thing, many) in [(&things[1], false), (&things[2], true), (&things[6], false), (&things[4], true)] {
        let place = Place::new(&lab.program("ampoule-runner"), lab.path("ordered"))?;
        place.start(&[])?.context("it died")?.close()?;
        let mut through = strace("renameat2,fsync,syncfs,sendmsg,write", "", &log);
        through.insert(1, "-y".to_owned());
        let mut launcher = place.start(&through)?.context("it died")?;
        ensure!(import(&mut launcher, thing)?.context("it died")?["say"] == "imported", "refused");
        launcher.close()?;
        let text = fs::read_to_string(&log)?;
        let calls: Vec<&str> = text.lines().collect();
        ordered(&calls, many).with_context(|| text.clone())?;
        place.remove()?;
    }
    Ok(())
}

fn ordered(calls: &[&str], many: bool) -> Result<()> {
    let at = |what: &str, wanted: &dyn Fn(&str) -> bool| {
        calls.iter().position(|call| wanted(call)).with_context(|| format!("no {what}"))
    };
    let renames = |call: &str, into: &str| call.starts_with("renameat2(") && call.contains(into);
    let object = at("rename of the object", &|c| renames(c, "store/trees>, "))?;
    let entry = at("rename of the entry", &|c| renames(c, "store/index>, "))?;
    let synced = |from: usize, to: usize, path: &str| {
        let part = calls.get(from..to).unwrap_or_default();
        part.iter().any(|call| call.starts_with("fsync(") && call.contains(path) && call.ends_with("= 0"))
    };
    let answer = calls.iter().rposition(|call| call.starts_with("sendmsg(")).context("no answer")?;
    ensure!(object < entry && entry < answer, "object {object}, entry {entry}, answer {answer}");
    let before = calls.get(..object).unwrap_or_default();
    if many {
        ensure!(
            before.iter().any(|c| c.starts_with("syncfs(") && c.ends_with("= 0")),
            "no syncfs before its name"
        );
    } else {
        for part in ["/tree>", "/meta.json>", "/tree/content>"] {
            ensure!(synced(0, object, part), "{part} is not synced before the object has its name");
        }
    }
    ensure!(synced(object, entry, "store/trees>"), "the object's name is not synced before the entry");
    ensure!(synced(object, entry, "store/staging/"), "the entry is not synced before it has its name");
    ensure!(synced(entry, answer, "store/index>"), "the entry's name is not synced before the answer");
    // Nothing is written to the object after its sync.
    let last_sync =
        before.iter().rposition(|c| c.starts_with("fsync(") || c.starts_with("syncfs(")).unwrap_or(0);
    let late = calls.get(last_sync..).unwrap_or_default();
    let written = late.iter().any(|c| c.starts_with("write(") && c.contains("/tree/"));
    ensure!(!written, "the object is written after it was synced");
    Ok(())
}
