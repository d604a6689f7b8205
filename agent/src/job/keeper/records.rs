//! Records: the signed evidence of every job, each made once and read back ever after.

use super::launcher::Launcher;
use crate::chain::chain;
use crate::job::ledger::Ledger;
use crate::job::model::End;
use crate::job::service::{EVIDENCE_BYTES_MAX, EvidenceFile, EvidenceFiles, OpenedOutput};
use crate::job::state::Life;
use crate::local::LocalError;
use crate::local::evidence::Signing;
use crate::local::record::{record, recorded, recorded_output, sha256};
use crate::local::release::Evidence;
use ampoule_evidence::{AgentClaims, Unstarted};
use ampoule_spec::{Code, Failure, JobId, Name, OutputForm, UnixNanos};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// In what a file takes of the disk.
const BLOCK_BYTES: u64 = 4096;
/// The most files of one record: two for each output, and six.
const FILES_MAX: usize = 1024;

/// The claim that says which secrets a job had.
const SECRETS_CLAIM: &str = "secrets";

/// What the name of a record begins with that is not whole yet, or not any more.
const UNFINISHED: &str = ".ampoule-";

/// What a job had of secrets, for its record.
#[derive(Debug, Default)]
pub(super) struct HadSecrets {
    /// For the run attestation.
    pub(super) claim: Option<String>,
    /// Why there is no provenance.
    pub(super) withheld: Option<String>,
}

impl HadSecrets {
    fn claimed_in(&self, evidence: Evidence) -> Evidence {
        let (Some(claim), Ok(name)) = (&self.claim, Name::parse(SECRETS_CLAIM)) else { return evidence };
        let mut claims = evidence.claims.clone();
        claims.insert(name, claim.clone());
        evidence.with_claims(claims)
    }
}

/// Where records are, and who signs them.
#[derive(Debug)]
pub(super) struct Records {
    dir: PathBuf,
    /// What is known of jobs that run, for their run attestation.
    claims: PathBuf,
    signing: Signing,
}

impl Records {
    /// Opens the records below the agent's directory, and removes what a crash has left unfinished. Blocks.
    ///
    /// # Errors
    /// If a directory cannot be made or read.
    pub(super) fn open(state: &Path, signing: Signing) -> io::Result<Self> {
        let (dir, claims) = (state.join("records"), state.join("claims"));
        for dir in [&dir, &claims] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| name.starts_with(UNFINISHED)) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(Self { dir, claims, signing })
    }

    /// The public key (PEM).
    pub(super) fn public_key(&self) -> &str {
        &self.signing.public_key
    }

    fn of(&self, id: &JobId) -> PathBuf {
        self.dir.join(id.as_str())
    }

    /// Keeps what is known of a job until it is attested. What is lost here is missing in its run attestation and no more.
    pub(super) fn keep_claims(&self, id: &JobId, claims: &AgentClaims) {
        if claims.is_empty() {
            return;
        }
        let path = self.claims.join(id.as_str());
        let written = serde_json::to_vec(claims).map_err(io::Error::from).and_then(|bytes| {
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
            file.write_all(&bytes)
        });
        if let Err(error) = written {
            tracing::warn!(job = %id, %error, "where downloads came from is not kept");
        }
    }

    fn claims(&self, id: &JobId) -> AgentClaims {
        let bytes = fs::read(self.claims.join(id.as_str())).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Makes the record of a job, unless there is one, and says how the job ended. Blocks.
    ///
    /// # Errors
    /// If the record cannot be made or made durable; to be tried again.
    pub(super) fn attest(
        &self,
        ledger: &Ledger,
        life: &Life,
        job_dir: &Path,
        secrets: &HadSecrets,
        now: UnixNanos,
    ) -> Result<End, LocalError> {
        let id = &life.job.id;
        let dir = self.of(id);
        if recorded(&dir)?.is_none() {
            let evidence = self.evidence(ledger, life, job_dir, now)?.withholding(secrets.withheld.clone());
            let evidence = secrets.claimed_in(evidence);
            if evidence.record.spec_sha256() != life.spec {
                return Err(refused(format!("the launcher has another spec of job {id} than it was given")));
            }
            record(&evidence, &dir, &self.signing)?;
        }
        let Some(found) = recorded(&dir)? else {
            return Err(refused(format!("the record of job {id} is not where it was written")));
        };
        let _ = fs::remove_file(self.claims.join(id.as_str()));
        Ok(End {
            outcome: found.outcome,
            failure: found.failure,
            outputs: found.outputs,
            attestation: sha256(&found.attestation),
            builder: found.builder,
            record_bytes: bytes_of(&dir)?,
        })
    }

    fn evidence(
        &self,
        ledger: &Ledger,
        life: &Life,
        job_dir: &Path,
        now: UnixNanos,
    ) -> Result<Evidence, LocalError> {
        let id = &life.job.id;
        let unstarted = |failure: Failure| {
            let spec = ledger.spec_bytes(id).map_err(|e| refused(e.to_string()))?;
            let spec = spec.ok_or_else(|| refused(format!("the ledger has no spec of job {id}")))?;
            Evidence::unstarted(spec, &Unstarted { acknowledged: life.job.submitted_at, ended: now, failure })
        };
        match &life.failure {
            Some(failure) => unstarted(failure.clone()),
            None if job_dir.try_exists().is_ok_and(|there| !there) => unstarted(Failure {
                code: Code::JobAborted,
                message: "the runner took the job, and its directory was removed before there was a record"
                    .to_owned(),
                step: None,
                teardown: None,
            }),
            None => Ok(Evidence::read(job_dir)?.with_claims(self.claims(id))),
        }
    }

    /// The files of a record. Blocks for a moment.
    ///
    /// # Errors
    /// If it is not there or cannot be read.
    pub(super) fn read(&self, id: &JobId) -> io::Result<EvidenceFiles> {
        let mut found: BTreeMap<u64, (u64, Vec<String>)> = BTreeMap::new();
        for entry in fs::read_dir(self.of(id))?.take(FILES_MAX) {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            let meta = entry.metadata()?;
            if meta.is_file() {
                let (_, names) = found.entry(meta.ino()).or_insert_with(|| (meta.len(), Vec::new()));
                names.push(name);
            }
        }
        // Before any of it is in memory.
        let bytes = found.values().fold(0_u64, |sum, (bytes, _)| sum.saturating_add(*bytes));
        if bytes > EVIDENCE_BYTES_MAX {
            let text =
                format!("it has {bytes} bytes, at most {EVIDENCE_BYTES_MAX} are handed out in one answer");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        let mut files = Vec::new();
        for (length, mut names) in found.into_values() {
            names.sort();
            let Some(first) = names.first() else { continue };
            let mut bytes = Vec::new();
            File::open(self.of(id).join(first))?.take(length).read_to_end(&mut bytes)?;
            files.push(EvidenceFile { names, bytes });
        }
        // It was removed while it was listed.
        if files.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        files.sort_by(|a, b| a.names.cmp(&b.names));
        Ok(EvidenceFiles { files, public_key: self.public_key().to_owned() })
    }

    /// An output of a job. Blocks.
    ///
    /// # Errors
    /// If the store does not have it, or the launcher does not answer.
    pub(super) fn open_output(
        &self,
        launcher: &Launcher,
        id: &JobId,
        name: &str,
    ) -> io::Result<OpenedOutput> {
        let other = |error: &dyn std::error::Error| io::Error::other(chain(error));
        let found = recorded_output(&self.of(id), name).map_err(|e| other(&e))?;
        let (content, form, epoch) = found.ok_or(io::ErrorKind::NotFound)?;
        let opened = launcher.connect().and_then(|runner| runner.open(content)).map_err(|e| other(&e))?;
        let opened = opened.ok_or(io::ErrorKind::NotFound)?;
        if form == OutputForm::Tree {
            return Ok(OpenedOutput::Tree { root: opened, epoch });
        }
        let file = File::from(opened);
        let length = file.metadata()?.len();
        Ok(OpenedOutput::File { file, length })
    }

    /// Removes a record, before the ledger forgets its job: its name first, durably, so that no crash brings back what nobody
    /// knows any more and no reader sees a part of it. Blocks.
    ///
    /// # Errors
    /// If it is there and cannot be removed; to be tried again.
    pub(super) fn remove(&self, id: &JobId) -> io::Result<()> {
        let unless_gone = |done: io::Result<()>| match done {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        // As one that is not finished: what a crash leaves of it goes at the next start.
        let gone = self.dir.join(format!("{UNFINISHED}{id}.gone"));
        unless_gone(fs::rename(self.of(id), &gone))?;
        File::open(&self.dir)?.sync_all()?;
        unless_gone(fs::remove_dir_all(&gone))
    }
}

/// What a record takes of the disk: a file that has several names counts once.
fn bytes_of(dir: &Path) -> Result<u64, LocalError> {
    let sum = || -> io::Result<u64> {
        let (mut seen, mut bytes) = (BTreeSet::new(), 0_u64);
        for entry in fs::read_dir(dir)? {
            let meta = entry?.metadata()?;
            if seen.insert(meta.ino()) {
                bytes = bytes.saturating_add(meta.len().next_multiple_of(BLOCK_BYTES));
            }
        }
        Ok(bytes)
    };
    sum().map_err(|e| refused(format!("the record {} cannot be looked at: {e}", dir.display())))
}

fn refused(reason: String) -> LocalError {
    LocalError::Evidence { code: Code::Internal, reason }
}

#[cfg(test)]
mod tests {
    use crate::job::keeper::testing::{keeper, submission};
    use std::sync::atomic::{AtomicBool, Ordering};

    #[tokio::test]
    async fn file_with_many_names_is_counted_read_and_sent_once() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = keeper(dir.path());
        let (records, id) = (&keeper.inner.records, submission().spec.id);
        let record = records.of(&id);
        std::fs::create_dir(&record).unwrap();
        std::fs::write(record.join("a.intoto.jsonl"), vec![b'x'; 5000]).unwrap();
        for number in 0..200 {
            let name = record.join(format!("b{number}.intoto.jsonl"));
            std::fs::hard_link(record.join("a.intoto.jsonl"), name).unwrap();
        }
        std::fs::write(record.join("report.json"), "{}").unwrap();
        assert_eq!(super::bytes_of(&record).unwrap(), 8192 + 4096);
        let files = records.read(&id).unwrap().files;
        let counts: Vec<_> = files.iter().map(|file| (file.names.len(), file.bytes.len())).collect();
        assert_eq!(counts, [(201, 5000), (1, 2)]);
        assert_eq!(files[0].names[..2], ["a.intoto.jsonl", "b0.intoto.jsonl"]);
    }

    #[tokio::test]
    async fn record_that_is_too_large_is_refused_before_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = keeper(dir.path());
        let (records, id) = (&keeper.inner.records, submission().spec.id);
        std::fs::create_dir(records.of(&id)).unwrap();
        for name in ["a", "b"] {
            let file = std::fs::File::create(records.of(&id).join(name)).unwrap();
            file.set_len(super::EVIDENCE_BYTES_MAX / 2 + 1).unwrap();
        }
        let refused = records.read(&id).unwrap_err();
        assert!(refused.to_string().contains("in one answer"), "{refused}");
        std::fs::remove_file(records.of(&id).join("b")).unwrap();
        assert_eq!(records.read(&id).unwrap().files.len(), 1);
    }

    #[tokio::test]
    async fn record_that_is_removed_is_seen_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = keeper(dir.path());
        let (records, id) = (&keeper.inner.records, submission().spec.id);
        for _ in 0..20 {
            std::fs::create_dir(records.of(&id)).unwrap();
            for number in 0..300 {
                std::fs::write(records.of(&id).join(format!("f{number}")), "x").unwrap();
            }
            let began = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let reading = scope.spawn(|| {
                    let mut seen = Vec::new();
                    while let Ok(read) = records.read(&id) {
                        seen.push(read.files.len());
                        began.store(true, Ordering::SeqCst);
                    }
                    seen
                });
                while !began.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                records.remove(&id).unwrap();
                let seen = reading.join().unwrap();
                assert!(seen.iter().all(|files| *files == 300), "{seen:?}");
            });
        }
    }

    #[tokio::test]
    async fn rest_of_a_record_that_was_not_removed_to_its_end_goes() {
        let dir = tempfile::tempdir().unwrap();
        let id = submission().spec.id;
        for again in [true, false] {
            let mut keeper = keeper(dir.path());
            let records = &keeper.inner.records;
            // What a kill leaves between the name and the rest.
            let rest = records.dir.join(format!("{}{id}.gone", super::UNFINISHED));
            std::fs::create_dir(&rest).unwrap();
            std::fs::write(rest.join("report.json"), "{}").unwrap();
            if again {
                records.remove(&id).unwrap();
            } else {
                keeper.close().await;
                keeper = super::super::testing::keeper(dir.path());
            }
            assert!(!rest.exists(), "{again}");
            keeper.close().await;
        }
    }
}
