//! Secrets in attestations: their names and where the steps wanted them, which the job says; never a value.

use ampoule_spec::{Delivery, EnvName, Name, RotateSignal, SandboxPath, Secret};
use serde::{Deserialize, Serialize};

/// A secret that steps could have: exactly one of `file`, `fd` and `env` is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretParameter {
    /// Its name.
    pub name: Name,
    /// The file that held it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<SandboxPath>,
    /// The variable that said the number of its descriptor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fd: Option<EnvName>,
    /// The variable that it was in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<EnvName>,
    /// The signal that said that it had changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_rotate: Option<RotateSignal>,
}

impl SecretParameter {
    pub(crate) fn of(secret: &Secret) -> Self {
        let (mut file, mut fd, mut env) = (None, None, None);
        match secret.delivery.clone() {
            Delivery::File(path) => file = Some(path),
            Delivery::Fd(name) => fd = Some(name),
            Delivery::Env(name) => env = Some(name),
        }
        Self { name: secret.name.clone(), file, fd, env, on_rotate: secret.on_rotate }
    }

    /// The secret that it describes; `None` unless it has exactly one delivery.
    pub(crate) fn secret(&self) -> Option<Secret> {
        let delivery = match (&self.file, &self.fd, &self.env) {
            (Some(path), None, None) => Delivery::File(path.clone()),
            (None, Some(name), None) => Delivery::Fd(name.clone()),
            (None, None, Some(name)) => Delivery::Env(name.clone()),
            _ => return None,
        };
        Some(Secret { name: self.name.clone(), delivery, on_rotate: self.on_rotate })
    }
}
