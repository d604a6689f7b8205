//! A server of the Vault API and a database, as `examples/vault/` and `docs/secrets.md` say, and what a daemon needs to ask them.

use crate::check::equal;
use crate::harness::skip;
use crate::lab::Lab;
use crate::postgres::{self, Postgres};
use crate::procs;
use crate::vault::{self, Rig, Storage, TOKEN_ROLE};
use anyhow::Result;
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
/// The value of the secret `npm`.
pub(crate) const CANARY: &str = "canary-of-the-token-Vb8n";

/// Both, running.
pub(crate) struct Servers {
    pub(crate) rig: Rig,
    pub(crate) postgres: Postgres,
}

impl Servers {
    pub(crate) fn start(lab: &Lab, storage: Storage) -> Result<Self> {
        if let Err(reason) = vault::program(&lab.repository("")).and(postgres::programs()) {
            skip(reason)?;
        }
        let rig = Rig::as_documented(&lab.repository(""), storage)?;
        let value = json!({"data": {"token": CANARY}});
        rig.ask("POST", "secret/data/app/npm", Some(&value))?;
        let postgres = Postgres::start()?;
        postgres.configure(&rig, "2m", "1h")?;
        Ok(Self { rig, postgres })
    }

    /// The lines of the server's table: at another address, if there is one.
    pub(crate) fn server(&self, address: Option<&str>) -> String {
        let own = self.rig.address();
        format!("addresses = [{:?}]\nca = {:?}\n", address.unwrap_or(&own), self.rig.ca())
    }

    /// `[secrets]` of a daemon's configuration, with the file that it names.
    pub(crate) fn table(&self, lab: &Lab) -> Result<String> {
        let login = self.rig.approle()?;
        Self::write(lab, &vault::secrets_toml(&format!("{}{login}{TOKEN_ROLE}", self.server(None))))
    }

    /// The same with this file.
    pub(crate) fn write(lab: &Lab, secrets_toml: &str) -> Result<String> {
        let path = lab.write("secrets.toml", secrets_toml)?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600))?;
        Ok(format!("[secrets]\nfile = \"{}\"\n", path.display()))
    }

    /// Waits until the database has no user of ours, and the server no lease.
    pub(crate) fn nothing_is_left(&self) -> Result<()> {
        let users = || self.postgres.made_users().is_ok_and(|users| users.is_empty());
        procs::eventually(SOON, "the database has no user of ours", users)?;
        equal("leases", &self.rig.leases("database/creds/app")?, &Vec::new())
    }
}
