//! What a finished job has left, as `ampoule run --out` leaves it: verified first, and whole or not at all.

use super::channel::Client;
use super::download::Download;
use super::error::ClientError;
use super::follow::{Follow, Told};
use super::jobs::exit_of;
use super::logs::LogFiles;
use crate::local::release::{aside, check_out, name_of, parent};
use crate::local::{Place, ReleasedOutput};
use ampoule_evidence::{JobRecord, Kind, PublicKey, TrustedKey, Verified, VerifyRequest, verify};
use ampoule_proto::v1 as proto;
use ampoule_spec::{Code, Failure, Outcome, OutputForm, OutputKind, OutputReport, Sha256};
use ampoule_store::unpack::unpack;
use aws_lc_rs::digest::{Context, SHA256, digest};
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use tokio::runtime::Handle;

type Result<T> = std::result::Result<T, ClientError>;

/// The most files of evidence.
const FILES_MAX: usize = 1000;

/// Where what a job has left goes.
#[derive(Debug)]
pub struct Fetch<'a> {
    /// The daemon.
    pub client: &'a Client,
    /// The runtime of its calls.
    pub runtime: &'a Handle,
    /// A directory that is new or empty.
    pub out: &'a Path,
    /// Who is believed. None: whom the daemon names, and any builder.
    pub trusted: Option<&'a [TrustedKey]>,
    /// Whether a `dev` builder is believed.
    pub allow_dev: bool,
}

/// What was fetched and verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// How the job ended, as was signed.
    pub outcome: Outcome,
    /// Why, unless it succeeded.
    pub failure: Option<Failure>,
    /// The outputs.
    pub outputs: Vec<ReleasedOutput>,
    /// The builder that signed.
    pub builder: String,
    /// The OpenSSH fingerprint of its key.
    pub key: String,
    /// Whether there is provenance.
    pub provenance: bool,
    /// The exit status.
    pub exit: u8,
}

/// A record whose run attestation was verified.
struct Checked {
    record: JobRecord,
    files: BTreeMap<String, Arc<[u8]>>,
    trusted: Vec<TrustedKey>,
    run: Verified,
}

/// The files of evidence by name. A file with several names is in memory once.
fn files(answer: Vec<proto::EvidenceFile>) -> Result<BTreeMap<String, Arc<[u8]>>> {
    let count = answer.iter().fold(0_usize, |sum, file| sum.saturating_add(file.also.len() + 1));
    if count > FILES_MAX {
        return Err(unverified(format!("{count} files of evidence")));
    }
    let mut files = BTreeMap::new();
    for file in answer {
        let bytes: Arc<[u8]> = file.data.into();
        for name in std::iter::once(file.name).chain(file.also) {
            let is_name = !matches!(name.as_str(), "" | "." | ".." | "logs" | "result.json")
                && name.len() <= 255
                && !name.bytes().any(|b| b == b'/' || b.is_ascii_control());
            match is_name {
                true => drop(files.insert(name, bytes.clone())),
                // It is written here from what was verified.
                false if name == "result.json" => {}
                false => return Err(unverified(format!("a file of evidence is called {name:?}"))),
            }
        }
    }
    Ok(files)
}

fn unverified(reason: impl ToString) -> ClientError {
    ClientError::Unverified { reason: reason.to_string() }
}

fn sha256(bytes: &[u8]) -> Sha256 {
    Sha256::new(digest(&SHA256, bytes).as_ref().try_into().unwrap_or_default())
}

impl Fetch<'_> {
    /// Refuses a directory that could not be filled later.
    ///
    /// # Errors
    /// [`ClientError::Local`].
    pub fn check(out: &Path) -> Result<()> {
        Ok(check_out(out)?)
    }

    /// Fetches, verifies and publishes. Blocks; the thread is none of the runtime's.
    ///
    /// # Errors
    /// [`ClientError`]; nothing is in the directory then.
    pub fn fetch(&self, job: &proto::Job) -> Result<Fetched> {
        let checked = self.checked(job)?;
        let failed = |e: io::Error| ClientError::File {
            what: "the output directory",
            path: self.out.to_owned(),
            reason: e.to_string(),
        };
        let name = name_of(self.out).map_err(failed)?;
        let place = Place::open(&parent(self.out)).map_err(failed)?;
        let aside = aside(&uuid::Uuid::now_v7().to_string());
        let made = place.make(&aside).map_err(failed)?;
        let filled = self
            .fill(job, &checked, &made)
            .and_then(|fetched| place.publish(&aside, &made, name).map(|()| fetched).map_err(failed));
        if filled.is_err() {
            place.discard(&aside, &made);
        }
        filled
    }

    /// The evidence, with the run attestation verified and held against what the daemon says of the job.
    fn checked(&self, job: &proto::Job) -> Result<Checked> {
        let answer = self.runtime.block_on(self.client.evidence(&job.id))?;
        let files = files(answer.files)?;
        let trusted = match self.trusted {
            Some(trusted) => trusted.to_vec(),
            None => vec![TrustedKey::any(
                PublicKey::from_pem(&answer.public_key_pem)
                    .map_err(|e| unverified(format!("its key: {e}")))?,
            )],
        };
        let named = |name: &str| files.get(name).ok_or_else(|| unverified(format!("{name} is missing")));
        let (run, report) = (named("run.intoto.jsonl")?, named("report.json")?);
        let run = self.verified(run, &trusted, sha256(report), false, Kind::Run)?;
        let record = JobRecord::read(named("spec.json")?, report).map_err(unverified)?;
        let signed = record.report();
        let same = signed.job.as_str() == job.id && run.invocation == format!("urn:uuid:{}", job.id);
        if !same {
            return Err(unverified(format!("it is the record of job {}", signed.job)));
        }
        if signed.spec != record.spec_sha256() {
            return Err(unverified("spec.json is not the one that was signed"));
        }
        let refused = signed.outcome == Outcome::Succeeded && !job.code.is_empty();
        if exit_of(job) == 0 && signed.outcome != Outcome::Succeeded
            || !refused
                && exit_of(job) != crate::local::release::exit_of(signed.failure.as_ref(), signed.outcome)
        {
            return Err(unverified(format!("what is signed is that the job {}", signed.outcome.as_str())));
        }
        Ok(Checked { record, files, trusted, run })
    }

    fn verified(
        &self,
        attestation: &[u8],
        trusted: &[TrustedKey],
        artifact: Sha256,
        tree: bool,
        kind: Kind,
    ) -> Result<Verified> {
        let request = VerifyRequest {
            attestation,
            trusted,
            artifact,
            tree,
            kind,
            builder: None,
            source: None,
            params: &BTreeMap::new(),
            allow_dev: self.allow_dev || self.trusted.is_none(),
        };
        verify(&request).map_err(|error| unverified(crate::chain::chain(&error)))
    }

    fn fill(&self, job: &proto::Job, checked: &Checked, made: &Place) -> Result<Fetched> {
        let failed = |e: io::Error| ClientError::File {
            what: "the output directory",
            path: self.out.to_owned(),
            reason: e.to_string(),
        };
        let report = checked.record.report();
        let outputs = made.make("outputs").map_err(failed)?;
        let evidence = made.make("evidence").map_err(failed)?;
        let logs = evidence.make("logs").map_err(failed)?;
        let released = self.outputs(job, checked, &outputs)?;
        let mut firsts: Vec<(&Arc<[u8]>, &str)> = Vec::new();
        for (name, bytes) in &checked.files {
            match firsts.iter().find(|(of, _)| Arc::ptr_eq(of, bytes)) {
                Some((_, first)) => evidence.write_also(name, first, bytes).map_err(failed)?,
                None => {
                    evidence.write(name, bytes).map_err(failed)?;
                    firsts.push((bytes, name));
                }
            }
        }
        self.logs(job, checked, &logs)?;
        let failure = match Code::parse(&job.code) {
            Some(code) if report.outcome == Outcome::Succeeded => {
                Some(Failure::new(code, job.message.clone()))
            }
            _ => report.failure.clone(),
        };
        let provenance = report.outputs.iter().find(|output| {
            output.kind == OutputKind::Artifact && checked.files.contains_key(&attestation_of(output))
        });
        let fetched = Fetched {
            outcome: report.outcome,
            outputs: released,
            builder: checked.run.builder.clone(),
            key: checked.run.key_fingerprint.clone(),
            provenance: provenance.is_some(),
            exit: exit_of(job),
            failure,
        };
        let attestation = provenance.map_or_else(|| "run.intoto.jsonl".to_owned(), attestation_of);
        evidence.write("result.json", &result(job, checked, &fetched, &attestation)).map_err(failed)?;
        [&outputs, &logs, &evidence, made].into_iter().try_for_each(Place::sync).map_err(failed)?;
        Ok(fetched)
    }

    fn outputs(&self, job: &proto::Job, checked: &Checked, into: &Place) -> Result<Vec<ReleasedOutput>> {
        let report = checked.record.report();
        let offered: Vec<&str> = job.outputs.iter().map(|output| output.name.as_str()).collect();
        let mut released = Vec::new();
        for name in &offered {
            if !report.outputs.iter().any(|output| output.name.as_str() == *name) {
                return Err(unverified(format!("output {name:?} is in no record")));
            }
        }
        for output in &report.outputs {
            if !offered.contains(&output.name.as_str()) {
                if exit_of(job) == 0 {
                    return Err(unverified(format!("output {} is not there", output.name)));
                }
                continue;
            }
            self.output(job, output, checked.record.spec().source_date_epoch, into)?;
            if let Some(attestation) = checked.files.get(&attestation_of(output)) {
                let tree = output.form == OutputForm::Tree;
                self.verified(attestation, &checked.trusted, output.sha256, tree, Kind::Provenance)?;
            }
            released.push(ReleasedOutput {
                name: output.name.to_string(),
                form: output.form,
                bytes: output.bytes,
                entries: output.entries,
                sha256: output.sha256.to_string(),
            });
        }
        Ok(released)
    }

    /// Writes an output and hashes what it writes.
    fn output(&self, job: &proto::Job, output: &OutputReport, epoch: u64, into: &Place) -> Result<()> {
        let name = output.name.as_str();
        let mut download = Download::new(self.client, self.runtime, &job.id, name);
        let failed = |e: io::Error| match e.downcast::<ClientError>() {
            Ok(error) => error,
            Err(e) => {
                ClientError::File { what: "the output", path: self.out.join(name), reason: e.to_string() }
            }
        };
        let other = || unverified(format!("the bytes of output {name} are not those that were signed"));
        if output.form == OutputForm::Tree {
            let dir = into.make(name).map_err(failed)?.into_descriptor();
            let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
            let (unpacked, copied) = std::thread::scope(|scope| {
                let entries = output.entries.unwrap_or(0);
                let unpacking =
                    scope.spawn(move || unpack(File::from(read), dir, epoch, entries, &mut |_| ()));
                let copied = io::copy(&mut download, &mut File::from(write));
                (unpacking.join(), copied)
            });
            let found = match (unpacked, copied) {
                (Ok(Ok(found)), _) => found,
                (Ok(Err(error)), Err(broken)) if broken.kind() == io::ErrorKind::BrokenPipe => {
                    return Err(unverified(format!("output {name}: {error}")));
                }
                (_, Err(error)) => return Err(failed(error)),
                (Ok(Err(error)), Ok(_)) => return Err(unverified(format!("output {name}: {error}"))),
                (Err(_), Ok(_)) => return Err(other()),
            };
            let same = (found.tree, found.bytes, Some(found.entries))
                == (output.sha256, output.bytes, output.entries);
            return if same { Ok(()) } else { Err(other()) };
        }
        let mode = if output.executable { 0o755 } else { 0o644 };
        let mut file = into.create(name, mode).map_err(failed)?;
        let mut context = Context::new(&SHA256);
        let (mut buffer, mut bytes) = (vec![0; 256 << 10], 0_u64);
        loop {
            let count = download.read(&mut buffer).map_err(failed)?;
            let part = buffer.get(..count).unwrap_or_default();
            bytes = bytes.saturating_add(part.len() as u64);
            // More than was signed is not written.
            if part.is_empty() || bytes > output.bytes {
                break;
            }
            context.update(part);
            file.write_all(part).map_err(failed)?;
        }
        file.sync_all().map_err(failed)?;
        let same = bytes == output.bytes && context.finish().as_ref() == output.sha256.as_bytes();
        if same { Ok(()) } else { Err(other()) }
    }

    /// Writes the logs, and holds them against what was signed of them.
    fn logs(&self, job: &proto::Job, checked: &Checked, into: &Place) -> Result<()> {
        let failed = |e: io::Error| ClientError::File {
            what: "a log",
            path: self.out.to_owned(),
            reason: e.to_string(),
        };
        let mut files = LogFiles::create(&checked.record.report().steps, into).map_err(failed)?;
        let mut follow = Follow::new(self.client.clone(), &job.id, true, false);
        let mut written = Ok(());
        self.runtime.block_on(follow.run(&mut |told| {
            if let (Told::Log(chunk), Ok(())) = (told, &written) {
                written = files.take(&chunk);
            }
        }))?;
        written.map_err(failed)?;
        match files.finish().map_err(failed)? {
            None => Ok(()),
            Some(other) => {
                Err(unverified(format!("the bytes of log {other} are not those that were signed")))
            }
        }
    }
}

fn attestation_of(output: &OutputReport) -> String {
    format!("{}.intoto.jsonl", output.name)
}

fn result(job: &proto::Job, checked: &Checked, fetched: &Fetched, attestation: &str) -> Vec<u8> {
    let report = checked.record.report();
    let failure = fetched.failure.as_ref();
    let step = failure.and_then(|f| f.step).and_then(|at| report.steps.get(usize::try_from(at).ok()?));
    let value = json!({
        "ampoule": ampoule_spec::FORMAT, "job": job.id, "outcome": report.outcome.as_str(),
        "code": failure.map(|f| f.code.as_str()), "fault": failure.map(|f| f.code.fault().as_str()),
        "message": failure.map(|f| f.message.as_str()), "retryable": failure.is_some_and(|f| f.code.retryable()),
        "step": step.map(|s| s.name.as_str()), "exit": fetched.exit, "attestation": attestation,
        "builder": fetched.builder,
    });
    let mut bytes = serde_json::to_vec_pretty(&value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}
