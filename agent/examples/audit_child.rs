//! A process that writes to an audit log until it is killed, and says which events have which index: for `tests/audit_crash.rs`. `audit_child DIR`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::expect_used)]

use ampoule_agent::audit::{Action, AuditEvent, AuditLog, Decision};
use ampoule_spec::UnixNanos;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let dir = std::env::args_os().nth(1).expect("audit_child DIR");
    let log = Arc::new(AuditLog::open(dir.as_ref(), "audit.host.example").unwrap());
    println!("open");
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let log = log.clone();
        tasks.spawn(async move {
            for number in 0_u64.. {
                let actor = format!("{}-{writer}-{number}", std::process::id());
                let event = AuditEvent {
                    at: UnixNanos(number),
                    actor: actor.clone(),
                    action: Action::JobSubmitted,
                    project: None,
                    job: None,
                    decision: Decision::Allowed,
                    reason: String::new(),
                    detail: BTreeMap::new(),
                };
                let index = log.append(&event).await.unwrap();
                std::io::stdout().write_all(format!("{index} {actor}\n").as_bytes()).unwrap();
            }
        });
    }
    tasks.join_all().await;
}
