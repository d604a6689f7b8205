//! The client of Vault against a real server: OpenBao, with the policies that `examples/vault/` gives to operators.
//!
//! Behind the feature `server-tests`: `cargo xtask test` installs the server and runs them, or counts them as skipped.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "../../integration/src/certificates.rs"]
#[allow(unreachable_pub, dead_code)]
mod certificates;
#[path = "vault/checks.rs"]
mod checks;
#[path = "vault/daemon.rs"]
mod daemon;
#[path = "vault/database.rs"]
mod database;
#[path = "vault/identity.rs"]
mod identity;
#[path = "vault/kills.rs"]
mod kills;
#[path = "vault/logins.rs"]
mod logins;
#[path = "vault/outages.rs"]
mod outages;
#[path = "../../integration/src/postgres.rs"]
mod postgres;
#[path = "vault/reads.rs"]
mod reads;
#[path = "vault/tokens.rs"]
mod tokens;
#[path = "vault/transit.rs"]
mod transit;
#[path = "vault/traps.rs"]
mod traps;
#[path = "../../integration/src/vault.rs"]
mod vault;
#[path = "vault/waits.rs"]
mod waits;
#[path = "vault/wrapping.rs"]
mod wrapping;

use crate::vault::{Rig, Storage};
use ampoule_agent::vault::{Config, StepMeta, Vault};
use serde_json::Value;
use std::path::{Path, PathBuf};

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A server with the agent's and a step's policy, the token role and an AppRole.
pub(crate) fn rig(storage: Storage) -> Rig {
    Rig::as_documented(&repository(), storage).unwrap()
}

/// The lines of a configuration that say who the server is.
pub(crate) fn server(rig: &Rig) -> String {
    format!(
        "addresses = [{:?}]\nca = {:?}\nconnect_timeout = \"1s\"\ntimeout = \"1500ms\"\nbudget = \"6s\"\n\
         wait_for_vault = \"20s\"\n",
        rig.address(),
        rig.ca()
    )
}

/// An AppRole with a new secret id, as a table.
pub(crate) fn approle(rig: &Rig) -> String {
    rig.approle().unwrap()
}

pub(crate) const STEP: &str = vault::TOKEN_ROLE;

pub(crate) fn config(text: &str) -> Config {
    toml::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// A client with the agent's AppRole and steps' tokens from the token role.
pub(crate) fn client(rig: &Rig) -> Vault {
    Vault::new(config(&format!("{}{}{STEP}", server(rig), approle(rig))), None).unwrap()
}

pub(crate) fn text(answer: &Value, pointer: &str) -> String {
    vault::text(answer, pointer).unwrap()
}

pub(crate) fn meta() -> StepMeta {
    StepMeta { job: "0199-job".to_owned(), step: "publish".to_owned(), project: "app".to_owned() }
}
