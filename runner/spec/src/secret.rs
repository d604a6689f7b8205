//! Secrets, as a job names them: never what they are, nor where they come from.

use crate::job::{SpecError, wrong};
use crate::{ENV_DEFAULTS, EnvName, JobSpec, Name, SandboxPath};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The most secrets of one job.
pub const SECRETS_MAX: usize = 32;
/// The most bytes of one value.
pub const SECRET_BYTES_MAX: usize = 64 << 10;
/// The fewest bytes of one value: a shorter one is in every log by chance, and cannot be masked.
pub const SECRET_BYTES_MIN: usize = 8;
/// The most bytes of all values that a step has at a time, those of rotations included.
pub const STEP_SECRET_BYTES_MAX: usize = 256 << 10;
/// The directory that all files of secrets are in.
pub const SECRETS_DIR: &str = "/run/secrets";

/// A secret that steps of a job may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Secret {
    /// Its name, unique in the job. The operator says what it stands for.
    pub name: Name,
    /// How a step gets its value.
    pub delivery: Delivery,
    /// What the step's first process is told when the value has changed; a file's alone.
    pub on_rotate: Option<RotateSignal>,
}

/// How a step gets a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// A file in [`SECRETS_DIR`] that only the step's user can read, and nobody can write.
    File(SandboxPath),
    /// An open descriptor, whose number this variable says.
    Fd(EnvName),
    /// This variable.
    Env(EnvName),
}

/// A signal that a step may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RotateSignal {
    /// SIGHUP.
    #[serde(rename = "SIGHUP")]
    Hup,
    /// SIGUSR1.
    #[serde(rename = "SIGUSR1")]
    Usr1,
    /// SIGUSR2.
    #[serde(rename = "SIGUSR2")]
    Usr2,
}

impl RotateSignal {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Hup, Self::Usr1, Self::Usr2];

    /// The signal's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hup => "SIGHUP",
            Self::Usr1 => "SIGUSR1",
            Self::Usr2 => "SIGUSR2",
        }
    }
}

impl Delivery {
    /// The variable that it sets, if it does.
    pub fn variable(&self) -> Option<&EnvName> {
        match self {
            Self::File(_) => None,
            Self::Fd(name) | Self::Env(name) => Some(name),
        }
    }

    /// Its key in a job file and a spec.
    pub fn key(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Fd(_) => "fd",
            Self::Env(_) => "env",
        }
    }

    /// The value of that key.
    pub fn value(&self) -> &str {
        match self {
            Self::File(path) => path.as_str(),
            Self::Fd(name) | Self::Env(name) => name.as_str(),
        }
    }
}

/// A secret as it stands in `spec.json`: exactly one of the three is there.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: Name,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<SandboxPath>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fd: Option<EnvName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    env: Option<EnvName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    on_rotate: Option<RotateSignal>,
}

impl TryFrom<Written> for Secret {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        let delivery = match (written.file, written.fd, written.env) {
            (Some(path), None, None) => Delivery::File(path),
            (None, Some(name), None) => Delivery::Fd(name),
            (None, None, Some(name)) => Delivery::Env(name),
            _ => return Err("a secret is delivered by exactly one of file, fd and env"),
        };
        Ok(Self { name: written.name, delivery, on_rotate: written.on_rotate })
    }
}

impl From<Secret> for Written {
    fn from(secret: Secret) -> Self {
        let Secret { name, delivery, on_rotate } = secret;
        let mut written = Self { name, file: None, fd: None, env: None, on_rotate };
        match delivery {
            Delivery::File(path) => written.file = Some(path),
            Delivery::Fd(name) => written.fd = Some(name),
            Delivery::Env(name) => written.env = Some(name),
        }
        written
    }
}

impl JobSpec {
    /// The secrets that a step names, in its order.
    pub fn secrets_of(&self, step: &crate::Step) -> Vec<&Secret> {
        let declared = |name: &Name| self.secrets.iter().find(|secret| secret.name == *name);
        step.secrets.iter().filter_map(declared).collect()
    }

    pub(crate) fn validate_secrets(&self) -> Result<(), SpecError> {
        if self.secrets.len() > SECRETS_MAX {
            let reason = format!("at most {SECRETS_MAX}, this has {}", self.secrets.len());
            return Err(wrong("secret", reason));
        }
        let mut names = BTreeSet::new();
        let (mut files, mut variables) = (BTreeSet::new(), self.variables());
        for (at, secret) in self.secrets.iter().enumerate() {
            if !names.insert(&secret.name) {
                return Err(wrong(format!("secret[{at}].name"), format!("{} is used twice", secret.name)));
            }
            let field = format!("secret[{at}].{}", secret.delivery.key());
            match &secret.delivery {
                Delivery::File(path) => check_file(&field, path, &mut files)?,
                Delivery::Fd(name) | Delivery::Env(name) => {
                    check_variable(&field, name.as_str(), &mut variables)?;
                    if secret.on_rotate.is_some() {
                        let reason = "only a file can change while its step runs; deliver it by file";
                        return Err(wrong(format!("secret[{at}].on_rotate"), reason));
                    }
                }
            }
        }
        self.validate_named(&names)
    }

    /// The variables that the job and its steps set themselves.
    fn variables(&self) -> BTreeSet<&str> {
        let steps = self.steps.iter().flat_map(|step| step.env.keys());
        self.env.keys().chain(steps).map(EnvName::as_str).collect()
    }

    /// What the steps name is declared.
    fn validate_named(&self, declared: &BTreeSet<&Name>) -> Result<(), SpecError> {
        for (at, step) in self.steps.iter().enumerate() {
            let field = format!("step[{at}].secrets");
            let mut seen = BTreeSet::new();
            for name in &step.secrets {
                if !declared.contains(name) {
                    return Err(wrong(field, format!("{name} is no [[secret]] of the job; declare it")));
                }
                if !seen.insert(name) {
                    return Err(wrong(field, format!("{name} is named twice")));
                }
            }
        }
        Ok(())
    }
}

fn check_file<'s>(
    field: &str,
    path: &'s SandboxPath,
    files: &mut BTreeSet<&'s str>,
) -> Result<(), SpecError> {
    let name = path.as_str().strip_prefix(SECRETS_DIR).and_then(|rest| rest.strip_prefix('/'));
    // What begins with a dot is ours: a new value is written beside the old one.
    if name.is_none_or(|name| name.is_empty() || name.contains('/') || name.starts_with('.')) {
        let reason = format!("{path} is not a file in {SECRETS_DIR} whose name begins with no dot");
        return Err(wrong(field, reason));
    }
    if files.insert(path.as_str()) { Ok(()) } else { Err(wrong(field, format!("{path} is used twice"))) }
}

fn check_variable<'s>(
    field: &str,
    name: &'s str,
    variables: &mut BTreeSet<&'s str>,
) -> Result<(), SpecError> {
    let is_ours = ENV_DEFAULTS.iter().any(|(default, _)| *default == name) || name == "SOURCE_DATE_EPOCH";
    // ld.so(8) obeys them, before the program does anything.
    if is_ours || name.starts_with("LD_") {
        return Err(wrong(field, format!("{name} is reserved; choose another variable")));
    }
    if variables.insert(name) { Ok(()) } else { Err(wrong(field, format!("{name} is set twice"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(secrets: &str, named: &str) -> Result<JobSpec, String> {
        let text = format!(
            r#"{{"ampoule":1,"id":"01890a5d-ac96-774b-bcce-b302099a8057","attempt":1,"name":"j",
            "profile":"hermetic","image":{{"kind":"host"}},"source_date_epoch":0,"env":{{"MINE":"1"}},
            "secrets":{secrets},"steps":[{{"name":"s","run":["true"],"cwd":"/build","timeout_ms":1000,
            "env":{{"STEPS":"1"}},"secrets":{named}}}]}}"#
        );
        serde_json::from_str(&text).map_err(|e| e.to_string())
    }

    const GOOD: &str = r#"[{"name":"a","file":"/run/secrets/a","on_rotate":"SIGHUP"},{"name":"b","fd":"B_FD"},
        {"name":"c","env":"C"}]"#;

    #[test]
    fn secrets_are_read_back_as_they_were_and_left_out_when_there_are_none() {
        let spec = job(GOOD, r#"["c","a"]"#).unwrap();
        assert_eq!(spec.validate(), Ok(()));
        let names: Vec<_> = spec.secrets_of(&spec.steps[0]).iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["c", "a"]);
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<JobSpec>(&text).unwrap(), spec);
        assert!(text.contains(r#"{"name":"a","file":"/run/secrets/a","on_rotate":"SIGHUP"}"#), "{text}");
        let none = serde_json::to_string(&job("[]", "[]").unwrap()).unwrap();
        assert!(!none.contains("secrets"), "{none}");
    }

    #[test]
    fn a_secret_names_one_delivery_and_nothing_else() {
        for bad in [
            r#"[{"name":"a"}]"#,
            r#"[{"name":"a","file":"/run/secrets/a","env":"A"}]"#,
            r#"[{"name":"a","env":"A","path":"secret/data/a"}]"#,
            r#"[{"name":"a","file":"/run/secrets/a","on_rotate":"SIGKILL"}]"#,
            r#"[{"name":"a","env":"A=B"}]"#,
        ] {
            assert!(job(bad, "[]").is_err(), "{bad}");
        }
    }

    #[test]
    fn broken_rules_of_secrets_name_their_field() {
        let refused = |secrets: &str, named: &str| job(secrets, named).unwrap().validate().unwrap_err().field;
        let file = |path: &str| format!(r#"[{{"name":"a","file":"{path}"}}]"#);
        for path in ["/run/secrets", "/run/secrets/a/b", "/run/secret", "/etc/a", "/run/secrets/.a"] {
            assert_eq!(refused(&file(path), "[]"), "secret[0].file", "{path}");
        }
        for name in ["PATH", "HOME", "SOURCE_DATE_EPOCH", "LD_PRELOAD", "MINE", "STEPS"] {
            assert_eq!(refused(&format!(r#"[{{"name":"a","env":"{name}"}}]"#), "[]"), "secret[0].env");
            assert_eq!(refused(&format!(r#"[{{"name":"a","fd":"{name}"}}]"#), "[]"), "secret[0].fd");
        }
        let two = |a: &str, b: &str| format!("[{{{a}}},{{{b}}}]");
        assert_eq!(
            refused(&two(r#""name":"a","env":"A""#, r#""name":"a","env":"B""#), "[]"),
            "secret[1].name"
        );
        assert_eq!(refused(&two(r#""name":"a","env":"A""#, r#""name":"b","fd":"A""#), "[]"), "secret[1].fd");
        let same = r#""file":"/run/secrets/x""#;
        let same = two(&format!(r#""name":"a",{same}"#), &format!(r#""name":"b",{same}"#));
        assert_eq!(refused(&same, "[]"), "secret[1].file");
        let told = r#"[{"name":"a","env":"A","on_rotate":"SIGHUP"}]"#;
        assert_eq!(refused(told, "[]"), "secret[0].on_rotate");
        assert_eq!(refused(GOOD, r#"["d"]"#), "step[0].secrets");
        assert_eq!(refused(GOOD, r#"["a","a"]"#), "step[0].secrets");
        let many: Vec<_> = (0..33).map(|at| format!(r#"{{"name":"s{at}","env":"V{at}"}}"#)).collect();
        assert_eq!(refused(&format!("[{}]", many.join(",")), "[]"), "secret");
    }
}
