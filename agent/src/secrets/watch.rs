//! Whether the agent is logged in at each server, and that it serves: found out from the start of the daemon on, before a step needs it.
//!
//! Nothing waits for it: jobs without secrets go on whatever a server does. What it finds is a gauge for each server, and a line in the log
//! whenever it changes.

use super::server::Server;
use super::service::Secrets;
use crate::chain::chain;
use crate::vault::{Kind, VaultError, by};
use ampoule_spec::Name;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// How often it is looked whether there is something to look at: another client, another file to log in with, or time that is over.
const TICK: Duration = Duration::from_secs(5);
/// When a server that serves is looked at again.
const SERVES_FOR: Duration = Duration::from_secs(30);
/// When a login that was refused is tried again with the same file: servers lock out who fails five times in a quarter of an hour.
const REFUSED_FOR: Duration = Duration::from_secs(20 * 60);

/// What is known of a server.
struct Seen {
    /// The client that was looked at.
    of: Weak<dyn Server>,
    /// The file that it logs in with.
    file: Option<Mark>,
    /// None: it serves; else what was told of it.
    told: Option<String>,
    next: Instant,
}

/// By what a file is told from what was in its place, or from itself with another mode or owner.
type Mark = (u64, i64, i64);

fn mark(path: Option<&Path>) -> Option<Mark> {
    let meta = std::fs::metadata(path?).ok()?;
    Some((meta.ino(), meta.ctime(), meta.ctime_nsec()))
}

/// When a server is looked at again, at the latest.
fn wait_after(error: &VaultError) -> Duration {
    match error.kind() {
        Kind::Login | Kind::Intercepted => REFUSED_FOR,
        // It is a file of ours, and nobody was asked.
        Kind::Config => TICK,
        _ if error.retryable() => TICK,
        _ => SERVES_FOR,
    }
}

impl Secrets {
    /// Logs in at every server, looks at each now and then, and tells what it finds. Ends when it is dropped.
    pub async fn watch(self: Arc<Self>) {
        let mut seen = BTreeMap::new();
        let mut clock = tokio::time::interval(TICK);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = clock.tick() => {}
                () = self.taken.notified() => {}
            }
            self.look_at_logins(&mut seen).await;
        }
    }

    async fn look_at_logins(&self, seen: &mut BTreeMap<Name, Seen>) {
        let rules = self.rules();
        let gone: Vec<Name> =
            seen.keys().filter(|name| !rules.servers.contains_key(*name)).cloned().collect();
        for name in gone {
            seen.remove(&name);
            self.counts().up.remove(&[("server", name.to_string())]);
        }
        let now = Instant::now();
        let due = rules.servers.iter().filter(|(name, server)| {
            seen.get(*name).is_none_or(|seen| {
                let is_same = seen.of.ptr_eq(&Arc::downgrade(server));
                !is_same || now >= seen.next || seen.told.is_some() && seen.file != mark(server.login_file())
            })
        });
        let looked = due.map(|(name, server)| async move {
            let file = mark(server.login_file());
            let serves = by(Instant::now() + server.times().request, async {
                server.ready().await?;
                server.cluster().await
            });
            (name, server, file, serves.await.map(drop))
        });
        for (name, server, file, serves) in futures_util::future::join_all(looked).await {
            // A client that was replaced meanwhile has nothing to say.
            if !self.rules().servers.get(name).is_some_and(|now| Arc::ptr_eq(now, server)) {
                continue;
            }
            let before = seen.get(name);
            let told = self.tell(name, &**server, before, file, &serves);
            let next = Instant::now() + serves.as_ref().map_or_else(wait_after, |_| SERVES_FOR);
            seen.insert(name.clone(), Seen { of: Arc::downgrade(server), file, told, next });
        }
    }

    /// Tells what is new of a server. None: it serves; else what kind of failure it is.
    fn tell(
        &self,
        name: &Name,
        server: &dyn Server,
        before: Option<&Seen>,
        file: Option<Mark>,
        serves: &Result<(), VaultError>,
    ) -> Option<String> {
        let gauge = self.counts().up.get_or_create(&[("server", name.to_string())]).clone();
        let Err(error) = serves else {
            gauge.set(1);
            if before.is_none_or(|before| before.told.is_some()) {
                tracing::info!(server = %name, "logged in at the server of secrets");
            }
            return None;
        };
        gauge.set(0);
        // Counts of tries differ each time; what is wrong does not.
        let kind = format!("{:?} {:?}", error.kind(), error.state());
        if before.is_none_or(|before| before.told.as_ref() != Some(&kind) || before.file != file) {
            let remedy = server.remedy(error).unwrap_or_default();
            tracing::warn!(server = %name, reason = chain(error), remedy, "steps cannot have secrets of this server now");
        }
        Some(kind)
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
