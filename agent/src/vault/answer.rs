//! Answers: what is read of them, and which errors they are.

use super::error::{Detail, VaultError};
use super::value::{Data, Secret};
use super::wire::Reply;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// The longest life that is believed: ten years. Sums with it stay far from where the clock's arithmetic ends.
const TTL_SECONDS_MAX: u64 = 10 * 365 * 86_400;

/// A life as a server states it, in seconds.
pub(super) fn life(seconds: u64) -> Duration {
    Duration::from_secs(seconds.min(TTL_SECONDS_MAX))
}

/// An answer with `data` of some form.
#[derive(Deserialize)]
pub(super) struct Answer<T = Data> {
    #[serde(default)]
    pub(super) lease_id: Option<String>,
    #[serde(default)]
    pub(super) lease_duration: Option<u64>,
    #[serde(default)]
    pub(super) renewable: Option<bool>,
    #[serde(default = "Option::default")]
    pub(super) data: Option<T>,
    #[serde(default)]
    pub(super) auth: Option<Auth>,
    #[serde(default)]
    pub(super) wrap_info: Option<serde::de::IgnoredAny>,
}

/// A token that was made.
#[derive(Deserialize)]
pub(super) struct Auth {
    #[serde(default)]
    pub(super) client_token: Secret,
    #[serde(default)]
    pub(super) accessor: String,
    #[serde(default)]
    pub(super) policies: Option<Vec<String>>,
    #[serde(default)]
    pub(super) lease_duration: u64,
    #[serde(default)]
    pub(super) renewable: bool,
    #[serde(default)]
    pub(super) token_type: String,
    #[serde(default)]
    pub(super) orphan: bool,
}

#[derive(Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<String>,
}

impl Reply {
    /// Whether it was done.
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// What the server says about an error, for people. Not for answers that may hold something of a secret.
    pub(super) fn detail(&self) -> Detail {
        let errors = serde_json::from_slice::<Errors>(&self.body).map(|e| e.errors).unwrap_or_default();
        let text: String = errors.join("; ").chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        text.into()
    }

    /// The answer's parts.
    pub(super) fn parse<T: DeserializeOwned>(&self, doing: &'static str) -> Result<Answer<T>, VaultError> {
        // What serde says may quote a value; its place does not.
        let answer: Answer<T> = serde_json::from_slice(&self.body).map_err(|e| VaultError::Answer {
            doing,
            reason: format!("it is not what the API describes, at line {} column {}", e.line(), e.column()),
        })?;
        if answer.wrap_info.is_some() {
            let reason =
                "it came wrapped, which was not asked for; see the policies' wrapping TTLs".to_owned();
            return Err(VaultError::Answer { doing, reason });
        }
        Ok(answer)
    }

    /// The error of a status that is no success. `detailed`: with what the server says about it.
    pub(super) fn error(&self, doing: &'static str, path: &str, detailed: bool) -> VaultError {
        let path = path.trim_start_matches('/').to_owned();
        match self.status {
            403 => VaultError::Denied { doing, path },
            404 => {
                let detail = if detailed { self.detail() } else { Detail::default() };
                VaultError::Missing { doing, path, deleted: false, detail }
            }
            status => {
                let detail = if detailed { self.detail() } else { Detail::default() };
                VaultError::Refused { doing, path, status, detail }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_life_is_cut_to_what_clocks_can_add() {
        let life = life(u64::MAX);
        assert_eq!(life.as_secs(), TTL_SECONDS_MAX);
        assert!(tokio::time::Instant::now().checked_add(life * 2).is_some());
        assert_eq!(super::life(15), Duration::from_secs(15));
    }

    #[test]
    fn missing_is_told_with_what_vault_says_and_a_page_of_somebody_else_with_nothing() {
        let said = |body: &[u8]| {
            let reply = Reply { status: 404, location: None, body: zeroize::Zeroizing::new(body.to_vec()) };
            let VaultError::Missing { detail, .. } = reply.error("d", "p", true) else { panic!() };
            detail.shown().to_owned()
        };
        assert_eq!(said(b"{\"errors\":[\"invalid accessor\"]}"), "invalid accessor");
        assert_eq!(said(b"<html>invalid accessor</html>"), "");
    }

    #[test]
    fn what_a_server_says_is_cut_behind_what_it_names_and_never_in_the_middle_of_it() {
        let lease = format!("database/creds/app/{}", "x".repeat(40));
        for before in 240..320 {
            let text = format!("{} {lease} {}", "é".repeat(before / 2), "y".repeat(400));
            let body = serde_json::to_vec(&serde_json::json!({ "errors": [text] })).unwrap();
            let reply = Reply { status: 400, location: None, body: zeroize::Zeroizing::new(body) };
            let error = reply.error("d", "p", true).without(&["", "database/creds/app/", &lease]);
            for shown in [error.to_string(), format!("{error:?}")] {
                assert!(!shown.contains("database") && !shown.contains("xx"), "{shown}");
                assert!(shown.contains("éé") && shown.len() < 400, "{shown}");
            }
        }
    }
}
