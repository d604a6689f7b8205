//! Things to import, a launcher that imports them, and what must hold of its store then, whatever happened before.

use crate::check::{equal, sha256};
use crate::image::{Entry, gzip, tar};
use crate::lab::{Lab, tree};
use crate::launcher::Launcher;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Something to import.
pub(crate) struct Thing {
    content: Value,
    source: PathBuf,
    /// What the launcher says when it is whole.
    pub(crate) wanted: Value,
}

impl Thing {
    fn request(&self, ask: &str) -> Value {
        let mut request = self.content.clone();
        request["ask"] = Value::from(ask);
        // A directory has its name only after the first import.
        if ask == "find" && request["content"] == "directory" {
            request["tree"] = self.wanted["sha256"].clone();
        }
        request
    }
}

/// One of each kind, the image's manifest last: it needs its parts.
pub(crate) fn things(lab: &Lab, files: usize) -> Result<Vec<Thing>> {
    let names: Vec<String> = (0..files).map(|n| format!("d/{}/f{n}", n % 7)).collect();
    let body = |n: usize| vec![u8::try_from(n % 251).unwrap_or(0); 64 + 37 * n];
    let bodies: Vec<Vec<u8>> = (0..files).map(body).collect();
    let mut entries = vec![Entry::Dir("d/"), Entry::Symlink("l", "d/0/f0")];
    entries.extend(names.iter().zip(&bodies).map(|(name, body)| Entry::File(name, 0o644, body)));
    entries.push(Entry::Hardlink("h", "d/0/f0"));
    let plain = tar(&entries)?;
    let whiteouts =
        tar(&[Entry::Dir("d/"), Entry::File("d/.wh.0", 0o644, b""), Entry::File("e", 0o755, b"e")])?;
    let (archive, upper) = (gzip(&plain)?, gzip(&whiteouts)?);
    let config = json!({"architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest(&plain), digest(&whiteouts)]}});
    let config = config.to_string().into_bytes();
    let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
    let part =
        |media: &str, bytes: &[u8]| json!({"mediaType": media, "digest": digest(bytes), "size": bytes.len()});
    let manifest = json!({"schemaVersion": 2, "config": part("application/vnd.oci.image.config.v1+json", &config),
        "layers": [part(layer, &archive), part(layer, &upper)]});
    let manifest = manifest.to_string().into_bytes();
    let named = |kind: &str, bytes: &[u8]| json!({"content": kind, "sha256": sha256(bytes)});
    let with = |mut content: Value, key: &str, value: Value| {
        content[key] = value;
        content
    };
    let epoch = |content: Value| with(content, "epoch", Value::from(1_700_000_000));
    let all = vec![
        (epoch(json!({"content": "directory", "tree": null})), plain.clone()),
        (epoch(with(named("file", &plain), "executable", Value::from(true))), plain.clone()),
        (epoch(named("archive", &archive)), archive.clone()),
        (named("image_tar", &plain), plain),
        (named("oci_layer", &archive), archive),
        (named("oci_layer", &upper), upper),
        (named("oci_config", &config), config),
        (named("oci_manifest", &manifest), manifest),
    ];
    let make = |(number, (content, bytes)): (usize, (Value, Vec<u8>))| {
        let source = lab.write(&format!("source-{files}-{number}"), bytes)?;
        Ok(Thing { content, source, wanted: Value::Null })
    };
    let mut things: Vec<Thing> = all.into_iter().enumerate().map(make).collect::<Result<_>>()?;
    // What they are when nothing happens.
    let place = Place::new(&lab.program("ampoule-runner"), lab.path("reference"))?;
    let mut launcher = place.start(&[])?.context("a launcher that dies by itself")?;
    for thing in &mut things {
        thing.wanted = import(&mut launcher, thing)?.context("it died")?;
        equal("answer", &thing.wanted["say"], &Value::from("imported"))?;
    }
    launcher.close()?;
    place.remove()?;
    Ok(things)
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", sha256(bytes))
}

pub(crate) fn import(launcher: &mut Launcher, thing: &Thing) -> Result<Option<Value>> {
    let source = File::open(&thing.source)?;
    launcher.ask(&thing.request("import"), Some(source.as_fd()))
}

/// A state directory, and the runner for it.
pub(crate) struct Place {
    runner: PathBuf,
    pub(crate) state: PathBuf,
}

impl Place {
    pub(crate) fn new(runner: &Path, state: PathBuf) -> Result<Self> {
        fs::create_dir_all(&state)?;
        fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        Ok(Self { runner: runner.to_owned(), state })
    }

    pub(crate) fn start(&self, through: &[String]) -> Result<Option<Launcher>> {
        Launcher::start(&self.runner, &self.state, through)
    }

    /// Imports one thing after another until all are done or the launcher is dead. Says which were announced.
    pub(crate) fn import_all(&self, launcher: &mut Launcher, things: &[&Thing]) -> Result<Vec<usize>> {
        let mut announced = Vec::new();
        for (number, thing) in things.iter().enumerate() {
            match import(launcher, thing)? {
                Some(answer) if answer["say"] == "imported" => {
                    equal("announced", &answer, &thing.wanted)?;
                    announced.push(number);
                }
                Some(answer) => equal("answer", &answer["say"], &Value::from("refused"))?,
                None => break,
            }
        }
        Ok(announced)
    }

    /// A new launcher finds what was announced, finds nothing that is not whole, and can import everything.
    pub(crate) fn is_whole(&self, things: &[&Thing], announced: &[usize]) -> Result<()> {
        let mut launcher = self.start_swept()?;
        for (number, thing) in things.iter().enumerate() {
            let found = launcher.ask(&thing.request("find"), None)?.context("it died")?;
            let imported = found["imported"].clone();
            let lost = imported.is_null() && announced.contains(&number);
            ensure!(!lost, "{} was announced and is lost", thing.content);
            if !imported.is_null() {
                let mut wanted = thing.wanted.clone();
                wanted.as_object_mut().context("no object")?.remove("say");
                equal("found", &imported, &wanted)?;
            }
        }
        verifies(&mut launcher)?;
        for thing in things {
            let again = import(&mut launcher, thing)?.context("it died")?;
            equal("imported again", &again, &thing.wanted)?;
        }
        let objects = verifies(&mut launcher)?;
        ensure!(objects > 0, "nothing was read back");
        launcher.close()?;
        self.is_swept()
    }

    /// The next launcher, after it has swept. A worker dies a moment after its launcher, and a start leaves alone what lives:
    /// then it is the start after that.
    fn start_swept(&self) -> Result<Launcher> {
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let launcher = self.start(&[])?.context("the next launcher does not start")?;
            match self.is_swept() {
                Ok(()) => return Ok(launcher),
                Err(error) if Instant::now() > end => return Err(error),
                Err(_) => launcher.close()?,
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn is_swept(&self) -> Result<()> {
        equal("staging", &tree(&self.state.join("store/staging"))?, &Vec::new())
    }

    pub(crate) fn remove(&self) -> Result<()> {
        Ok(fs::remove_dir_all(&self.state)?)
    }
}

/// Reads back everything that is in the store, and says how many objects that is.
fn verifies(launcher: &mut Launcher) -> Result<usize> {
    let mut after = Value::Null;
    let mut count = 0;
    loop {
        let list = json!({"ask": "store_list", "after": after, "named": null});
        let page = launcher.ask(&list, None)?.context("it died")?;
        let objects = page["objects"].as_array().with_context(|| page.to_string())?;
        for object in objects {
            let name = &object["object"];
            let verify = json!({"ask": "store_verify", "object": name, "quarantine": false});
            let said = launcher.ask(&verify, None)?.context("it died")?;
            equal("answer", &said["say"], &Value::from("store_verified"))?;
            ensure!(said["damage"].is_null(), "object {name}: {said}");
            count += 1;
            after = name.clone();
        }
        if page["more"] != Value::Bool(true) {
            return Ok(count);
        }
    }
}
