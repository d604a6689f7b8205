//! Response wrapping: a token that holds one answer, for whoever comes first.

use super::call::Call;
use super::error::VaultError;
use super::fleet::Ask;
use super::token::without;
use super::value::{Data, Secret};
use super::{Token, Vault};
use serde::Serialize;
use std::time::Duration;

/// A wrapping token, and where it must have been made.
#[derive(Debug, Clone)]
pub struct Wrapped {
    /// It.
    pub token: Secret,
    /// The path of the call that made it, such as `auth/approle/role/ampoule/secret-id`. Whoever took the answer and
    /// wrapped it again has made another one (`sys/wrapping/wrap`).
    pub creation_path: String,
}

#[derive(Serialize)]
struct Lookup<'a> {
    token: &'a str,
}

impl Vault {
    /// Looks where it was made, and unwraps it once.
    ///
    /// # Errors
    /// [`VaultError::Intercepted`] if it was used already, is over, or was made elsewhere; else [`VaultError`].
    pub async fn unwrap(&self, wrapped: &Wrapped) -> Result<Data, VaultError> {
        self.unwrap_within(wrapped, self.budget()).await
    }

    pub(super) async fn unwrap_within(
        &self,
        wrapped: &Wrapped,
        budget: Duration,
    ) -> Result<Data, VaultError> {
        let doing = "unwrapping";
        let seen = |reason: String| VaultError::Intercepted { doing, reason };
        let token = Token::new(wrapped.token.clone()).ok_or_else(|| without(doing, "wrapping token"))?;
        let gone = "the wrapping token is unknown: it was used before, or is over";
        let ask = Ask { doing, token: None, once: false, budget };
        let lookup = Call::post("sys/wrapping/lookup".to_owned(), &Lookup { token: token.expose() });
        let reply = self.fleet.send(ask, &lookup).await?;
        if !reply.is_success() {
            return Err(match reply.status {
                400 | 403 | 404 => seen(gone.to_owned()),
                _ => reply.error(doing, "sys/wrapping/lookup", true),
            });
        }
        let found: Data = reply.parse(doing)?.data.ok_or_else(|| without(doing, "data"))?;
        let made = found.field("creation_path").ok_or_else(|| without(doing, "creation_path"))?;
        if made.expose() != wrapped.creation_path.as_bytes() {
            let made: String = made.expose_text().unwrap_or_default().chars().take(200).collect();
            return Err(seen(format!("it was made by {made:?}, and not by {:?}", wrapped.creation_path)));
        }
        // The token itself is shown, so that no other is needed. Not again if somebody may have got it.
        let ask = Ask { token: Some(&token), once: true, ..ask };
        let reply = self.fleet.send(ask, &Call::do_it("sys/wrapping/unwrap".to_owned())).await?;
        match reply.status {
            200..300 => reply.parse::<Data>(doing)?.data.ok_or_else(|| without(doing, "data")),
            400 | 403 | 404 => Err(seen(gone.to_owned())),
            _ => Err(reply.error(doing, "sys/wrapping/unwrap", false)),
        }
    }
}
