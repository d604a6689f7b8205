//! What a registry asks for before it answers: the `WWW-Authenticate` header (RFC 9110 §11.6.1).

use http_auth::parser::ChallengeParser;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// The most challenges of an answer that are looked at.
const CHALLENGES_MAX: usize = 8;
/// The longest header that is read, in bytes.
const HEADER_BYTES_MAX: usize = 8 << 10;

/// What a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A user and a password.
    Basic,
    /// A token of this service (distribution's token specification).
    Bearer {
        /// The URL of the service.
        realm: String,
        /// What the service calls this registry.
        service: Option<String>,
    },
}

/// The challenges that are understood, in their order. Others and malformed ones are skipped. A scope that the
/// registry proposes is not: what is asked for is what we want to do, and no more.
pub(crate) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let short = texts.filter(|text| text.len() <= HEADER_BYTES_MAX);
    short.flat_map(read).take(CHALLENGES_MAX).collect()
}

fn read(text: &str) -> Vec<Challenge> {
    let parsed = ChallengeParser::new(text).map_while(Result::ok);
    let known = parsed.filter_map(|challenge| {
        if challenge.scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !challenge.scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let value = |name: &str| {
            let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_unescaped())
        };
        Some(Challenge::Bearer { realm: value("realm")?, service: value("service") })
    });
    known.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(texts: &[&str]) -> Vec<Challenge> {
        let mut headers = HeaderMap::new();
        for text in texts {
            headers.append(WWW_AUTHENTICATE, text.parse().unwrap());
        }
        challenges(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) }
    }

    #[test]
    fn challenges_are_read_in_their_order() {
        let text =
            r#"Bearer realm="https://h.x/token",service="registry, of \"x\"",scope="repository:a:pull""#;
        assert_eq!(of(&[text]), [bearer("https://h.x/token", Some("registry, of \"x\""))]);
        assert_eq!(
            of(&["Negotiate", "basic realm=\"x\", Bearer realm=\"r\""]),
            [Challenge::Basic, bearer("r", None)]
        );
    }

    #[test]
    fn what_is_not_understood_is_skipped() {
        for text in ["", "Digest realm=\"x\"", "Bearer", "Bearer service=\"x\"", "=", "Bearer realm=\"x"] {
            assert!(of(&[text]).is_empty(), "{text}");
        }
        assert!(of(&[&format!("Bearer realm=\"{}\"", "x".repeat(9000))]).is_empty());
        assert_eq!(of(&["Basic realm=\"a\""; 20]).len(), CHALLENGES_MAX);
    }
}
