//! What an answer of a registry means: each failure names registry, repository, reference and remedy.
//!
//! Of what a registry says only a status, an error code of upper-case letters and a number of seconds are shown: a
//! hostile one could repeat a password in anything longer.

use crate::inputs::InputError;
use reqwest::header::RETRY_AFTER;
use reqwest::{Response, StatusCode};
use serde::Deserialize;
use std::time::Duration;

/// The most bytes of an error's body that are read.
const ERROR_BYTES_MAX: usize = 16 << 10;
/// How long an error's body may take; without it the status says enough.
const ERROR_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a document or a token may take, from the request to the last byte.
pub(crate) const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(120);

/// The error of a request that nobody answered, by the name of what was asked for. Others stay what they are.
pub(crate) fn unsent(what: &str, error: InputError) -> InputError {
    match error {
        InputError::Unreachable { source, reason, .. } => {
            let reason = source.as_ref().map_or(reason, |source| failure(source.as_ref()));
            InputError::Unreachable { url: what.to_owned(), reason, source }
        }
        InputError::Denied { url, reason } => {
            InputError::Denied { url: what.to_owned(), reason: format!("{url}: {reason}") }
        }
        other => other,
    }
}

/// The error of an answer that broke off.
pub(crate) fn broken(what: &str, reason: String, error: Option<reqwest::Error>) -> InputError {
    let source = error.map(|e| Box::new(e.without_url()) as Box<dyn std::error::Error + Send + Sync>);
    InputError::Unreachable { url: what.to_owned(), reason, source }
}

/// What a failed connection most likely is, with a remedy.
fn failure(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut cause = Some(error);
    while let Some(one) = cause {
        text.push_str(&one.to_string().to_ascii_lowercase());
        text.push('\n');
        cause = one.source();
    }
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if has(&["dns error", "lookup address", "name or service not known"]) {
        "the registry's host is not known; correct the host's name".to_owned()
    } else if has(&["certificate", "unknownissuer"]) {
        "the registry's certificate is not trusted here; name its authority in the sources file (ca = \"FILE\"), or \
         add it to the host's CA certificates"
            .to_owned()
    } else if has(&["timed out", "timeout", "deadline"]) {
        "the registry did not answer in time; try again later".to_owned()
    } else {
        "the registry cannot be reached; check host, port and whether it speaks https".to_owned()
    }
}

/// Waits for a small answer, its body included: a read timeout alone would let a byte a minute go on for ever.
pub(crate) async fn within<T>(
    what: &str,
    answer: impl Future<Output = Result<T, InputError>>,
) -> Result<T, InputError> {
    let late = |_| {
        let reason = format!("not complete after {} s; try again later", DOCUMENT_TIMEOUT.as_secs());
        broken(what, reason, None)
    };
    tokio::time::timeout(DOCUMENT_TIMEOUT, answer).await.map_err(late)?
}

/// The error of an answer that is no success.
pub(crate) async fn failed(what: &str, response: Response, showed_credentials: bool) -> InputError {
    let status = response.status();
    let after =
        response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let code = error_code(response).await.map(|code| format!(", {code}")).unwrap_or_default();
    let said = format!("the registry answered {}{code}", status.as_u16());
    let unreachable = |remedy: &str| InputError::Unreachable {
        url: what.to_owned(),
        reason: format!("{said}; {remedy}"),
        source: None,
    };
    match status {
        StatusCode::UNAUTHORIZED if showed_credentials => denied(
            what,
            format!(
                "{said}; it does not accept the credentials: log in again with `skopeo login --authfile FILE`"
            ),
        ),
        StatusCode::UNAUTHORIZED => denied(
            what,
            format!("{said}; it wants credentials: name a file that has them with --registry-auth FILE"),
        ),
        StatusCode::FORBIDDEN => denied(
            what,
            format!("{said}; these credentials may not do this, or the repository does not exist"),
        ),
        StatusCode::NOT_FOUND => InputError::Missing {
            what: what.to_owned(),
            reason: format!("{said}; correct the repository, tag or digest, or push the image again"),
        },
        StatusCode::TOO_MANY_REQUESTS => {
            let wait = after.map_or("later".to_owned(), |s| format!("in {s} s"));
            unreachable(&format!("it has had too many requests: try again {wait}, or with credentials"))
        }
        status if status.is_server_error() => unreachable("its operator must look at it; try again later"),
        status if status.is_redirection() => denied(what, format!("{said}; it sends this request elsewhere")),
        _ => InputError::Refused {
            what: what.to_owned(),
            reason: format!("{said}; it may not speak the OCI distribution protocol"),
        },
    }
}

fn denied(what: &str, reason: String) -> InputError {
    InputError::Denied { url: what.to_owned(), reason }
}

/// The first error code of a body, as distribution-spec 1.1 spells it ("Error Codes").
async fn error_code(response: Response) -> Option<String> {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        code: String,
    }
    let body = tokio::time::timeout(ERROR_TIMEOUT, bounded(response, ERROR_BYTES_MAX));
    let bytes = body.await.ok()?.ok()??;
    let errors: Errors = serde_json::from_slice(&bytes).ok()?;
    let code = errors.errors.into_iter().next()?.code;
    let shape = (1..=40).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    shape.then_some(code)
}

/// A body of at most so many bytes; none if it has more.
pub(crate) async fn bounded(mut response: Response, bytes_max: usize) -> reqwest::Result<Option<Vec<u8>>> {
    if response.content_length().is_some_and(|length| usize::try_from(length).map_or(true, |l| l > bytes_max))
    {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if bytes.len().saturating_add(chunk.len()) > bytes_max {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ampoule_spec::Code;

    #[tokio::test(start_paused = true)]
    async fn answer_that_never_ends_is_given_up() {
        let begun = tokio::time::Instant::now();
        let error = within("a document", std::future::pending::<Result<(), InputError>>()).await.unwrap_err();
        assert_eq!(begun.elapsed(), DOCUMENT_TIMEOUT);
        assert_eq!(error.code(), Code::InputUnreachable);
        assert!(error.to_string().contains("a document") && error.to_string().contains("120 s"), "{error}");
    }
}
