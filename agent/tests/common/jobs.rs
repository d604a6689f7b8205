//! Submissions for tests of what keeps jobs.

use ampoule_agent::job::{Caller, End, IdempotencyKey, Means, Proofs, Submission};
use ampoule_spec::{InputSource, JobId, JobSpec, Name, Outcome, Sha256};
use std::collections::BTreeMap;

/// The id of the job with a number; ids are in the order of the numbers.
pub(crate) fn job_id(number: u32) -> JobId {
    JobId::parse(&format!("01890a5d-ac96-774b-bcce-{number:012x}")).unwrap()
}

/// The key of the job with a number.
pub(crate) fn key(number: u32) -> IdempotencyKey {
    IdempotencyKey::parse(&format!("key-{number}")).unwrap()
}

/// What stands for a request's digest.
pub(crate) fn request(number: u32) -> Sha256 {
    serde_json::from_value(format!("{number:064x}").into()).unwrap()
}

fn spec(number: u32) -> JobSpec {
    serde_json::from_value(serde_json::json!({
        "ampoule": 1, "id": job_id(number), "attempt": 1, "name": "j", "profile": "hermetic",
        "image": {"kind": "host"}, "source_date_epoch": number, "steps": [{"name": "s", "run": ["true"], "cwd": "/build", "timeout_ms": 1000}],
    }))
    .unwrap()
}

/// A submission that is unlike those with other numbers.
pub(crate) fn submission(number: u32) -> Submission {
    Submission {
        caller: Caller { means: Means::Peer, subject: "uid:7".to_owned(), claims: BTreeMap::new() },
        key: key(number),
        project: Name::parse("p").unwrap(),
        spec: spec(number),
        proofs: Proofs::new(),
        request: request(number),
        priority: 0,
        labels: BTreeMap::new(),
        queue_timeout_ms: None,
    }
}

/// The same of a job that leaves to be found what its commit holds and when that was made.
#[allow(dead_code)] // Not every user of this file has such a job.
pub(crate) fn open_submission(number: u32) -> Submission {
    let mut submission = submission(number);
    (submission.spec.source_date_epoch, submission.spec.epoch_of_commit) = (0, true);
    let input = serde_json::json!({"name": "src", "mount": "/build/src", "source":
        {"kind": "git", "url": "https://h.example/r", "commit": "3".repeat(40)}});
    submission.spec.inputs = vec![serde_json::from_value(input).unwrap()];
    submission
}

/// What becomes of its spec.
#[allow(dead_code)] // As above.
pub(crate) fn resolved(number: u32) -> JobSpec {
    let mut spec = open_submission(number).spec;
    (spec.source_date_epoch, spec.epoch_of_commit) = (7, false);
    let InputSource::Git { tree, .. } = &mut spec.inputs[0].source else { panic!("a git input") };
    *tree = Some(request(number));
    spec
}

/// A good end.
#[allow(dead_code)] // Not every user of this file ends jobs.
pub(crate) fn end() -> End {
    End {
        outcome: Outcome::Succeeded,
        failure: None,
        outputs: Vec::new(),
        attestation: request(1),
        builder: "b".to_owned(),
        record_bytes: 1000,
    }
}
