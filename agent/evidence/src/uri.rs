//! URIs in attestations: absolute (RFC 3986), scheme and host in lower case, without user info or host path.

use ampoule_spec::{Image, InputSource, JobSpec, Name};
use std::fmt::Write as _;

/// Why a job's URL or reference cannot stand in an attestation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is refused: {rule}")]
pub struct UriError {
    /// The field of the job, as in `input[0].http.url`. The text itself may hold a password, so it is not here.
    pub field: String,
    /// The rule it breaks.
    pub rule: &'static str,
}

/// Holds a job's URLs and image reference against the rules of attestations.
///
/// Admission calls it, so that no job runs whose provenance would be refused for one of them.
///
/// # Errors
/// The first [`UriError`] in the order of the fields.
pub fn check_uris(spec: &JobSpec) -> Result<(), UriError> {
    image_uri(&spec.image)?;
    for (at, input) in spec.inputs.iter().enumerate() {
        source_uri(at, &input.name, &input.source)?;
        mirror_uris(at, &input.source)?;
    }
    Ok(())
}

/// The URI of an input.
pub(crate) fn source_uri(at: usize, name: &Name, source: &InputSource) -> Result<String, UriError> {
    match source {
        InputSource::Http { url, .. } => {
            normal_http(url).map_err(|rule| UriError { field: format!("input[{at}].http.url"), rule })
        }
        InputSource::Git { url, commit, .. } => crate::git::uri(name, url.as_deref(), *commit)
            .map_err(|rule| UriError { field: format!("input[{at}].git.url"), rule }),
        InputSource::Directory { .. } | InputSource::File { .. } | InputSource::Tar { .. } => {
            Ok(format!("urn:ampoule:input:{name}"))
        }
        InputSource::Attestation { made_by, .. } => {
            let field = || format!("input[{at}].attestation");
            check_absolute(&made_by.builder).map_err(|rule| UriError { field: field(), rule })?;
            // The invocation that the other statement names, and which of its subjects (RFC 3986 §3.5).
            let uri = format!("urn:uuid:{}#{}", made_by.job, made_by.subject);
            check_absolute(&uri).map_err(|rule| UriError { field: field(), rule }).map(|()| uri)
        }
    }
}

/// The URIs of a download's mirrors.
pub(crate) fn mirror_uris(at: usize, source: &InputSource) -> Result<Vec<String>, UriError> {
    let InputSource::Http { mirrors, .. } = source else { return Ok(Vec::new()) };
    let field = |place| format!("input[{at}].http.mirrors[{place}]");
    let normal = |(place, url): (usize, &String)| {
        normal_http(url).map_err(|rule| UriError { field: field(place), rule })
    };
    mirrors.iter().enumerate().map(normal).collect()
}

/// The URI of an image.
pub(crate) fn image_uri(image: &Image) -> Result<String, UriError> {
    match image {
        Image::Host => Ok("urn:ampoule:image:host".to_owned()),
        Image::Tar { .. } => Ok("urn:ampoule:image:tar".to_owned()),
        Image::Oci { reference, .. } => {
            oci(reference).map_err(|rule| UriError { field: "image.reference".to_owned(), rule })
        }
    }
}

/// An `http` or `https` URL with scheme and authority in lower case.
pub(crate) fn normal_http(url: &str) -> Result<String, &'static str> {
    let (scheme, rest) = url.split_once("://").ok_or("give an http:// or https:// URL")?;
    let scheme = scheme.to_ascii_lowercase();
    if scheme != "http" && scheme != "https" {
        return Err("give an http:// or https:// URL");
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let normal = format!("{scheme}://{}{path}", authority.to_ascii_lowercase());
    check_absolute(&normal).map(|()| normal)
}

fn oci(reference: &str) -> Result<String, &'static str> {
    let name = reference.split_once("@sha256:").map_or(reference, |(name, _)| name);
    // Nothing else is spelt as an origin: what was not asked must not read as one.
    if let Some(rest) = name.strip_prefix("docker://") {
        let (host, path) = rest.split_once('/').ok_or("a registry reference has a host and a repository")?;
        let uri = format!("oci://{}/{path}", host.to_ascii_lowercase());
        return check_absolute(&uri).map(|()| uri);
    }
    let name = name.strip_prefix("oci:").unwrap_or(name);
    let name = name.strip_prefix("./").unwrap_or(name);
    if name.is_empty() {
        return Ok("urn:ampoule:image:oci".to_owned());
    }
    if name.contains(['/', '\\']) || name == ".." || name == "." {
        return Err("it names a path of the client's; give the directory's own name");
    }
    Ok(format!("oci:{}", percent_encode(name)))
}

/// Whether a text is an absolute URI as attestations spell them.
pub(crate) fn check_absolute(text: &str) -> Result<(), &'static str> {
    let (scheme, rest) = text.split_once(':').ok_or("a URI begins with a scheme")?;
    let scheme_ok = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b));
    if !scheme_ok {
        return Err("a URI begins with a scheme in lower case");
    }
    if rest.is_empty() {
        return Err("a URI has something after its scheme");
    }
    check_characters(rest)?;
    let (authority, path) = match rest.strip_prefix("//") {
        Some(rest) => {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            check_authority(authority)?;
            (authority, path)
        }
        None => ("", rest),
    };
    if path.contains(['[', ']']) || path.matches('#').count() > 1 || authority.contains('%') {
        return Err("a character stands where RFC 3986 does not allow it");
    }
    Ok(())
}

fn check_authority(authority: &str) -> Result<(), &'static str> {
    if authority.contains('@') {
        return Err("user info is not written into an attestation; give the URL without it");
    }
    if authority.is_empty() || authority.starts_with(':') {
        return Err("a URI with // has a host");
    }
    if authority.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("a host is in lower case");
    }
    Ok(())
}

fn check_characters(text: &str) -> Result<(), &'static str> {
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let ok = match byte {
            b'%' => [rest.next(), rest.next()].iter().all(|b| b.is_some_and(|b| b.is_ascii_hexdigit())),
            // unreserved, gen-delims and sub-delims (RFC 3986 §2.2 and §2.3)
            b => b.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=".contains(&b),
        };
        if !ok {
            return Err("a character is not allowed in a URI; percent-encode it");
        }
    }
    Ok(())
}

/// Percent-encodes everything that is not unreserved or `:`.
pub(crate) fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_good_urls_are_kept_and_hosts_lowered() {
        assert_eq!(
            normal_http("HTTPS://Zlib.NET/A.tar.gz?x=%2F#y").unwrap(),
            "https://zlib.net/A.tar.gz?x=%2F#y"
        );
        assert_eq!(normal_http("http://[::1]:80/").unwrap(), "http://[::1]:80/");
    }

    #[test]
    fn http_odd_urls_are_refused() {
        for url in [
            "",
            "zlib.net",
            "ftp://a/",
            "https://",
            "https:///x",
            "https://u:p@a/",
            "https://a@b/",
            "https://a/ b",
            "https://a/\n",
            "https://a/%zz",
            "https://a/%2",
            "https://ä/",
            "https://:80/",
            "https://a/#b#c",
            "https://a%40b/",
            "https://a/[",
            "file:///etc/passwd",
        ] {
            assert!(normal_http(url).is_err(), "{url:?}");
        }
    }

    #[test]
    fn oci_references_become_uris_without_paths() {
        for (reference, uri) in [
            (
                "docker://Registry.example:5000/team/base:1@sha256:00",
                "oci://registry.example:5000/team/base:1",
            ),
            ("oci:./base:v1@sha256:00", "oci:base:v1"),
            ("base", "oci:base"),
            ("oci:my base", "oci:my%20base"),
            ("", "urn:ampoule:image:oci"),
        ] {
            assert_eq!(oci(reference).as_deref(), Ok(uri), "{reference}");
        }
        for reference in [
            "oci:/home/me/base",
            "../base",
            "oci:a/b",
            "docker://base",
            "docker://u:p@r/x",
            "oci:..",
            "oci://r.example/x",
        ] {
            assert!(oci(reference).is_err(), "{reference}");
        }
    }
}
