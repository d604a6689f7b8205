//! `secrets.toml`: what the operator gives to which project, and from where.

use super::mapping::{Mapping, Rule, Source};
use crate::export::sha256_of;
use crate::files::read_operators;
use crate::jobfile::values::duration_ms;
use crate::vault::{Config, Read};
use ampoule_spec::{Name, Sha256};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The version of the format.
const FORMAT: u32 = 1;
/// The most secrets.
const RULES_MAX: usize = 10_000;
/// The most entries of a list.
const LIST_MAX: usize = 256;
/// The most bytes of a text.
const TEXT_BYTES_MAX: usize = 2048;
/// A value is looked for no more often.
const ROTATE_MIN: Duration = Duration::from_secs(10);

/// Why `secrets.toml` cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct SecretsError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub reason: String,
}

/// What the file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecretsFile {
    /// Who has what.
    pub mapping: Mapping,
    /// The servers, by the names that rules call them by.
    pub servers: BTreeMap<Name, Config>,
    /// SHA-256 of the file.
    pub sha256: Option<Sha256>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    format: u32,
    #[serde(default)]
    server: BTreeMap<String, Config>,
    #[serde(default)]
    secret: Vec<RawRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    project: String,
    name: String,
    file: Option<PathBuf>,
    credential: Option<String>,
    server: Option<String>,
    read: Option<Read>,
    field: Option<String>,
    rotate: Option<String>,
    callers: Option<Vec<String>>,
    refs: Option<Vec<String>>,
    profiles: Option<Vec<String>>,
    #[serde(default)]
    signed: bool,
    #[serde(default)]
    env_allowed: bool,
}

impl SecretsFile {
    /// Reads the file: root's or our own, nobody else's to write, and not everybody's to read.
    ///
    /// # Errors
    /// [`SecretsError`].
    pub fn load(path: &Path) -> Result<Self, SecretsError> {
        let wrong = |reason: String| SecretsError { path: path.to_owned(), reason };
        let text = read_operators(path).map_err(|e| wrong(format!("{}; {}", e.reason, e.remedy)))?;
        let mode = std::fs::metadata(path).map_err(|e| wrong(e.to_string()))?.mode();
        if mode & 0o004 != 0 {
            let reason = "can be read by everybody, and says which secrets there are; run chmod o-r";
            return Err(wrong(reason.to_owned()));
        }
        let file = Self::parse(&text, path.parent().unwrap_or(Path::new(""))).map_err(wrong)?;
        Ok(Self { sha256: Some(sha256_of(text.as_bytes())), ..file })
    }

    /// Parses the file; relative paths in it are taken from `base`.
    ///
    /// # Errors
    /// A text that says what is wrong.
    pub fn parse(text: &str, base: &Path) -> Result<Self, String> {
        let raw: Raw = toml::from_str(text).map_err(|e| explained(&e))?;
        if raw.format != FORMAT {
            return Err(format!("format {} is not known; this build reads {FORMAT}", raw.format));
        }
        if raw.secret.len() > RULES_MAX {
            return Err(format!("secret: at most {RULES_MAX}"));
        }
        let mut servers = BTreeMap::new();
        for (name, config) in raw.server {
            let wrong = |reason: String| format!("server.{name}.{reason}");
            let parsed = Name::parse(&name).map_err(|e| format!("server: {e}"))?;
            let config = config.based(base);
            config.check().map_err(|e| wrong(e.to_string()))?;
            servers.insert(parsed, config);
        }
        let mut rules = BTreeMap::new();
        for raw in raw.secret {
            let what = format!("secret {:?} of project {:?}", raw.name, raw.project);
            let wrong = |reason: String| format!("{what}: {reason}");
            let project = Name::parse(&raw.project).map_err(|e| wrong(format!("project: {e}")))?;
            let name = Name::parse(&raw.name).map_err(|e| wrong(format!("name: {e}")))?;
            let rule = rule(raw, &servers, base).map_err(wrong)?;
            if rules.insert((project, name), rule).is_some() {
                return Err(wrong("is there twice; one rule says all of it".to_owned()));
            }
        }
        Ok(Self { mapping: Mapping { rules }, servers, sha256: None })
    }
}

/// A table within a table is what people get wrong; the parser names our own types then.
fn explained(error: &toml::de::Error) -> String {
    let text = error.to_string();
    let Some((before, _)) = text.split_once("expected struct variant") else { return text };
    format!(
        "{before}expected a table of what is read, as in read = {{ kv2 = {{ path = \"app/npm\" }} }} or \
         read = {{ path = {{ path = \"cubbyhole/app\" }} }}"
    )
}

fn rule(raw: RawRule, servers: &BTreeMap<Name, Config>, base: &Path) -> Result<Rule, String> {
    let is_local = raw.server.is_none();
    if is_local && (raw.field.is_some() || raw.rotate.is_some()) {
        return Err("field and rotate are of what a server gives".to_owned());
    }
    let source = match (raw.file, raw.credential, raw.server, raw.read) {
        (Some(path), None, None, None) => Source::File(base.join(path)),
        (None, Some(name), None, None) => Source::Credential(credential(name)?),
        (None, None, Some(server), Some(read)) => {
            let server = Name::parse(&server).map_err(|e| format!("server: {e}"))?;
            if !servers.contains_key(&server) {
                return Err(format!("server: there is no [server.{server}] in this file"));
            }
            read.path().map_err(|e| format!("read: {e}"))?;
            let field =
                raw.field.as_deref().map(|field| text("field", field).map(str::to_owned)).transpose()?;
            let rotate = raw.rotate.as_deref().map(rotation).transpose()?;
            Source::Vault { server, read, field, rotate }
        }
        _ => return Err("exactly one of file, credential, and server with read".to_owned()),
    };
    let profiles = raw.profiles.map(|names| list("profiles", names)).transpose()?;
    let profiles = profiles.map(|names| {
        let parsed = names.iter().map(|name| Name::parse(name).map_err(|e| format!("profiles: {e}")));
        parsed.collect::<Result<Vec<_>, _>>()
    });
    let refs = raw.refs.map(|refs| list("refs", refs)).transpose()?;
    if refs
        .iter()
        .flatten()
        .any(|pattern| pattern.trim_end_matches('*').contains('*') || pattern.ends_with("**"))
    {
        return Err("refs: `*` stands at the end alone, for any ending".to_owned());
    }
    Ok(Rule {
        source,
        callers: raw.callers.map(|callers| list("callers", callers)).transpose()?,
        refs,
        profiles: profiles.transpose()?,
        signed: raw.signed,
        env_allowed: raw.env_allowed,
    })
}

fn list(field: &str, items: Vec<String>) -> Result<Vec<String>, String> {
    if items.len() > LIST_MAX {
        return Err(format!("{field}: at most {LIST_MAX}"));
    }
    items.iter().try_for_each(|item| text(field, item).map(drop))?;
    Ok(items)
}

fn text<'t>(field: &str, text: &'t str) -> Result<&'t str, String> {
    if text.is_empty() || text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(format!("{field}: 1 to {TEXT_BYTES_MAX} bytes without control characters"));
    }
    Ok(text)
}

fn credential(name: String) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.starts_with('.') || name.len() > 255 || !name.chars().all(plain) {
        return Err(format!("credential: {name:?} is no name; write what LoadCredential= calls it"));
    }
    Ok(name)
}

fn rotation(text: &str) -> Result<Duration, String> {
    let every = duration_ms(text).map(Duration::from_millis).filter(|every| *every >= ROTATE_MIN);
    every.ok_or_else(|| format!("rotate: a duration as in \"5m\", {} s at least", ROTATE_MIN.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const LEAST: &str = "format = 1\n[[secret]]\nproject = \"web\"\nname = \"npm\"\n";

    fn parse(more: &str) -> Result<SecretsFile, String> {
        SecretsFile::parse(&format!("{LEAST}{more}"), Path::new("/etc/ampoule"))
    }

    #[test]
    fn rule_is_read_with_all_it_says_and_anything_else_is_refused() {
        let file = parse(
            "file = \"npm\"\ncallers = [\"ci\"]\nrefs = [\"refs/tags/v*\"]\nprofiles = [\"hermetic\"]\nsigned = true\nenv_allowed = true\n",
        );
        let file = file.unwrap();
        let rule = &file.mapping.rules[&(Name::parse("web").unwrap(), Name::parse("npm").unwrap())];
        assert_eq!(rule.source, Source::File("/etc/ampoule/npm".into()));
        assert!(rule.signed && rule.env_allowed && rule.callers.is_some() && rule.refs.is_some());
        for (more, why) in [
            ("", "exactly one of"),
            ("file = \"a\"\ncredential = \"b\"\n", "exactly one of"),
            ("credential = \"../a\"\n", "credential"),
            ("credential = \".a\"\n", "credential"),
            ("file = \"a\"\npath = \"b\"\n", "unknown field `path`"),
            ("file = \"a\"\nrefs = [\"a*b\"]\n", "refs"),
            ("file = \"a\"\nrefs = [\"a**\"]\n", "refs"),
            ("file = \"a\"\nrefs = [\"\"]\n", "refs"),
            ("file = \"a\"\ncallers = [\"a\\u0000\"]\n", "callers"),
            ("file = \"a\"\nprofiles = [\"a/b\"]\n", "profiles"),
            ("file = \"a\"\n[[secret]]\nproject = \"web\"\nname = \"npm\"\nfile = \"b\"\n", "twice"),
            ("file = \"a\"\n[[secret]]\nproject = \"web\"\nname = \"../npm\"\nfile = \"b\"\n", "name"),
            ("file = \"a\"\nrotate = \"1m\"\n", "rotate"),
            ("server = \"b\"\nread = { kv2 = { path = \"p\" } }\n", "no [server.b]"),
            ("file = \"a\"\n[server.main]\naddresses = []\n", "missing field"),
            ("file = \"a\"\n[more]\n", "unknown field `more`"),
            ("server = \"b\"\nread = { path = \"p\" }\n", "as in read = { kv2 ="),
        ] {
            let refused = parse(more).unwrap_err();
            assert!(refused.contains(why), "{more}: {refused}");
        }
        assert!(SecretsFile::parse("format = 2", Path::new("")).unwrap_err().contains("format 2"));
        assert!(SecretsFile::parse("format = 1", Path::new("")).unwrap().mapping.is_empty());
    }

    #[test]
    fn file_that_everybody_reads_or_others_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets.toml");
        std::fs::write(&path, format!("{LEAST}file = \"npm\"\n")).unwrap();
        for (mode, good) in [(0o600, true), (0o640, true), (0o644, false), (0o660, false), (0o604, false)] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(SecretsFile::load(&path).is_ok(), good, "{mode:o}");
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        assert!(SecretsFile::load(&path).unwrap().sha256.is_some());
        assert!(SecretsFile::load(&dir.path().join("none")).is_err());
    }
}
