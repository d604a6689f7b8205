//! The one error of this module.

use super::config::ConfigError;
use super::outage::ServerState;
use std::path::PathBuf;

/// What the login by AppRole is called.
pub(super) const APPROLE: &str = "AppRole";

/// The most bytes that are shown of what a server says about an error.
const DETAIL_BYTES_MAX: usize = 300;

/// What a server says about an error: whole, so that what it names can be taken out before it is cut, and shown by its first 300 bytes alone.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Detail(String);

impl Detail {
    /// What is shown of it.
    pub fn shown(&self) -> &str {
        let end = self.0.floor_char_boundary(DETAIL_BYTES_MAX);
        self.0.get(..end).unwrap_or_default()
    }

    /// Takes out each of these names, wherever it stands.
    fn hide(&mut self, names: &[&str]) {
        self.0 = hidden(std::mem::take(&mut self.0), names);
    }
}

impl From<String> for Detail {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl std::fmt::Debug for Detail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.shown())
    }
}

/// A text with three stars in the place of each of these names. One that begins with another goes first, and so whole.
pub(crate) fn hidden(text: String, names: &[&str]) -> String {
    let mut names: Vec<_> = names.iter().filter(|name| !name.is_empty()).collect();
    names.sort_by_key(|name| std::cmp::Reverse(name.len()));
    names.into_iter().fold(text, |text, name| text.replace(name, "***"))
}

/// Why Vault did not do it. No token, no value and no body of an answer is in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VaultError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A local file cannot be used.
    #[error("{field}: {path} {reason}")]
    File {
        /// Where it is named in the configuration.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// No address served it in time. Platform; try again.
    #[error("{doing}: {address} is {state} after {tries} tries: {reason}")]
    Unavailable {
        /// What was asked.
        doing: &'static str,
        /// The address that was tried last.
        address: String,
        /// How it is.
        state: ServerState,
        /// How often addresses were asked.
        tries: u32,
        /// More about it.
        reason: String,
    },
    /// A server sends its clients to an address that is not configured. Nothing was sent there.
    #[error(
        "{doing}: {address} sends its clients elsewhere, to {to}; if that is one of this cluster's, add it to `addresses`"
    )]
    Redirected {
        /// What was asked.
        doing: &'static str,
        /// Who sends.
        address: String,
        /// Where to: the origin alone.
        to: String,
    },
    /// No login: it was refused (400, 403 and so on).
    #[error("the login by {method} was refused (status {status}){}{}", shown(.detail), remedy_of(.method))]
    Login {
        /// Which.
        method: &'static str,
        /// The HTTP status.
        status: u16,
        /// What the server says about it.
        detail: Detail,
    },
    /// The token may not do that (403); with the agent's own, also after another login.
    #[error("{doing}: permission denied for {path}; see the policies of its role")]
    Denied {
        /// What was asked.
        doing: &'static str,
        /// The path below `/v1/`.
        path: String,
    },
    /// There is nothing there (404).
    #[error("{doing}: there is nothing at {path}{}", if *.deleted { " any more: that version was deleted" } else { "" })]
    Missing {
        /// What was asked.
        doing: &'static str,
        /// The path below `/v1/`.
        path: String,
        /// Whether there was something (a deleted version of KV v2).
        deleted: bool,
        /// What the server says about it; empty if it is no answer of Vault's, and where it could hold something of a secret.
        detail: Detail,
    },
    /// The server refuses it (400 and other 4xx). Trying again does not help.
    #[error("{doing}: {path} was refused (status {status}){}", shown(.detail))]
    Refused {
        /// What was asked.
        doing: &'static str,
        /// The path below `/v1/`.
        path: String,
        /// The HTTP status.
        status: u16,
        /// What the server says about it; empty where it could hold something of a secret.
        detail: Detail,
    },
    /// An answer cannot be used.
    #[error("{doing}: the answer cannot be used: {reason}")]
    Answer {
        /// What was asked.
        doing: &'static str,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A token cannot be a step's, and could not be taken back: it lives.
    #[error("{doing}: the answer cannot be used: {reason}")]
    Unfit {
        /// What was asked.
        doing: &'static str,
        /// What is wrong with it, and what to do.
        reason: String,
        /// By what it is revoked.
        accessor: super::Accessor,
        /// How long it lives.
        ttl: std::time::Duration,
    },
    /// A wrapping token was used up by this agent itself, before it was restarted.
    #[error(
        "the wrapping token in {} was used by this daemon before it was restarted, and can be used once; write a new one to {}",
        path.display(), path.display()
    )]
    Spent {
        /// Where it is.
        path: PathBuf,
    },
    /// Somebody else may have what was meant for us: a security event. Never tried again.
    #[error("{doing}: {reason}; possibly intercepted: revoke what it gives, and find out who had it")]
    Intercepted {
        /// What was asked.
        doing: &'static str,
        /// What was seen.
        reason: String,
    },
}

fn shown(detail: &Detail) -> String {
    let detail = detail.shown();
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}

fn remedy_of(method: &str) -> &'static str {
    match method {
        APPROLE => {
            "; see login.approle.role_id and secret_id (a file with a wrapping token needs wrapped = \"auth/approle/role/NAME/secret-id\")"
        }
        _ => "",
    }
}

/// The kinds of errors, for metrics and decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// `vault.config`
    Config,
    /// `vault.unavailable`
    Unavailable,
    /// `vault.redirected`
    Redirected,
    /// `vault.login`
    Login,
    /// `vault.denied`
    Denied,
    /// `vault.missing`
    Missing,
    /// `vault.refused`
    Refused,
    /// `vault.answer`
    Answer,
    /// `vault.intercepted`
    Intercepted,
}

impl Kind {
    /// Its spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Config => "vault.config",
            Self::Unavailable => "vault.unavailable",
            Self::Redirected => "vault.redirected",
            Self::Login => "vault.login",
            Self::Denied => "vault.denied",
            Self::Missing => "vault.missing",
            Self::Refused => "vault.refused",
            Self::Answer => "vault.answer",
            Self::Intercepted => "vault.intercepted",
        }
    }
}

impl VaultError {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Config(_) | Self::File { .. } => Kind::Config,
            Self::Unavailable { .. } => Kind::Unavailable,
            Self::Redirected { .. } => Kind::Redirected,
            Self::Login { .. } | Self::Spent { .. } => Kind::Login,
            Self::Denied { .. } => Kind::Denied,
            Self::Missing { .. } => Kind::Missing,
            Self::Refused { .. } => Kind::Refused,
            Self::Answer { .. } | Self::Unfit { .. } => Kind::Answer,
            Self::Intercepted { .. } => Kind::Intercepted,
        }
    }

    /// The bounded code of a step that does not get its secret because of it. (Whom a secret is denied to is decided before
    /// Vault is asked.)
    pub fn code(&self) -> ampoule_spec::Code {
        ampoule_spec::Code::SecretUnavailable
    }

    /// The same without these names in what the server says. Before it is shown: by then it is cut, perhaps in the middle of one.
    pub fn without(mut self, names: &[&str]) -> Self {
        if let Self::Login { detail, .. } | Self::Missing { detail, .. } | Self::Refused { detail, .. } =
            &mut self
        {
            detail.hide(names);
        }
        self
    }

    /// How the server was, if that is why.
    pub fn state(&self) -> Option<ServerState> {
        match self {
            Self::Unavailable { state, .. } => Some(*state),
            _ => None,
        }
    }

    /// Whether a server was asked before it failed, and there was not just no time for that.
    pub fn was_asked(&self) -> bool {
        !matches!(self, Self::Unavailable { tries: 0, .. })
    }

    /// Whether the same may succeed later without anybody doing anything.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// Whether somebody has to be told at once.
    pub fn is_security_event(&self) -> bool {
        matches!(self, Self::Intercepted { .. })
    }
}
