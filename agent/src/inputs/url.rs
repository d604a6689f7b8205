//! Which URLs an input may have.

use reqwest::Url;

/// Checks a URL of a job file: `http`, `https` or `file`, without user information, and spelt so that every
/// reader takes it for the same.
///
/// # Errors
/// What is wrong and what to write instead.
pub fn parse_url(text: &str) -> Result<Url, String> {
    // The parser silently drops tabs and line breaks and trims blanks: two spellings of one URL.
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("a URL holds no blanks and no control characters; write %20 for a blank".to_owned());
    }
    let url = Url::parse(text).map_err(|e| format!("not a URL: {e}"))?;
    check(&url)?;
    Ok(url)
}

/// Checks a parsed URL, of a job or of a redirect.
pub(crate) fn check(url: &Url) -> Result<(), String> {
    match url.scheme() {
        "http" | "https" => {}
        "file" => {
            if !matches!(url.host_str(), None | Some("" | "localhost")) {
                return Err("a file URL has no host; write file:///PATH".to_owned());
            }
        }
        other => return Err(format!("the scheme {other:?} is not supported; use http, https or file")),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL holds no user name and no password; they would be published".to_owned());
    }
    Ok(())
}

/// A URL as messages and records show it: without its query, which may hold a token.
pub(crate) fn without_query(url: &Url) -> String {
    let mut shown = url.clone();
    shown.set_query(None);
    shown.set_fragment(None);
    shown.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_url_takes_three_schemes_and_nothing_hidden() {
        for good in
            ["http://h/x", "https://h:8443/x?y=z", "file:///a/b", "file://localhost/a", "https://[::1]/x"]
        {
            assert!(parse_url(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "x",
            "/a/b",
            "ftp://h/x",
            "data:,x",
            "javascript:1",
            "https://",
            "http://u@h/",
            "http://u:p@h/",
            "http://:p@h/",
            "https://h/a b",
            " https://h/",
            "https://h/\n",
            "https://h/\tx",
            "file://other/x",
        ] {
            assert!(parse_url(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn without_query_hides_tokens() {
        let url = Url::parse("https://h/x?X-Signature=secret#f").unwrap();
        assert_eq!(without_query(&url), "https://h/x");
    }
}
