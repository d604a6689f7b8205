//! Credentials from a file: Docker's `config.json` and containers' `auth.json` (containers-auth.json(5)).
//!
//! What is guaranteed: nothing is executed (a credential helper is refused by name), nothing is read but the file
//! that was named, and neither a password nor a token is ever shown.

use super::reference::Reference;
use crate::inputs::InputError;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The largest file of credentials, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a registry is shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// A user and a password.
    Password { user: String, password: Zeroizing<String> },
    /// A refresh token of the registry's authorization service.
    IdentityToken(Zeroizing<String>),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(hidden)")
    }
}

/// A file of credentials.
#[derive(Debug, Clone)]
pub struct AuthFile {
    path: PathBuf,
    auths: BTreeMap<String, Entry>,
    helpers: BTreeMap<String, String>,
    store: Option<String>,
}

/// Other keys (`HttpHeaders`, `proxies`, …) are of no concern here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawFile {
    #[serde(default)]
    auths: BTreeMap<String, RawEntry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct RawEntry {
    #[serde(default)]
    auth: Option<Zeroizing<String>>,
    #[serde(default, alias = "identityToken")]
    identitytoken: Option<Zeroizing<String>>,
}

#[derive(Clone)]
enum Entry {
    Empty,
    Has(Credentials),
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entry(hidden)")
    }
}

impl AuthFile {
    /// Reads a file of credentials.
    ///
    /// # Errors
    /// `file.unusable` if it cannot be read or others can read it; `input.refused` if it is not of this format.
    pub fn read(path: &Path) -> Result<Self, InputError> {
        let what = || format!("the registry credentials {}", path.display());
        let unusable = |source| InputError::File { what: what(), source };
        let file = File::open(path).map_err(unusable)?;
        let meta = file.metadata().map_err(unusable)?;
        let mode = meta.mode() & 0o777;
        if meta.is_file() && mode & 0o077 != 0 {
            let text = format!("others can read it (mode {mode:03o}); run chmod 600 {}", path.display());
            return Err(unusable(std::io::Error::other(text)));
        }
        let mut bytes = Zeroizing::new(Vec::new());
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unusable)?;
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > FILE_BYTES_MAX {
            return Err(refused(what(), format!("more than {FILE_BYTES_MAX} bytes")));
        }
        Self::parse(&bytes, path)
    }

    fn parse(bytes: &[u8], path: &Path) -> Result<Self, InputError> {
        let what = || format!("the registry credentials {}", path.display());
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(refused(what(), "it is no config.json or auth.json: no JSON object".to_owned()));
        }
        // serde's message would quote a value of a wrong type.
        let raw: RawFile = serde_json::from_slice(bytes).map_err(|e| {
            let place = format!("line {}, column {}", e.line(), e.column());
            refused(what(), format!("it is no config.json or auth.json ({place})"))
        })?;
        let mut auths = BTreeMap::new();
        for (key, entry) in raw.auths {
            let shown: String = key.chars().filter(|c| !c.is_control()).take(120).collect();
            let read =
                entry.read().map_err(|reason| refused(what(), format!("auths[{shown:?}]: {reason}")))?;
            auths.insert(normal(&key), read);
        }
        let helpers = raw.cred_helpers.into_iter().map(|(key, helper)| (normal(&key), helper)).collect();
        Ok(Self { path: path.to_owned(), auths, helpers, store: raw.creds_store.filter(|s| !s.is_empty()) })
    }

    /// The credentials for a repository: those of the longest key that is the repository, one of its parents, or
    /// its host. None: the file has none for this registry.
    ///
    /// # Errors
    /// `input.refused` if the file names a program that would have to be executed for them.
    pub(crate) fn credentials(&self, reference: &Reference) -> Result<Option<Credentials>, InputError> {
        let full = format!("{}/{}", reference.host, reference.repository);
        let mut key = full.as_str();
        loop {
            if let Some(Entry::Has(credentials)) = self.auths.get(key) {
                return Ok(Some(credentials.clone()));
            }
            let stored = self.store.as_ref().filter(|_| self.auths.contains_key(key));
            if let Some(helper) = self.helpers.get(key).or(stored) {
                let helper: String = helper.chars().filter(|c| !c.is_control()).take(80).collect();
                let reason = format!(
                    "the credentials for {key} are with the credential helper {helper:?}, and no program is executed \
                     for them; write them into a file with `skopeo login --authfile FILE {}`",
                    reference.host
                );
                return Err(refused(format!("the registry credentials {}", self.path.display()), reason));
            }
            match key.rsplit_once('/') {
                Some((parent, _)) => key = parent,
                None => return Ok(None),
            }
        }
    }
}

impl RawEntry {
    fn read(self) -> Result<Entry, &'static str> {
        if let Some(token) = self.identitytoken.filter(|token| !token.is_empty()) {
            return Ok(Entry::Has(Credentials::IdentityToken(token)));
        }
        let Some(auth) = self.auth.filter(|auth| !auth.is_empty()) else { return Ok(Entry::Empty) };
        let trimmed = auth.trim();
        let decoded = STANDARD.decode(trimmed).or_else(|_| STANDARD_NO_PAD.decode(trimmed));
        let decoded = Zeroizing::new(decoded.map_err(|_| "auth is not base64")?);
        let text = std::str::from_utf8(&decoded).map_err(|_| "auth is not UTF-8")?;
        let (user, password) = text.split_once(':').ok_or("auth is not the base64 of USER:PASSWORD")?;
        if text.chars().any(char::is_control) {
            return Err("auth holds a control character");
        }
        let password = Zeroizing::new(password.to_owned());
        Ok(Entry::Has(Credentials::Password { user: user.to_owned(), password }))
    }
}

/// A key without the scheme and path that older Docker writes: `https://HOST/v1/`.
fn normal(key: &str) -> String {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let bare = match bare {
        Some(url) => url.split('/').next().unwrap_or_default(),
        None => key,
    };
    match bare.split_once('/') {
        Some((host, path)) => format!("{}/{}", host.to_ascii_lowercase(), path.trim_end_matches('/')),
        None => bare.to_ascii_lowercase(),
    }
}

fn refused(what: String, reason: String) -> InputError {
    InputError::Refused { what, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ampoule_spec::Code;
    use std::os::unix::fs::PermissionsExt;

    fn reference(text: &str) -> Reference {
        Reference::parse(&format!("docker://{text}")).unwrap().0
    }

    fn file(text: &str) -> Result<AuthFile, InputError> {
        AuthFile::parse(text.as_bytes(), Path::new("auth.json"))
    }

    fn user(file: &AuthFile, text: &str) -> Option<String> {
        match file.credentials(&reference(text)).unwrap() {
            Some(Credentials::Password { user, .. }) => Some(user),
            Some(Credentials::IdentityToken(_)) => Some("token".to_owned()),
            None => None,
        }
    }

    #[test]
    fn longest_key_decides() {
        // a:p, b:p, c:p:q
        let text = r#"{"auths": {"https://Registry.Example:5000/v2/": {"auth": "YTpw"},
            "registry.example:5000/team": {"auth": "Yjpw"}, "registry.example:5000/team/base": {"auth": "YzpwOnE"},
            "other.example": {"auth": "", "identitytoken": "t"}, "empty.example": {}}, "HttpHeaders": {"X": "y"}}"#;
        let file = file(text).unwrap();
        assert_eq!(user(&file, "registry.example:5000/x").as_deref(), Some("a"));
        assert_eq!(user(&file, "registry.example:5000/teamwork/x").as_deref(), Some("a"));
        assert_eq!(user(&file, "registry.example:5000/team/x").as_deref(), Some("b"));
        assert_eq!(user(&file, "registry.example:5000/team/base/y").as_deref(), Some("c"));
        assert_eq!(user(&file, "other.example/x").as_deref(), Some("token"));
        for none in ["empty.example/x", "registry.example/x", "registry.example:5001/x", "none.example/x"] {
            assert_eq!(user(&file, none), None, "{none}");
        }
        let Some(Credentials::Password { password, .. }) =
            file.credentials(&reference("registry.example:5000/team/base")).unwrap()
        else {
            panic!("no password")
        };
        assert_eq!(password.as_str(), "p:q");
    }

    #[test]
    fn credential_helpers_are_refused_by_name_and_only_where_they_would_be_asked() {
        let text = r#"{"auths": {"a.example": {}, "c.example": {"auth": "YTpw"}}, "credsStore": "desktop",
            "credHelpers": {"b.example": "ecr-login"}}"#;
        let file = file(text).unwrap();
        for (text, helper) in [("a.example/x", "desktop"), ("b.example/x", "ecr-login")] {
            let error = file.credentials(&reference(text)).unwrap_err();
            assert_eq!(error.code(), Code::InputRefused);
            assert!(
                error.to_string().contains(helper) && error.to_string().contains("skopeo login"),
                "{error}"
            );
        }
        assert_eq!(user(&file, "c.example/x").as_deref(), Some("a"));
        assert_eq!(user(&file, "d.example/x"), None);
    }

    #[test]
    fn files_that_are_none_are_refused_and_nothing_secret_is_shown() {
        for text in [
            "",
            "[]",
            "{\"auths\": {\"h.x\": {\"auth\": 5}}}",
            "{\"auths\": {\"h.x\": {\"auth\": \"s3cret!\"}}}",
            "{\"auths\": {\"h.x\": {\"auth\": \"czNjcmV0\"}}}",
            "{\"auths\": \"s3cret\"}",
            "{\"auths\": {\"h.x\": {\"auth\": \"YTpiCg==\"}}}",
        ] {
            let error = file(text).unwrap_err();
            assert_eq!(error.code(), Code::InputRefused);
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
        }
        let file = file("{\"auths\": {\"h.x\": {\"auth\": \"YTpzM2NyZXQ=\"}}}").unwrap();
        let credentials = file.credentials(&reference("h.x/a")).unwrap();
        assert!(!format!("{file:?} {credentials:?}").contains("s3cret"));
    }

    #[test]
    fn file_that_others_can_read_is_refused_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        std::fs::write(&path, "{}").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let InputError::File { source, .. } = AuthFile::read(&path).unwrap_err() else {
            panic!("another error")
        };
        assert!(source.to_string().contains("chmod 600"), "{source}");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert!(AuthFile::read(&path).is_ok());
    }
}
