//! The agent's own tokens at servers end with the daemon, or with the client that has them: nobody needs them any more.

use super::server::Server;
use super::service::Secrets;
use crate::chain::chain;
use crate::vault::by;
use ampoule_spec::Name;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How long that may take, for all servers together.
const WITHIN: Duration = Duration::from_secs(2);

impl Secrets {
    /// Logs out everywhere, and asks no server for anything from now on. What is not revoked by then the next start takes back, by its own login.
    pub async fn log_out(&self) {
        let rules = self.rules();
        let before = rules.before.iter().map(|(name, server)| (name, server));
        let all = rules.servers.iter().chain(before).map(|(name, server)| (name.clone(), server.clone()));
        end_all(all.collect()).await;
    }
}

/// Logs out of these. A server that does not answer holds nobody up, and its token lives until its end.
pub(super) async fn end_all(all: Vec<(Name, Arc<dyn Server>)>) {
    let ends = all.iter().map(|(name, server)| async move {
        let why = match timeout(WITHIN, by(Instant::now() + WITHIN, server.end())).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => chain(&error),
            Err(_) => format!("not within {WITHIN:?}"),
        };
        tracing::warn!(server = %name, why, "the agent's own token is not ended, and lives until its end");
    });
    futures_util::future::join_all(ends).await;
}

#[cfg(test)]
#[path = "logout_tests.rs"]
mod tests;
