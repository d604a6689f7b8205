//! The ledger and the audit log on a disk that is full, a real one: it stops the intake, and neither the end of jobs nor what is written
//! down about calls. Mounts a tmpfs, so it needs root.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::expect_used)]

#[path = "common/jobs.rs"]
mod jobs;

use ampoule_agent::audit::{Action, AuditEvent, AuditLog, Decision, verify_log};
use ampoule_agent::job::ledger::{Ledger, LedgerError, Options};
use ampoule_agent::job::state::Change;
use ampoule_agent::job::{CancelWish, JobsError, State, Submission};
use ampoule_evidence::tlog::NoteKey;
use ampoule_spec::{Code, Name, UnixNanos};
use jobs::{end, job_id, submission};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// A small disk in memory; gone when this is.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={size},mode=0700")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, options.as_c_str()).expect("needs root");
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Fills what is left of it.
    fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.path().join("filler")).unwrap();
        while file.write(&[1; 4096]).is_ok_and(|count| count > 0) {}
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

/// A submission whose spec takes more room than what the reserve keeps for the job's changes.
fn large(number: u32) -> Submission {
    let mut submission = submission(number);
    let value = ampoule_spec::ParamValue::String("x".repeat(16 << 10));
    submission.spec.params.insert(Name::parse("large").unwrap(), value);
    submission
}

#[tokio::test]
#[ignore = "mounts a tmpfs: needs root"]
async fn full_disk_stops_the_intake_and_not_the_end_of_jobs() {
    let disk = Small::mount("2m");
    let options = Options { reserve_bytes: 256 << 10, ..Options::default() };
    let now = UnixNanos(1);
    let ledger = Ledger::open(disk.path(), &options, now).unwrap();
    disk.fill();
    // What is set aside is a little more than the reserve: some submissions still fit.
    let mut taken = 0;
    let refused = loop {
        match ledger.submit(large(taken), now).await {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < 2_000, "it is never full");
    };
    assert!(matches!(refused, LedgerError::Full(_)), "{refused:?}");
    let told = JobsError::from(refused);
    assert_eq!(told.code, Code::AdmissionBusy);
    assert!(told.retry_after.is_some());
    assert!(taken > 0);
    // Repetitions are answered, wishes and ends are written down.
    assert!(ledger.submit(large(0), now).await.unwrap().attached);
    for number in 0..taken {
        let id = job_id(number);
        let wish = CancelWish { by: "b".to_owned(), reason: "full".to_owned(), at: now };
        let changes = [
            Change::Began,
            Change::Asked { runner: id.clone() },
            Change::CancelWished { wish },
            Change::Reported { admitted: now },
            Change::Finished { at: now, end: Box::new(end()) },
        ];
        for change in changes {
            ledger.change(&id, change).await.unwrap();
        }
    }
    // The next start has to write its file beside the full disk's.
    drop(ledger);
    let ledger = Ledger::open(disk.path(), &options, now).unwrap();
    for number in 0..taken {
        assert_eq!(ledger.get(&job_id(number)).unwrap().job.state, State::Finished);
    }
    disk.fill();
    assert!(ledger.submit(submission(taken + 1), now).await.is_err());
    std::fs::remove_file(disk.path().join("filler")).unwrap();
    ledger.submit(submission(taken + 1), now).await.unwrap();
}

#[tokio::test]
#[ignore = "mounts a tmpfs: needs root"]
async fn full_disk_without_a_reserve_would_lose_ends() {
    // The measure of the test above: with no room set aside, it is the end of a job that does not fit.
    let disk = Small::mount("1m");
    let options = Options { reserve_bytes: 0, ..Options::default() };
    let ledger = Ledger::open(disk.path(), &options, UnixNanos(1)).unwrap();
    for number in 0..20 {
        ledger.submit(submission(number), UnixNanos(1)).await.unwrap();
    }
    disk.fill();
    let mut lost = 0;
    for number in 0..20 {
        for change in [Change::Began, Change::Asked { runner: job_id(number) }] {
            lost += usize::from(ledger.change(&job_id(number), change).await.is_err());
        }
    }
    assert!(lost > 0, "they fit without a reserve, so the reserve proves nothing");
}

#[tokio::test]
#[ignore = "mounts a tmpfs: needs root"]
async fn full_disk_is_written_down_about_in_the_audit_log() {
    let disk = Small::mount("2m");
    let log = AuditLog::open(disk.path(), "audit.host.example").unwrap();
    disk.fill();
    let event = AuditEvent {
        at: UnixNanos(1),
        actor: "uid:7".to_owned(),
        action: Action::Denied,
        project: None,
        job: None,
        decision: Decision::Denied,
        reason: "the disk is full".to_owned(),
        detail: [].into(),
    };
    for number in 0..20 {
        assert_eq!(log.append(&event).await.unwrap(), number);
    }
    // When that is used up, too, calls fail, and the log is whole.
    disk.fill();
    let detail = [("large".to_owned(), "x".repeat(60_000))].into();
    let large = AuditEvent { detail, ..event.clone() };
    let mut size = 20;
    while log.append(&large).await.is_ok() {
        size += 1;
        disk.fill();
        assert!(size < 100, "it is never full");
    }
    let key = NoteKey::parse(log.public_key()).unwrap();
    assert_eq!(verify_log(disk.path(), &key, None).unwrap().checkpoint.size, size);
    std::fs::remove_file(disk.path().join("filler")).unwrap();
    assert_eq!(log.append(&event).await.unwrap(), size);
    assert_eq!(verify_log(disk.path(), &key, None).unwrap().checkpoint.size, size + 1);
}
