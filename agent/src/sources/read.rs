//! Reads `sources.toml`, as strictly as a job file.

use super::address;
use super::origin::{Auth, Origin, Prefix, Purpose};
use super::policy::{PROJECT_DEFAULT, Policy};
use crate::files::read_operators;
use crate::jobfile::read::{Reader, Table, Value};
use crate::jobfile::{JobFileError, suggest};
use ampoule_spec::{Code, Name};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use toml::de::DeTable;

type Result<T> = std::result::Result<T, JobFileError>;

/// The version of the format.
const FORMAT: i64 = 1;

const ROOT_KEYS: &[&str] = &["sources", "project", "origin"];
const PROJECT_KEYS: &[&str] = &["allow", "public"];
const ORIGIN_KEYS: &[&str] = &["url", "registry", "git", "addresses", "ca", "auth", "mirror_of"];
const KIND_KEYS: &[&str] = &["url", "registry", "git"];
const AUTH_KEYS: &[&str] = &["basic", "bearer", "header", "file"];

/// The operator's `sources.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourcesFile {
    name: String,
    projects: BTreeMap<String, Project>,
    origins: BTreeMap<String, Origin>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Project {
    allow: Vec<String>,
    public: bool,
}

impl SourcesFile {
    /// Reads the file at `path`. What it names lies beside it, unless it is absolute.
    ///
    /// # Errors
    /// `file.unusable` with line, field and remedy.
    pub fn load(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text = read_operators(path)?;
        Self::parse(&text, &name, path.parent().unwrap_or(Path::new("")))
    }

    /// Parses a file that the messages call `name`; relative paths in it are taken from `base`.
    ///
    /// # Errors
    /// `file.unusable` with line, field and remedy.
    pub fn parse(text: &str, name: &str, base: &Path) -> Result<Self> {
        // The reader is that of job files, whose errors are the job's.
        read(text, name, base).map_err(|error| JobFileError { code: Code::FileUnusable, ..error })
    }

    /// The policies of all projects that are in the file.
    pub fn policies(&self) -> BTreeMap<Name, Policy> {
        let named = self
            .projects
            .keys()
            .filter_map(|name| Some((Name::parse(name).ok()?, self.policy(Some(name)).ok()?)));
        named.collect()
    }

    /// The policy of a project; none: of `default`.
    ///
    /// # Errors
    /// `input.source_denied` for a project that is not in the file: none falls back to another's rules.
    pub fn policy(&self, project: Option<&str>) -> Result<Policy> {
        let project = project.unwrap_or(PROJECT_DEFAULT);
        let Some(rules) = self.projects.get(project) else {
            let known: Vec<&str> = self.projects.keys().map(String::as_str).collect();
            let remedy = match suggest::nearest(project, known.iter().copied()) {
                Some(near) => format!("did you mean {near:?}?"),
                None => {
                    format!("add [project.{project}] with allow = [\"…\"], or name another with --project")
                }
            };
            let reason = format!("the project {project:?} may fetch from nowhere: it is not in the file");
            return Err(JobFileError::whole(Code::InputSourceDenied, &self.name, "", reason, remedy));
        };
        Ok(Policy {
            file: Some((self.name.clone(), project.to_owned())),
            origins: rules.allow.iter().filter_map(|name| self.origins.get(name)).cloned().collect(),
            public: rules.public,
        })
    }
}

fn read(text: &str, name: &str, base: &Path) -> Result<SourcesFile> {
    let reader = Reader::new(name, text);
    let document = DeTable::parse(text).map_err(|e| reader.syntax(&e))?;
    let root = Table::root(&reader, &document);
    let version = root.need("sources", "1")?;
    if version.integer("the version of the format, an integer", "sources = 1")? != FORMAT {
        return Err(version.wrong("not a version that this build reads", "write sources = 1"));
    }
    root.only(ROOT_KEYS)?;
    let mut origins = BTreeMap::new();
    for (key, value) in entries(&root, "origin", "[origin.NAME]")? {
        origins.insert(named(key, &value)?, origin(key, &value, base)?);
    }
    let mut projects = BTreeMap::new();
    for (key, value) in entries(&root, "project", "[project.default]")? {
        projects.insert(named(key, &value)?, project(&value, &origins)?);
    }
    if projects.is_empty() {
        return Err(root.missing("project.default", "{ allow = [\"NAME\"] }"));
    }
    Ok(SourcesFile { name: name.to_owned(), projects, origins })
}

fn entries<'r>(root: &Table<'r>, key: &str, example: &str) -> Result<Vec<(&'r str, Value<'r>)>> {
    root.get(key).map_or(Ok(Vec::new()), |value| Ok(value.table(example)?.entries()))
}

fn named(key: &str, value: &Value<'_>) -> Result<String> {
    Name::parse(key).map_err(|e| value.wrong(e.to_string(), ""))?;
    Ok(key.to_owned())
}

fn project(value: &Value<'_>, origins: &BTreeMap<String, Origin>) -> Result<Project> {
    let table = value.table("[project.default]")?;
    table.only(PROJECT_KEYS)?;
    let public = table.get("public").map_or(Ok(false), |value| value.boolean())?;
    let mut allow: Vec<String> = Vec::new();
    let items = table.need("allow", "[\"NAME\"]")?.items("a list of origins' names", "[\"NAME\"]")?;
    for item in items {
        let name = item.text("an origin's name", "\"NAME\"")?;
        let Some(origin) = origins.get(name) else {
            let remedy = match suggest::nearest(name, origins.keys().map(String::as_str)) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("add [origin.{name}]"),
            };
            return Err(item.wrong("no such origin", remedy));
        };
        if allow.iter().any(|other| other == name) {
            return Err(item.wrong("listed twice", "remove one"));
        }
        let clash = |other: &&String| {
            origins.get(*other).is_some_and(|o| o.prefix == origin.prefix && o.purpose == origin.purpose)
        };
        if let Some(other) = allow.iter().find(clash) {
            let reason = format!("the same prefix as {other:?}, and it could not be said which one counts");
            return Err(item.wrong(reason, "list one of them"));
        }
        allow.push(name.to_owned());
    }
    Ok(Project { allow, public })
}

fn origin(name: &str, value: &Value<'_>, base: &Path) -> Result<Origin> {
    let table = value.table("[origin.NAME]")?;
    table.only(ORIGIN_KEYS)?;
    let named: Vec<_> = KIND_KEYS.iter().filter_map(|key| table.get(key).map(|v| (*key, v))).collect();
    let [(key, place)] = named.as_slice() else {
        return Err(table.wrong(
            "an origin is exactly one of url, registry and git",
            "as in url = \"https://HOST/PATH/\"",
        ));
    };
    let text = place.text("a prefix of URLs", "\"https://HOST/PATH/\"")?;
    let (prefix, purpose) = match *key {
        "url" => (Prefix::parse(text), None),
        "git" => (Prefix::parse(text), Some(Purpose::Git)),
        _ => (Prefix::parse_registry(text), Some(Purpose::Registry)),
    };
    let prefix = prefix.map_err(|reason| place.wrong(reason, ""))?;
    let mut addresses = table.get("addresses").map(|value| nets(&value)).transpose()?;
    match (prefix.address(), &addresses) {
        (Some(_), Some(_)) => {
            return Err(table.wrong("the host is an address, and addresses lists others", "remove addresses"));
        }
        // Whoever writes an address lists it.
        (Some(address), None) => {
            let net = IpNet::from(address);
            if let Some(kind) = address::unlistable(&net) {
                return Err(place.wrong(format!("{address} is {kind}, and no source"), ""));
            }
            addresses = Some(vec![net]);
        }
        (None, _) => {}
    }
    let ca = table.get("ca").map(|value| path(&value, base)).transpose()?;
    let auth = table.get("auth").map(|value| auth(&value, base)).transpose()?;
    for (key, given) in [("ca", ca.is_some()), ("auth", auth.is_some())] {
        if let (true, true, Some(value)) = (given, prefix.is_plain(), table.get(key)) {
            return Err(value.wrong("the origin is asked without TLS", "write https:// or remove the key"));
        }
    }
    let mirror_of = table.get("mirror_of").map_or(Ok(Vec::new()), |value| {
        if purpose.is_some() {
            return Err(value.wrong("only an origin by url is a mirror", "remove mirror_of"));
        }
        let items = value.items("a list of prefixes of URLs", "[\"https://HOST/PATH/\"]")?;
        items
            .iter()
            .map(|item| item.parsed("a prefix of URLs", "\"https://HOST/PATH/\"", Prefix::parse))
            .collect()
    })?;
    Ok(Origin { name: name.to_owned(), ca, auth, purpose, prefix, addresses, mirror_of })
}

fn nets(value: &Value<'_>) -> Result<Vec<IpNet>> {
    let example = "[\"10.1.0.0/16\", \"127.0.0.1\"]";
    let items = value.items("a list of addresses", example)?;
    if items.is_empty() {
        return Err(value.wrong("an origin without any address cannot be asked", format!("as in {example}")));
    }
    let net = |item: &Value<'_>| {
        let net = item.parsed("an address or a range", "\"10.1.0.0/16\"", |text| {
            let range = "write an address as in \"10.1.2.3\" or a range as in \"10.1.0.0/16\"";
            let whole = || text.parse::<IpAddr>().map(IpNet::from).ok();
            let net = text.parse::<IpNet>().ok().or_else(whole).ok_or_else(|| range.to_owned())?;
            if net.addr() == net.network() {
                Ok(net)
            } else {
                Err(format!("{text} is within {}; write that, or the address alone", net.trunc()))
            }
        })?;
        match address::unlistable(&net) {
            Some(kind) => Err(item
                .wrong(format!("{net} is or begins with an address that is {kind}"), "list what is meant")),
            None => Ok(net),
        }
    };
    items.iter().map(net).collect()
}

fn path(value: &Value<'_>, base: &Path) -> Result<PathBuf> {
    let text = value.text("a path", "\"corp-ca.pem\"")?;
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(value.wrong("the path is empty or holds a control character", ""));
    }
    Ok(base.join(text))
}

fn auth(value: &Value<'_>, base: &Path) -> Result<Auth> {
    let forms = "write { basic = \"FILE\" }, { bearer = \"FILE\" } or { header = \"NAME\", file = \"FILE\" }";
    let table = value.table("{ bearer = \"token\" }")?;
    table.only(AUTH_KEYS)?;
    let get = |key: &str| table.get(key);
    match (get("basic"), get("bearer"), get("header"), get("file")) {
        (Some(file), None, None, None) => Ok(Auth::Basic(path(&file, base)?)),
        (None, Some(file), None, None) => Ok(Auth::Bearer(path(&file, base)?)),
        (None, None, Some(header), Some(file)) => {
            let name = header.parsed("a header's name", "\"PRIVATE-TOKEN\"", |text| {
                let name = text.parse::<reqwest::header::HeaderName>().map_err(|e| e.to_string())?;
                match name.as_str() {
                    "host" | "content-length" | "transfer-encoding" | "connection" | "te" | "upgrade" => {
                        Err("this header belongs to the connection".to_owned())
                    }
                    _ => Ok(name.to_string()),
                }
            })?;
            Ok(Auth::Header(name, path(&file, base)?))
        }
        _ => Err(value.wrong("not one way to be known by", forms)),
    }
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
