//! `[[secret]]` of a job file: a name, and where a step wants it. What it stands for is the operator's to say.

use super::error::JobFileError;
use super::model::SecretEntry;
use super::read::{Table, Value};
use super::sections::optional;
use ampoule_spec::{Delivery, EnvName, Name, RotateSignal, SECRETS_DIR, SandboxPath};

const KEYS: &[&str] = &["name", "file", "fd", "env", "on_rotate"];

/// Reads the table.
pub(super) fn secret(table: &Table<'_>) -> Result<SecretEntry, JobFileError> {
    table.only(KEYS)?;
    let name = table.need("name", "\"npm-publish\"")?.parsed("a name", "\"npm-publish\"", Name::parse)?;
    let named: Vec<_> = ["file", "fd", "env"]
        .into_iter()
        .filter_map(|key| table.get(key).map(|value| (key, value)))
        .collect();
    let variable = |v: &Value<'_>| v.parsed("a variable's name", "\"NPM_TOKEN\"", EnvName::parse);
    let delivery = match named.as_slice() {
        [] => {
            let file = format!("{SECRETS_DIR}/{name}");
            Delivery::File(SandboxPath::parse(&file).map_err(|e| table.wrong(e.to_string(), ""))?)
        }
        [("file", v)] => {
            Delivery::File(v.parsed("a path", "\"/run/secrets/npm-publish\"", SandboxPath::parse)?)
        }
        [("fd", v)] => Delivery::Fd(variable(v)?),
        [(_, v)] => Delivery::Env(variable(v)?),
        [(first, _), (second, value), ..] => {
            let reason = format!("the secret is delivered twice, by {first} and by {second}");
            return Err(value.wrong(reason, "name one of file, fd and env"));
        }
    };
    let signals = RotateSignal::ALL.map(|signal| (signal.as_str(), signal));
    let on_rotate = optional(table, "on_rotate", |v| v.one_of(&signals))?;
    Ok(SecretEntry { name, delivery, on_rotate })
}

/// The names of a step's secrets.
pub(super) fn names(value: &Value<'_>) -> Result<Vec<Name>, JobFileError> {
    let items = value.items("a list of secrets' names", "[\"npm-publish\"]")?;
    items.iter().map(|v| v.parsed("a secret's name", "\"npm-publish\"", Name::parse)).collect()
}
