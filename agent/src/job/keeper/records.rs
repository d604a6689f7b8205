//! Records: the signed evidence of every job, each made once and read back ever after.

use super::launcher::Launcher;
use crate::chain::chain;
use crate::job::ledger::Ledger;
use crate::job::model::End;
use crate::job::service::{EvidenceFiles, OpenedOutput};
use crate::job::state::Life;
use crate::local::LocalError;
use crate::local::evidence::Signing;
use crate::local::record::{record, recorded, recorded_output, sha256};
use crate::local::release::Evidence;
use ampoule_evidence::{AgentClaims, Unstarted};
use ampoule_spec::{Code, Failure, JobId, OutputForm, UnixNanos};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The most bytes of one file of a record.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// The most files of one record: two for each output, and six.
const FILES_MAX: usize = 1024;

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
            if name.to_str().is_some_and(|name| name.starts_with(".ampoule-")) {
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
        now: UnixNanos,
    ) -> Result<End, LocalError> {
        let id = &life.job.id;
        let dir = self.of(id);
        if recorded(&dir)?.is_none() {
            let evidence = self.evidence(ledger, life, job_dir, now)?;
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
        let mut files = Vec::new();
        for entry in fs::read_dir(self.of(id))?.take(FILES_MAX) {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if entry.file_type()?.is_file() {
                let mut bytes = Vec::new();
                File::open(entry.path())?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
                files.push((name, bytes));
            }
        }
        files.sort();
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

    /// Removes a record, before the ledger forgets its job. Blocks.
    ///
    /// # Errors
    /// If it is there and cannot be removed.
    pub(super) fn remove(&self, id: &JobId) -> io::Result<()> {
        match fs::remove_dir_all(self.of(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

fn refused(reason: String) -> LocalError {
    LocalError::Evidence { code: Code::Internal, reason }
}
