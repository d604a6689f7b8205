//! Reads the configuration.

use super::keys::{SECTIONS, example, known};
use super::{
    Collector, Config, Host, Limits, Listen, Log, LogFormat, MetricsListener, Quota, Retention, Runner,
    SigningKey, Tls, Traces,
};
use crate::audit::Rate;
use crate::client::{Credentials, Server};
use crate::job::ProjectFiles;
use crate::jobfile::read::{Reader, Table, Value};
use crate::jobfile::{JobFileError, values};
use ampoule_evidence::Authority;
use ampoule_spec::{Code, Name};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::de::DeTable;
use tracing_subscriber::EnvFilter;

type Result<T> = std::result::Result<T, JobFileError>;

/// The most names in a list.
const NAMES_MAX: usize = 64;

/// Reads the text of a configuration.
pub(super) fn config(text: &str, name: &str, base: &Path) -> Result<Config> {
    // The reader is that of job files, whose errors are the job's.
    whole(text, name, base).map_err(|error| JobFileError { code: Code::FileUnusable, ..error })
}

fn whole(text: &str, name: &str, base: &Path) -> Result<Config> {
    let reader = Reader::new(name, text);
    let document = DeTable::parse(text).map_err(|e| reader.syntax(&e))?;
    let root = Table::root(&reader, &document);
    let mut top = known("");
    top.extend(SECTIONS.iter().filter_map(|section| section.split('.').next()).filter(|s| !s.is_empty()));
    if let Some(value) = root.get("registry_auth") {
        let remedy = "write it below [project.NAME] of each project that may use them";
        return Err(value.wrong("credentials for registries are given to projects by their names", remedy));
    }
    root.only(&top)?;
    let section = |name: &'static str| Section::of(&root, name, base);
    let top = Section { name: "", table: Some(&root), base };

    let dev = top.flag("dev")?;
    let quota = self::quota(&section("quota")?.with(), Quota { weight: 1, queue: 1000, running: 64 })?;
    let listen = listen(&section("listen")?.with())?;
    let tls = tls(&section("tls")?.with())?;
    let authority = authority(&root, dev)?;
    let config = Config {
        dev,
        audit_origin: audit_origin(&top, &authority)?,
        authority,
        state: top.path("state", "/var/lib/ampouled")?,
        policy: top.path("policy", "policy")?,
        sources: top.path_if("sources")?,
        identities: top.path("identities", "identities.toml")?,
        files: files(&root, base)?,
        profiles: profiles(&top)?,
        runner: runner(&section("runner")?.with())?,
        limits: limits(&section("limits")?.with())?,
        projects: projects(&root, quota, base)?,
        quota,
        retention: retention(&section("retention")?.with())?,
        signing: signing(&section("signing")?.with())?,
        secrets: section("secrets")?.with().path_if("file")?,
        audit: audit(&section("audit")?.with())?,
        metrics: metrics(&section("metrics")?.with())?,
        traces: traces(&section("traces")?.with())?,
        log: log(&section("log")?.with())?,
        drain_deadline: section("drain")?.with().duration("deadline", Duration::from_secs(30))?,
        host: host(&section("host")?.with())?,
        listen,
        tls,
    };
    rules(&root, &config)?;
    Ok(config)
}

/// What no key alone can be asked for.
fn rules(root: &Table<'_>, config: &Config) -> Result<()> {
    let Config { listen, tls, dev, signing, host, .. } = config;
    if listen.unix.is_none() && listen.tcp.is_none() && listen.systemd.is_empty() {
        return Err(root.wrong(
            "nobody could reach this daemon: no listener is named",
            format!("add [listen] with unix = {}, tcp or systemd", example("listen", "unix")),
        ));
    }
    if listen.tcp.is_some() && tls.is_none() {
        return Err(root.wrong(
            "listen.tcp has no TLS, and whoever is on the way would read and write in the callers' names",
            "add [tls] with certificate and key, or listen on a unix socket alone",
        ));
    }
    if signing.is_none() && !dev {
        let remedy = "add [signing] with key, credential or transit, or dev = true to try things out";
        return Err(root.wrong("nothing is there to sign with", remedy));
    }
    if host.refuse_on_drift && host.baseline.is_none() {
        return Err(root.wrong(
            "host.refuse_on_drift without a baseline can refuse nothing",
            "record one with ampouled --record-baseline, and name it as host.baseline",
        ));
    }
    Ok(())
}

/// A table of the file, which may not be there.
struct Found<'r> {
    name: &'static str,
    table: Option<Table<'r>>,
    base: &'r Path,
}

impl<'r> Found<'r> {
    fn with<'f>(&'f self) -> Section<'f, 'r> {
        Section { name: self.name, table: self.table.as_ref(), base: self.base }
    }
}

/// The values of a table, with their defaults.
struct Section<'f, 'r> {
    name: &'static str,
    table: Option<&'f Table<'r>>,
    base: &'f Path,
}

impl<'f, 'r> Section<'f, 'r> {
    fn of(root: &Table<'r>, name: &'static str, base: &'r Path) -> Result<Found<'r>> {
        let table = root.get(name).map(|value| value.table(&format!("[{name}]"))).transpose()?;
        if let Some(table) = &table {
            table.only(&known(name))?;
        }
        Ok(Found { name, table, base })
    }

    fn get(&self, key: &str) -> Option<Value<'r>> {
        self.table.and_then(|table| table.get(key))
    }

    fn example(&self, key: &str) -> &'static str {
        example(self.name, key)
    }

    fn flag(&self, key: &str) -> Result<bool> {
        self.get(key).map_or(Ok(false), |value| value.boolean())
    }

    fn count(&self, key: &str, default: u64) -> Result<u64> {
        self.get(key).map_or(Ok(default), |value| value.count(self.example(key)))
    }

    fn size(&self, key: &str) -> Result<Option<u64>> {
        self.get(key).map(|value| value.in_units("size", values::SIZE_RULE, values::size)).transpose()
    }

    fn duration(&self, key: &str, default: Duration) -> Result<Duration> {
        let read = |value: Value<'_>| {
            value.in_units("duration", values::DURATION_RULE, values::duration_ms).map(Duration::from_millis)
        };
        self.get(key).map_or(Ok(default), read)
    }

    fn path(&self, key: &str, default: &str) -> Result<PathBuf> {
        Ok(self.path_if(key)?.unwrap_or_else(|| self.base.join(default)))
    }

    fn path_if(&self, key: &str) -> Result<Option<PathBuf>> {
        self.get(key).map(|value| path(&value, self.base, self.example(key))).transpose()
    }
}

fn path(value: &Value<'_>, base: &Path, example: &str) -> Result<PathBuf> {
    let text = value.text("a path", example)?;
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(value.wrong("the path is empty or holds a control character", ""));
    }
    Ok(base.join(text))
}

fn authority(root: &Table<'_>, dev: bool) -> Result<Authority> {
    let Some(value) = root.get("authority") else {
        if dev {
            let example = "https://ampoule.example";
            return Authority::parse(example).map_err(|e| root.wrong(e.to_string(), ""));
        }
        return Err(root.missing("authority", example("", "authority")));
    };
    let authority = value.parsed("a base of URIs", example("", "authority"), Authority::parse)?;
    if authority.is_example() && !dev {
        return Err(value.wrong(
            "the example stands for nobody, and statements in its name say nothing",
            "write a name of your own domain, or dev = true to try things out",
        ));
    }
    Ok(authority)
}

/// A name as checkpoints may have one: no blank, no plus (C2SP signed-note).
fn audit_origin(top: &Section<'_, '_>, authority: &Authority) -> Result<String> {
    let host = authority.as_str().trim_start_matches("https://");
    let Some(value) = top.get("audit_origin") else { return Ok(format!("audit.{host}")) };
    let text = value.text("a name", top.example("audit_origin"))?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '/' | ':' | '_');
    if text.is_empty() || text.len() > 128 || !text.chars().all(plain) {
        return Err(value.wrong("not a name for a log", "write letters, digits, dots and dashes"));
    }
    Ok(text.to_owned())
}

fn profiles(top: &Section<'_, '_>) -> Result<Vec<Name>> {
    let Some(value) = top.get("profiles") else {
        return Ok(Name::parse("hermetic").into_iter().collect());
    };
    let mut names: Vec<Name> = Vec::new();
    for item in value.items("a list of profiles", "[\"hermetic\"]")? {
        let name = item.parsed("a profile's name", "\"hermetic\"", Name::parse)?;
        if names.contains(&name) || names.len() == NAMES_MAX {
            return Err(item.wrong("listed twice, or one of too many", "remove one"));
        }
        names.push(name);
    }
    if names.is_empty() {
        return Err(value.wrong("without a profile no job can run", "as in [\"hermetic\"]"));
    }
    Ok(names)
}

fn listen(section: &Section<'_, '_>) -> Result<Listen> {
    let mut systemd: Vec<String> = Vec::new();
    if let Some(value) = section.get("systemd") {
        for item in value.items("a list of sockets' names", section.example("systemd"))? {
            let name = item.text("a socket's name", "\"agent\"")?;
            // systemd.socket(5): ASCII without control characters and colons, at most 255 of them.
            let plain = |c: char| c.is_ascii_graphic() && c != ':';
            if name.is_empty() || name.len() > 255 || !name.chars().all(plain) {
                return Err(item.wrong("not a name of a descriptor", "write what FileDescriptorName= says"));
            }
            if systemd.iter().any(|other| other == name) || systemd.len() == NAMES_MAX {
                return Err(item.wrong("listed twice, or one of too many", "remove one"));
            }
            systemd.push(name.to_owned());
        }
    }
    let tcp = section.get("tcp").map(|value| address(&value, section.example("tcp"))).transpose()?;
    Ok(Listen { unix: section.path_if("unix")?, tcp, systemd, reflection: section.flag("reflection")? })
}

fn address(value: &Value<'_>, example: &str) -> Result<SocketAddr> {
    value.parsed("an address and a port", example, |text| {
        text.parse::<SocketAddr>().map_err(|_| {
            format!("not an address and a port: write it as in {example}, or as \"[::1]:7443\"; names are not looked up")
        })
    })
}

fn tls(section: &Section<'_, '_>) -> Result<Option<Tls>> {
    let Some(table) = section.table else { return Ok(None) };
    let need = |key: &str| section.path_if(key)?.ok_or_else(|| table.missing(key, section.example(key)));
    Ok(Some(Tls {
        certificate: need("certificate")?,
        key: need("key")?,
        client_ca: section.path_if("client_ca")?,
        tokens: section.flag("tokens")?,
    }))
}

fn runner(section: &Section<'_, '_>) -> Result<Runner> {
    Ok(Runner {
        socket: section.path("socket", "/run/ampoule/runner.sock")?,
        state: section.path("state", "/var/lib/ampoule")?,
    })
}

fn limits(section: &Section<'_, '_>) -> Result<Limits> {
    let cpus = |value: Value<'_>| {
        let cpus = value.number(values::CPUS_RULE)?;
        values::cpu_millis(cpus)
            .ok_or_else(|| value.wrong(format!("{cpus} is no number of processors"), values::CPUS_RULE))
    };
    Ok(Limits {
        queue: section.count("queue", 10_000)?,
        running: section.count("running", 64)?,
        patience: section.count("patience", 16)?,
        cpu_millis: section.get("cpus").map(cpus).transpose()?,
        memory_bytes: section.size("memory")?,
        disk_bytes: section.size("disk")?,
        upload_bytes: section.size("uploads")?.unwrap_or(64 << 30),
    })
}

fn quota(section: &Section<'_, '_>, otherwise: Quota) -> Result<Quota> {
    Ok(Quota {
        weight: section.count("weight", otherwise.weight)?,
        queue: section.count("queue", otherwise.queue)?,
        running: section.count("running", otherwise.running)?,
    })
}

fn projects(root: &Table<'_>, otherwise: Quota, base: &Path) -> Result<BTreeMap<Name, Quota>> {
    const SECTION: &str = "project.NAME";
    let mut projects = BTreeMap::new();
    let Some(value) = root.get("project") else { return Ok(projects) };
    for (name, value) in value.table("[project.NAME]")?.entries() {
        let name = Name::parse(name).map_err(|e| value.wrong(e.to_string(), ""))?;
        let table = value.table("[project.NAME]")?;
        table.only(&known(SECTION))?;
        projects.insert(name, quota(&Section { name: SECTION, table: Some(&table), base }, otherwise)?);
    }
    Ok(projects)
}

/// What projects have files for. What else stands there was looked at by [`projects`].
fn files(root: &Table<'_>, base: &Path) -> Result<BTreeMap<Name, ProjectFiles>> {
    let mut files = BTreeMap::new();
    let Some(value) = root.get("project") else { return Ok(files) };
    for (name, value) in value.table("[project.NAME]")?.entries() {
        let table = value.table("[project.NAME]")?;
        let section = Section { name: "project.NAME", table: Some(&table), base };
        let registry_auth = section.path_if("registry_auth")?;
        let allowed_signers = section.path_if("allowed_signers")?;
        let trust = section.path_if("trust")?;
        if let Ok(name) = Name::parse(name) {
            files.insert(name, ProjectFiles { registry_auth, allowed_signers, trust });
        }
    }
    Ok(files)
}

fn retention(section: &Section<'_, '_>) -> Result<Retention> {
    let hours = |n: u64| Duration::from_secs(n * 3600);
    let retention = Retention {
        jobs: section.duration("jobs", hours(168))?,
        bytes: section.size("bytes")?.unwrap_or(20 << 30),
        records: section.duration("records", hours(720))?,
        least: section.duration("least", hours(1))?,
        count: section.count("count", 10_000)?,
        record_bytes: section.size("record_bytes")?.unwrap_or(4 << 30),
    };
    if let (true, Some(table)) = (retention.records < retention.jobs, section.table) {
        return Err(table.wrong(
            "records are kept for a shorter time than what they are about",
            "make records at least as long as jobs",
        ));
    }
    if let (true, Some(table)) = (retention.records < retention.least, section.table) {
        return Err(table.wrong(
            "records are kept at most for a shorter time than at least",
            "make records at least as long as least",
        ));
    }
    Ok(retention)
}

fn signing(section: &Section<'_, '_>) -> Result<Option<SigningKey>> {
    let Some(table) = section.table else { return Ok(None) };
    match (section.path_if("key")?, section.get("credential"), section.path_if("transit")?) {
        (Some(path), None, None) => Ok(Some(SigningKey::File(path))),
        (None, None, Some(path)) => Ok(Some(SigningKey::Transit(path))),
        (None, Some(value), None) => {
            let name = value.text("a credential's name", section.example("credential"))?;
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if name.is_empty() || name.starts_with('.') || name.len() > 255 || !name.chars().all(plain) {
                return Err(value.wrong("not a name of a credential", "write what LoadCredential= calls it"));
            }
            Ok(Some(SigningKey::Credential(name.to_owned())))
        }
        _ => Err(table.wrong("a signing key is exactly one of key, credential and transit", "")),
    }
}

fn audit(section: &Section<'_, '_>) -> Result<Rate> {
    let number = |key: &str, default: u32| {
        let number = section.count(key, default.into())?;
        Ok(u32::try_from(number).unwrap_or(u32::MAX))
    };
    let Rate { per_second, burst } = Rate::default();
    Ok(Rate { per_second: number("rate", per_second)?, burst: number("burst", burst)? })
}

fn metrics(section: &Section<'_, '_>) -> Result<MetricsListener> {
    let Some(value) = section.get("listen") else {
        return Ok(MetricsListener::Loopback(SocketAddr::from(([127, 0, 0, 1], 9464))));
    };
    let text = value.text("an address, a path or off", "\"127.0.0.1:9464\"")?;
    if text == "off" {
        return Ok(MetricsListener::Off);
    }
    if text.contains('/') {
        return Ok(MetricsListener::Unix(path(&value, section.base, section.example("listen"))?));
    }
    let address = address(&value, "\"127.0.0.1:9464\"")?;
    if !address.ip().is_loopback() {
        return Err(value.wrong(
            "whoever reaches it would read it: there is no identity on this listener",
            "write a loopback address, or the path of a local socket",
        ));
    }
    Ok(MetricsListener::Loopback(address))
}

fn traces(section: &Section<'_, '_>) -> Result<Option<Traces>> {
    let Some(table) = section.table else { return Ok(None) };
    let example = section.example("endpoint");
    let value = section.get("endpoint").ok_or_else(|| table.missing("endpoint", example))?;
    let endpoint = value.parsed("an address of a collector", example, |text| {
        let plain = text.strip_prefix("http://").map(|rest| rest.trim_end_matches('/').parse::<SocketAddr>());
        match plain {
            Some(Ok(address)) if address.ip().is_loopback() => Ok(Collector::Loopback(address)),
            Some(_) => Err(format!(
                "without TLS whoever is on the way would read who builds what: write a loopback address and a port, or https as in {example}"
            )),
            None => match Server::parse(text) {
                Ok(server @ Server::Https { .. }) => Ok(Collector::Https(server)),
                _ => Err(format!("not an address of a collector: write it as in {example}")),
            },
        }
    })?;
    let (ca, certificate, key) =
        (section.path_if("ca")?, section.path_if("certificate")?, section.path_if("key")?);
    match &endpoint {
        Collector::Https(_) if ca.is_none() => return Err(table.missing("ca", section.example("ca"))),
        Collector::Loopback(_) if ca.is_some() || certificate.is_some() || key.is_some() => {
            return Err(table.wrong(
                "without TLS there is nobody to know and nothing to show",
                "remove ca, certificate and key",
            ));
        }
        _ => {}
    }
    if certificate.is_some() != key.is_some() {
        return Err(table.wrong("a certificate and its key go together", "name both or none"));
    }
    Ok(Some(Traces { endpoint, credentials: Credentials { ca, certificate, key, token: None } }))
}

fn log(section: &Section<'_, '_>) -> Result<Log> {
    let words = [("json", LogFormat::Json), ("text", LogFormat::Text), ("journal", LogFormat::Journal)];
    let format = section.get("format").map_or(Ok(LogFormat::Json), |value| value.one_of(&words))?;
    let Some(value) = section.get("level") else { return Ok(Log { format, level: "info".to_owned() }) };
    let level = value.parsed("a level", section.example("level"), |text| {
        EnvFilter::builder().parse(text).map(|_| text.to_owned()).map_err(|_| "not a level".to_owned())
    })?;
    Ok(Log { format, level })
}

fn host(section: &Section<'_, '_>) -> Result<Host> {
    Ok(Host {
        baseline: section.path_if("baseline")?,
        every: section.duration("every", Duration::from_secs(600))?,
        refuse_on_drift: section.flag("refuse_on_drift")?,
    })
}
