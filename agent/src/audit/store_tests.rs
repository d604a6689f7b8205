//! A cut of power, played: what the log did to its directory is done again up to every step, with less and less of what was
//! not made durable; and what is left must be the log under the last checkpoint that was given out, and go on.

use super::*;
use crate::audit::verify::verify_log;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

const ORIGIN: &str = "audit.host.example";

#[derive(Debug, Clone)]
enum Step {
    MakeDir(PathBuf),
    Write(PathBuf, Vec<u8>),
    Sync(PathBuf),
    SyncDir(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

/// Does what it is told, and remembers it.
#[derive(Debug, Clone)]
struct Traced {
    base: PathBuf,
    steps: Arc<Mutex<Vec<Step>>>,
}

impl Traced {
    fn note(&self, path: &Path, step: impl FnOnce(PathBuf) -> Step) {
        self.steps.lock().unwrap().push(step(self.short(path)));
    }

    fn short(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.base).unwrap().to_owned()
    }
}

impl Disk for Traced {
    fn make_dir(&mut self, path: &Path) -> io::Result<()> {
        self.note(path, Step::MakeDir);
        Real.make_dir(path)
    }

    fn write(&mut self, path: &Path, bytes: &[u8]) -> io::Result<File> {
        self.note(path, |path| Step::Write(path, bytes.to_vec()));
        Real.write(path, bytes)
    }

    fn sync(&mut self, _: &File, path: &Path) -> io::Result<()> {
        self.note(path, Step::Sync);
        Ok(())
    }

    fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        self.note(path, Step::SyncDir);
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.note(from, |from| Step::Rename(from, self.short(to)));
        Real.rename(from, to)
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        Real.remove(path)?;
        self.note(path, Step::Remove);
        Ok(())
    }

    fn remove_dir(&mut self, path: &Path) -> io::Result<()> {
        Real.remove_dir(path)?;
        self.note(path, Step::Remove);
        Ok(())
    }
}

/// Takes no time for making anything durable: nobody cuts the power of the tests.
struct Unsynced;

impl Disk for Unsynced {
    fn sync(&mut self, _: &File, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&mut self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

/// What a name stands for: a directory, or the file of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Dir,
    File(usize),
}

#[derive(Debug, Clone, Default)]
struct Bytes {
    now: Vec<u8>,
    durable: Vec<u8>,
}

/// A file system as it is, and as much of it as a cut of power cannot take.
#[derive(Debug, Default)]
struct Played {
    now: BTreeMap<PathBuf, Node>,
    durable: BTreeMap<PathBuf, Node>,
    files: Vec<Bytes>,
}

/// What of the things that were not made durable is there after the cut.
#[derive(Debug, Clone, Copy)]
enum Left {
    Nothing,
    Everything,
    /// Names, with files that have no bytes, as many zeros as they had bytes, or half of them.
    Empty,
    Zeros,
    Half,
    /// Bytes, and names only of files and directories that are new: nothing was renamed or removed.
    Old,
    /// Whatever a number says.
    Some(u64),
}

impl Played {
    fn file(&mut self, path: &Path) -> usize {
        match self.now.get(path) {
            Some(Node::File(at)) => *at,
            Some(Node::Dir) => panic!("{} is a directory", path.display()),
            None => {
                self.files.push(Bytes::default());
                self.now.insert(path.to_owned(), Node::File(self.files.len() - 1));
                self.files.len() - 1
            }
        }
    }

    fn play(&mut self, step: &Step) {
        match step {
            Step::MakeDir(path) => drop(self.now.insert(path.clone(), Node::Dir)),
            Step::Write(path, bytes) => {
                let at = self.file(path);
                self.files[at].now.clone_from(bytes);
            }
            Step::Sync(path) => {
                let at = self.file(path);
                self.files[at].durable = self.files[at].now.clone();
            }
            Step::SyncDir(dir) => {
                let is_in = |path: &PathBuf| path.parent() == Some(dir);
                self.durable.retain(|path, _| !is_in(path));
                let names = self.now.iter().filter(|(path, _)| is_in(path));
                self.durable.extend(names.map(|(path, node)| (path.clone(), *node)));
            }
            Step::Rename(from, to) => {
                let node = self.now.remove(from).unwrap();
                self.now.insert(to.clone(), node);
            }
            Step::Remove(path) => drop(self.now.remove(path)),
        }
    }

    /// Writes down what is left.
    fn cut(&self, left: Left, to: &Path) {
        let mut dice = match left {
            Left::Some(seed) => seed | 1,
            _ => 1,
        };
        let mut roll = |of: u64| {
            // xorshift64 (Marsaglia 2003)
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            dice % of
        };
        let names: std::collections::BTreeSet<_> = self.now.keys().chain(self.durable.keys()).collect();
        for name in names {
            let (now, durable) = (self.now.get(name), self.durable.get(name));
            let node = match left {
                Left::Nothing => durable,
                Left::Everything | Left::Empty | Left::Zeros | Left::Half => now,
                Left::Old => durable.or(now),
                Left::Some(_) => [now, durable][usize::try_from(roll(2)).unwrap()],
            };
            let path = to.join(name);
            // What is in a directory that is not there is not there.
            let Some(node) = node.filter(|_| path.parent().unwrap().is_dir()) else { continue };
            let Node::File(at) = node else {
                std::fs::create_dir(&path).unwrap();
                continue;
            };
            let Bytes { now, durable } = &self.files[*at];
            let whole = now.clone();
            let cuts = [
                durable.clone(),
                whole.clone(),
                Vec::new(),
                vec![0; whole.len()],
                whole[..whole.len() / 2].to_vec(),
            ];
            let bytes = match left {
                _ if now == durable => &whole,
                Left::Nothing => &cuts[0],
                Left::Everything | Left::Old => &cuts[1],
                Left::Empty => &cuts[2],
                Left::Zeros => &cuts[3],
                Left::Half => &cuts[4],
                Left::Some(_) => &cuts[usize::try_from(roll(5)).unwrap()],
            };
            std::fs::write(&path, bytes).unwrap();
        }
    }
}

fn entry(number: u64) -> Vec<u8> {
    format!("entry {number}").into_bytes()
}

/// Opens what a cut of power has left, holds it against the checkpoint that was given out last, and goes on with it.
fn holds(dir: &Path, given: &str, sizes: &[u64]) -> Result<(), String> {
    let mut store = Store::open_on(Unsynced, dir, ORIGIN).map_err(|e| e.to_string())?;
    if !sizes.contains(&store.edge().size()) {
        return Err(format!("it has {} entries, which no commit had", store.edge().size()));
    }
    let key = store.public_key().clone();
    let older = Some(given.as_bytes()).filter(|given| !given.is_empty());
    verify_log(dir, &key, older).map_err(|e| format!("after the cut: {e}"))?;
    store.commit(&[b"after the cut".to_vec()]).map_err(|e| e.to_string())?;
    verify_log(dir, &key, older).map_err(|e| format!("one more: {e}"))?;
    Ok(())
}

#[test]
fn power_cut_at_any_step_leaves_what_the_last_checkpoint_says() {
    let (base, left) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let disk = Traced { base: base.path().to_owned(), steps: Arc::default() };
    let steps = disk.steps.clone();
    let mut store = Store::open_on(disk, base.path(), ORIGIN).unwrap();
    // How many steps there were when a checkpoint was given out, and which; nothing is promised before the first.
    let mut given = vec![(0, String::new()), (steps.lock().unwrap().len(), store.checkpoint().to_owned())];
    let mut sizes = vec![0];
    // A tile that is not full grows, becomes full, and is followed by another.
    for count in [1, 2, 252, 1, 3] {
        let first = store.edge().size();
        let batch: Vec<_> = (first..first + count).map(entry).collect();
        store.commit(&batch).unwrap();
        sizes.push(store.edge().size());
        given.push((steps.lock().unwrap().len(), store.checkpoint().to_owned()));
    }
    drop(store);
    let steps = steps.lock().unwrap();
    let mut faults = Vec::new();
    for end in 0..=steps.len() {
        let mut played = Played::default();
        steps[..end].iter().for_each(|step| played.play(step));
        let (_, note) = given.iter().rev().find(|(at, _)| *at <= end).unwrap();
        let fixed = [Left::Nothing, Left::Everything, Left::Empty, Left::Zeros, Left::Half, Left::Old];
        let some = (0..4).map(|n| Left::Some((end as u64 + 1) * 7919 + n * 104_729));
        for (number, choice) in fixed.into_iter().chain(some).enumerate() {
            let dir = left.path().join(format!("{end}-{number}"));
            std::fs::create_dir(&dir).unwrap();
            // The key was made, and synced, before the first step.
            std::fs::copy(base.path().join(KEY), dir.join(KEY)).unwrap();
            played.cut(choice, &dir);
            if let Err(fault) = holds(&dir, note, &sizes) {
                faults.push(format!("{end}, {choice:?}, after {:?}: {fault}", steps[..end].last()));
            }
            std::fs::remove_dir_all(&dir).unwrap();
        }
    }
    assert!(steps.len() > 60, "only {} steps", steps.len());
    assert!(faults.is_empty(), "{} faults, as {:#?}", faults.len(), &faults[..faults.len().min(5)]);
}
