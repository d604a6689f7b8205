//! Debian's PostgreSQL on the loopback interface, for one test: a cluster of its own in a directory of its own.

#![allow(dead_code, unreachable_pub, reason = "two crates share it, and neither uses all of it")]

use crate::vault::{LOOPBACK, until};
use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Who it runs as if we are root: it refuses to be root.
const NOBODY: u32 = 65534;
const PASSWORD: &str = "the-admin-s";

/// A running server; it ends when it is dropped, and its directory with it.
pub struct Postgres {
    dir: tempfile::TempDir,
    programs: PathBuf,
    port: u16,
    child: Option<Child>,
}

/// Where its programs are, or why there are none.
pub fn programs() -> Result<PathBuf, String> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found = versions.map(|version| version.path().join("bin")).find(|bin| bin.join("initdb").exists());
    found.ok_or_else(|| "no initdb below /usr/lib/postgresql; install postgresql".to_owned())
}

impl Postgres {
    pub fn start() -> Result<Self> {
        let programs = programs().map_err(anyhow::Error::msg)?;
        let dir = tempfile::Builder::new().prefix("ampoule-postgres-").tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700))?;
        fs::write(dir.path().join("password"), PASSWORD)?;
        if geteuid().is_root() {
            chown(dir.path(), Some(NOBODY), Some(NOBODY))?;
        }
        let port = TcpListener::bind((LOOPBACK, 0))?.local_addr()?.port();
        let mut postgres = Self { dir, programs, port, child: None };
        let data = postgres.dir.path().join("data");
        let password = format!("--pwfile={}", postgres.dir.path().join("password").display());
        let mut initdb = postgres.command("initdb");
        initdb.arg("-D").arg(data).args([
            "-U",
            "admin",
            "-A",
            "scram-sha-256",
            "-N",
            "-E",
            "UTF8",
            "--locale=C",
        ]);
        let made = initdb.arg(password).output().context("initdb")?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        postgres.resume()?;
        Ok(postgres)
    }

    /// A program of it, as the user that it runs as; it is told to end when we die.
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "INT"]).arg(self.programs.join(name));
        command.env_clear().env("PATH", "/usr/bin:/bin").current_dir(self.dir.path()).stdin(Stdio::null());
        if geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    /// Starts it again after [`Postgres::stop`].
    pub fn resume(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.dir.path().join("log"))?;
        let mut server = self.command("postgres");
        server.arg("-D").arg(self.dir.path().join("data")).args([
            "-h",
            "127.0.0.1",
            "-p",
            &self.port.to_string(),
        ]);
        server.arg("-k").arg(self.dir.path()).args(["-c", "fsync=off", "-c", "shared_buffers=16MB"]);
        self.child = Some(server.stdout(log.try_clone()?).stderr(log).spawn().context("postgres")?);
        until("PostgreSQL answers", || self.query("SELECT 1").is_ok())
    }

    /// Ends it; its data stays.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            kill_process(Pid::from_child(&child), Signal::INT)?;
            child.wait()?;
        }
        Ok(())
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// What a statement gives as the administrator, a line for each row.
    pub fn query(&self, statement: &str) -> Result<Vec<String>> {
        self.query_as("admin", PASSWORD, statement)
    }

    /// The same as somebody else.
    pub fn query_as(&self, user: &str, password: &str, statement: &str) -> Result<Vec<String>> {
        let mut psql = self.command("psql");
        psql.env("PGPASSWORD", password).env("PGCONNECT_TIMEOUT", "10");
        psql.args(["-X", "-A", "-t", "-w", "-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", user]);
        let ran = psql.args(["-d", "postgres", "-c", statement]).output().context("psql")?;
        ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        Ok(String::from_utf8(ran.stdout)?
            .lines()
            .map(str::to_owned)
            .filter(|line| !line.is_empty())
            .collect())
    }

    /// The users that Vault has made and not taken back.
    pub fn made_users(&self) -> Result<Vec<String>> {
        self.query("SELECT rolname FROM pg_roles WHERE rolname LIKE 'v-%'")
    }

    /// Vault's configuration of it: engine `database`, connection and role `app`.
    pub fn configure(&self, vault: &crate::vault::Rig, ttl: &str, max_ttl: &str) -> Result<()> {
        use serde_json::json;
        let url = format!(
            "postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{}/postgres?sslmode=disable",
            self.port
        );
        vault.ask("POST", "sys/mounts/database", Some(&json!({"type": "database"})))?;
        let connection = json!({
            "plugin_name": "postgresql-database-plugin", "allowed_roles": "app", "connection_url": url,
            "username": "admin", "password": PASSWORD,
        });
        vault.ask("POST", "database/config/app", Some(&connection))?;
        let role = json!({
            "db_name": "app", "default_ttl": ttl, "max_ttl": max_ttl,
            "creation_statements": "CREATE ROLE \"{{name}}\" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'",
        });
        vault.ask("POST", "database/roles/app", Some(&role)).map(drop)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}
