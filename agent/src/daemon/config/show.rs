//! The configuration as a file.

use super::keys::{KEYS, Key, SECTIONS};
use super::{Config, LogFormat, MetricsListener, Quota, SigningKey, Traces};
use crate::jobfile::values::{show_duration, show_size};
use std::path::Path;
use std::time::Duration;
use toml_edit::{Array, Value};

/// Every key that is set or has a default, in the order of the reference.
pub(super) fn show(config: &Config) -> String {
    let mut text = String::new();
    for section in SECTIONS {
        if *section == "project.NAME" {
            for (name, quota) in &config.projects {
                let files = config.files.get(name);
                table(&mut text, section, &format!("project.{name}"), |key| match key {
                    "registry_auth" => Some(path(files?.registry_auth.as_ref()?)),
                    "allowed_signers" => Some(path(files?.allowed_signers.as_ref()?)),
                    "trust" => Some(path(files?.trust.as_ref()?)),
                    _ => Some(of_quota(*quota, key)),
                });
            }
        } else {
            table(&mut text, section, section, |key| value(config, section, key));
        }
    }
    text
}

/// The keys that two configurations say different things of. What projects have is left out: a reload takes all of it.
pub(super) fn differences(one: &Config, other: &Config) -> Vec<String> {
    let differs = |key: &&Key| match key.section {
        "project.NAME" => false,
        section => {
            let of = |config| value(config, section, key.name).map(|value| value.to_string());
            of(one) != of(other)
        }
    };
    let name = |key: &Key| match key.section {
        "" => key.name.to_owned(),
        section => format!("{section}.{}", key.name),
    };
    KEYS.iter().filter(differs).map(name).collect()
}

fn table(text: &mut String, section: &str, header: &str, value: impl Fn(&str) -> Option<Value>) {
    let keys = KEYS.iter().filter(|key| key.section == section);
    let lines: Vec<String> =
        keys.filter_map(|key| Some(format!("{} = {}\n", key.name, value(key.name)?))).collect();
    if !lines.is_empty() && !header.is_empty() {
        text.push_str(&format!("\n[{header}]\n"));
    }
    text.push_str(&lines.concat());
}

fn of_quota(quota: Quota, key: &str) -> Value {
    count(match key {
        "weight" => quota.weight,
        "queue" => quota.queue,
        _ => quota.running,
    })
}

fn of_traces(traces: &Traces, key: &str) -> Option<Value> {
    let shown = &traces.credentials;
    let file = match key {
        "endpoint" => return Some(traces.endpoint.to_string().into()),
        "ca" => &shown.ca,
        "certificate" => &shown.certificate,
        _ => &shown.key,
    };
    file.as_deref().map(path)
}

fn path(path: &Path) -> Value {
    Value::from(path.display().to_string())
}

fn duration(of: Duration) -> Value {
    Value::from(show_duration(u64::try_from(of.as_millis()).unwrap_or(u64::MAX)))
}

fn count(of: u64) -> Value {
    Value::from(i64::try_from(of).unwrap_or(i64::MAX))
}

fn list<'t>(of: impl IntoIterator<Item = &'t str>) -> Value {
    Value::from(of.into_iter().collect::<Array>())
}

fn of_signing(signing: &SigningKey, key: &str) -> Option<Value> {
    match (signing, key) {
        (SigningKey::File(file), "key") | (SigningKey::Transit(file), "transit") => Some(path(file)),
        (SigningKey::Credential(name), "credential") => Some(name.as_str().into()),
        _ => None,
    }
}

/// What is in force for a key; none: there is no such thing.
fn value(config: &Config, section: &str, key: &str) -> Option<Value> {
    let Config { listen, tls, runner, limits, retention, signing, log, host, .. } = config;
    let tls = tls.as_ref();
    Some(match (section, key) {
        ("", "dev") => config.dev.into(),
        ("", "authority") => config.authority.as_str().into(),
        ("", "state") => path(&config.state),
        ("", "audit_origin") => config.audit_origin.as_str().into(),
        ("", "policy") => path(&config.policy),
        ("", "sources") => path(config.sources.as_ref()?),
        ("", "identities") => path(&config.identities),
        ("", "profiles") => list(config.profiles.iter().map(ampoule_spec::Name::as_str)),
        ("tls", "tokens") => tls?.tokens.into(),
        ("listen", "unix") => path(listen.unix.as_ref()?),
        ("listen", "tcp") => listen.tcp?.to_string().into(),
        ("listen", "systemd") => list(listen.systemd.iter().map(String::as_str)),
        ("listen", "reflection") => listen.reflection.into(),
        ("tls", "certificate") => path(&tls?.certificate),
        ("tls", "key") => path(&tls?.key),
        ("tls", "client_ca") => path(tls?.client_ca.as_ref()?),
        ("runner", "socket") => path(&runner.socket),
        ("runner", "state") => path(&runner.state),
        ("limits", "queue") => count(limits.queue),
        ("limits", "running") => count(limits.running),
        ("limits", "patience") => count(limits.patience),
        ("quota", _) => of_quota(config.quota, key),
        ("limits", "cpus") => {
            // At most 10^8 thousandths: exact.
            #[expect(clippy::cast_precision_loss, reason = "as said above")]
            let cpus = limits.cpu_millis? as f64 / 1000.0;
            cpus.into()
        }
        ("limits", "memory") => show_size(limits.memory_bytes?).into(),
        ("limits", "disk") => show_size(limits.disk_bytes?).into(),
        ("limits", "uploads") => show_size(limits.upload_bytes).into(),
        ("retention", "jobs") => duration(retention.jobs),
        ("retention", "bytes") => show_size(retention.bytes).into(),
        ("retention", "records") => duration(retention.records),
        ("retention", "least") => duration(retention.least),
        ("retention", "count") => count(retention.count),
        ("retention", "record_bytes") => show_size(retention.record_bytes).into(),
        ("signing", key) => of_signing(signing.as_ref()?, key)?,
        ("secrets", "file") => path(config.secrets.as_ref()?),
        ("audit", "rate") => count(config.audit.per_second.into()),
        ("audit", "burst") => count(config.audit.burst.into()),
        ("metrics", "listen") => match &config.metrics {
            MetricsListener::Off => "off".into(),
            MetricsListener::Loopback(address) => address.to_string().into(),
            MetricsListener::Unix(socket) => path(socket),
        },
        ("traces", key) => of_traces(config.traces.as_ref()?, key)?,
        ("log", "format") => match log.format {
            LogFormat::Json => "json",
            LogFormat::Text => "text",
            LogFormat::Journal => "journal",
        }
        .into(),
        ("log", "level") => log.level.as_str().into(),
        ("drain", "deadline") => duration(config.drain_deadline),
        ("host", "baseline") => path(host.baseline.as_ref()?),
        ("host", "every") => duration(host.every),
        ("host", "refuse_on_drift") => host.refuse_on_drift.into(),
        _ => return None,
    })
}
