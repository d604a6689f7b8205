//! A keeper without a launcher, for tests of its parts.

use super::{Intakes, Keep, Keeper, Needs, Options, ShownToAll, Sources, Unwitnessed};
use crate::fair::Seats;
use crate::job::model::{Caller, IdempotencyKey, Means, Proofs, Submission};
use crate::job::queue::{Amount, Quota, Rules};
use crate::job::{ledger, state};
use crate::local::SigningKey;
use ampoule_evidence::Authority;
use ampoule_spec::Name;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

pub(super) fn keeper(dir: &Path) -> Keeper {
    let amount = |n| Amount { cpu_millis: n, memory_bytes: n, disk_bytes: n };
    let quota = Quota { running: 4, queued: 4, weight: 1 };
    let projects = BTreeMap::<Name, Quota>::new();
    let rules = Rules { capacity: amount(8), running: 4, queued: 4, patience: 4, quota, projects };
    Keeper::open(Options {
        state: dir.join("agent"),
        socket: dir.join("nobody.sock"),
        jobs: dir.join("jobs"),
        key: SigningKey::Development,
        authority: Authority::parse("https://ampoule.example").unwrap(),
        sources: Sources {
            all: crate::sources::Policy::nothing(),
            projects: BTreeMap::new(),
            files: BTreeMap::new(),
        },
        shown: Arc::new(ShownToAll),
        witness: Arc::new(Unwitnessed),
        rules,
        needs: Needs { other: amount(1), profiles: BTreeMap::new() },
        ledger: ledger::Options { reserve_bytes: 64 << 10, ..ledger::Options::default() },
        keep: Keep::default(),
        intakes: Intakes { places: 1, ..Intakes::default() },
        lookups: Seats::all_but_one(2),
        secrets: None,
        readers: 1,
        drifted: None,
    })
    .unwrap()
}

pub(super) fn submission() -> Submission {
    let spec = serde_json::json!({
        "ampoule": 1, "id": "01890a5d-ac96-774b-bcce-b302099a8057", "attempt": 1, "name": "j", "profile": "hermetic",
        "image": {"kind": "host"}, "source_date_epoch": 1, "steps": [{"name": "s", "run": ["true"], "cwd": "/build", "timeout_ms": 1000}],
    });
    Submission {
        caller: Caller { means: Means::Peer, subject: "uid:7".to_owned(), claims: BTreeMap::new() },
        key: IdempotencyKey::parse("k").unwrap(),
        project: Name::parse("p").unwrap(),
        spec: serde_json::from_value(spec).unwrap(),
        proofs: Proofs::new(),
        request: state::sha256(b"k").unwrap(),
        priority: 0,
        labels: BTreeMap::new(),
        queue_timeout_ms: None,
    }
}
