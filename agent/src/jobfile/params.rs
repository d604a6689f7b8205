//! Parameters: the only way in which values enter a job from outside.

use super::error::{JobFileError, shown};
use super::fields::Fields;
use super::model::{Param, ParamType, Text};
use super::suggest;
use ampoule_spec::{Code, Name, ParamValue};
use std::collections::BTreeMap;

/// The rule for using a parameter, for messages.
pub(crate) const RULE: &str =
    "use one as a whole value, \"${params.NAME}\", in env, step.env or an element of step.run";

const OPENING: &str = "${params.";

/// Whether a text looks as if it used a parameter.
pub(crate) fn mentioned(text: &str) -> bool {
    text.contains(OPENING)
}

/// Why a text cannot be taken as it is.
pub(crate) enum Misuse {
    /// A parameter is only a part of it.
    Part,
    /// What stands between the braces is no name.
    NoName(String),
}

/// Takes a text of the file as a literal or as the use of a parameter.
pub(crate) fn text(text: &str) -> Result<Text, Misuse> {
    if !mentioned(text) {
        return Ok(Text::Literal(text.to_owned()));
    }
    let inner = text.strip_prefix(OPENING).and_then(|rest| rest.strip_suffix('}')).ok_or(Misuse::Part)?;
    if inner.contains(['{', '}', '$', ' ']) {
        return Err(Misuse::Part);
    }
    Name::parse(inner).map(Text::Param).map_err(|e| Misuse::NoName(e.to_string()))
}

/// A parameter's value as a program sees it.
pub(crate) fn spelt(value: &ParamValue) -> String {
    match value {
        ParamValue::Bool(value) => value.to_string(),
        ParamValue::Integer(value) => value.to_string(),
        ParamValue::String(value) => value.clone(),
    }
}

/// Holds the values that were given against what the file declares.
pub(crate) fn resolve(
    declared: &BTreeMap<Name, Param>,
    given: &BTreeMap<String, String>,
    fields: &Fields,
) -> Result<BTreeMap<Name, ParamValue>, JobFileError> {
    for name in given.keys() {
        if !declared.keys().any(|known| known.as_str() == name) {
            return Err(undeclared(declared, name, fields));
        }
    }
    let mut values = BTreeMap::new();
    for (name, param) in declared {
        let field = format!("params.{name}");
        let value = match (given.get(name.as_str()), &param.default) {
            (Some(text), _) => typed(text, param.kind).ok_or_else(|| {
                let reason = format!("the value given, {}, is no {}", shown(text), param.kind.as_str());
                let remedy = format!("give --param {name}={}", param.kind.example());
                fields.error(Code::JobInvalid, &field, reason, remedy)
            })?,
            (None, Some(default)) => default.clone(),
            (None, None) => {
                let remedy = format!("give --param {name}={}", param.kind.example());
                return Err(fields.error(
                    Code::JobInvalid,
                    &field,
                    "no value was given and it has no default",
                    remedy,
                ));
            }
        };
        values.insert(name.clone(), value);
    }
    Ok(values)
}

fn undeclared(declared: &BTreeMap<Name, Param>, name: &str, fields: &Fields) -> JobFileError {
    let remedy = match suggest::nearest(name, declared.keys().map(Name::as_str)) {
        Some(near) => format!("did you mean {near:?}?"),
        None => "declare it as [params.NAME] with a type".to_owned(),
    };
    let reason = format!("--param names {}, which the file does not declare", shown(name));
    JobFileError::whole(Code::JobInvalid, &fields.file, "params", reason, remedy)
}

fn typed(text: &str, kind: ParamType) -> Option<ParamValue> {
    match kind {
        ParamType::String => Some(ParamValue::String(text.to_owned())),
        ParamType::Bool => text.parse().ok().map(ParamValue::Bool),
        // `from_str` also takes a plus sign, which would make two spellings of one value.
        ParamType::Integer if text.starts_with('+') => None,
        ParamType::Integer => text.parse().ok().map(ParamValue::Integer),
    }
}
