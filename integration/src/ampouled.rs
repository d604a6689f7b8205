//! `ampouled` over a launcher that listens, both in a test's directory.

use crate::check::{Ran, statement};
use crate::lab::{Call, Lab, Live};
use crate::listener::Listener;
use crate::procs;
use anyhow::{Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);
/// Root may do everything, nobody else anything.
const POLICY: &str =
    "package ampoule.authz\ndefault allow := false\nallow if input.caller.subject == \"uid:0\"\n";

/// A listener for a network, and who may do everything through it.
pub(crate) struct Listen {
    /// `ADDRESS:PORT`.
    pub(crate) tcp: String,
    /// The table `tls`.
    pub(crate) tls: String,
    /// Who.
    pub(crate) subject: String,
}

/// A running daemon and its launcher.
pub(crate) struct Ampouled<'l> {
    lab: &'l Lab<'l>,
    listener: Option<Listener<'l>>,
    child: Child,
    key: PathBuf,
    number: AtomicU32,
}

impl<'l> Ampouled<'l> {
    /// Starts both, for trying things out: the daemon signs with a key that it makes.
    pub(crate) fn start(lab: &'l Lab<'l>) -> Result<Self> {
        Self::start_with(lab, "")
    }

    /// Starts both as an operator would: with a key of the operator's.
    pub(crate) fn start_signing(lab: &'l Lab<'l>) -> Result<Self> {
        Self::start_signing_with(lab, "")
    }

    /// The same, with these tables in the configuration.
    pub(crate) fn start_signing_with(lab: &'l Lab<'l>, tables: &str) -> Result<Self> {
        let (private, public) = (lab.path("provenance.key"), lab.path("provenance.pub"));
        let made =
            lab.call("openssl").args(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]);
        made.arg("-out").arg(&private).end()?.exits(0)?;
        fs::set_permissions(&private, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        lab.call("openssl")
            .args(["pkey", "-pubout", "-in"])
            .arg(&private)
            .arg("-out")
            .arg(&public)
            .end()?
            .exits(0)?;
        let head =
            format!("authority = \"https://builds.test.example\"\nsigning.key = \"{}\"\n", private.display());
        Self::start_as(lab, &head, tables, public, None)
    }

    /// Starts both with this line in the configuration, which says what signs; its public key is there already.
    pub(crate) fn start_signing_by(lab: &'l Lab<'l>, signing: &str, public: PathBuf) -> Result<Self> {
        Self::start_as(
            lab,
            &format!("authority = \"https://builds.test.example\"\n{signing}"),
            "",
            public,
            None,
        )
    }

    /// The same as [`Ampouled::start`], with these tables in the configuration.
    pub(crate) fn start_with(lab: &'l Lab<'l>, tables: &str) -> Result<Self> {
        let key = lab.path("daemon/keys/development.pub");
        Self::start_as(lab, "dev = true\n", tables, key, None)
    }

    /// The same, with a listener for a network as well.
    pub(crate) fn start_listening(lab: &'l Lab<'l>, listen: &Listen) -> Result<Self> {
        let key = lab.path("daemon/keys/development.pub");
        Self::start_as(lab, "dev = true\n", "", key, Some(listen))
    }

    fn start_as(
        lab: &'l Lab<'l>,
        head: &str,
        tables: &str,
        key: PathBuf,
        listen: Option<&Listen>,
    ) -> Result<Self> {
        let listener = Listener::start(lab, &[])?;
        let more = listen
            .map(|listen| format!("allow if input.caller.subject == \"{}\"\n", listen.subject))
            .unwrap_or_default();
        lab.write("policy/authz.rego", format!("{POLICY}{more}"))?;
        if !lab.sources().exists() {
            lab.write("sources.toml", "sources = 1\n[project.default]\npublic = true\n")?;
        }
        let path = |name: &str| lab.path(name).display().to_string();
        let (tcp, tls) = listen
            .map(|listen| (format!("tcp = \"{}\"\n", listen.tcp), format!("[tls]\n{}", listen.tls)))
            .unwrap_or_default();
        // A test that looks at metrics says where.
        let metrics = if tables.contains("[metrics]") { "" } else { "[metrics]\nlisten = \"off\"\n" };
        let config = format!(
            "{head}state = \"{}\"\npolicy = \"{}\"\nsources = \"{}\"\n[listen]\nunix = \"{}\"\n{tcp}{tls}[runner]\nsocket = \"{}\"\nstate = \"{}\"\n{metrics}{tables}",
            path("daemon"),
            path("policy"),
            lab.sources().display(),
            path("agent.sock"),
            listener.socket.display(),
            lab.state().display(),
        );
        lab.write("agent.toml", config)?;
        let child = Self::spawn(lab)?;
        let daemon = Self { lab, listener: Some(listener), child, key, number: AtomicU32::new(0) };
        daemon.answers()?;
        Ok(daemon)
    }

    fn spawn(lab: &Lab) -> Result<Child> {
        let log = File::options().create(true).append(true).open(lab.path("agent.log"))?;
        let mut command = Command::new(lab.program("ampouled"));
        command.arg("--config").arg(lab.path("agent.toml")).env_clear().env("TMPDIR", lab.path("tmp"));
        Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?)
    }

    fn said(&self) -> String {
        fs::read_to_string(self.lab.path("agent.log")).unwrap_or_default()
    }

    /// Waits until its log has this text.
    pub(crate) fn says(&self, text: &str) -> Result<()> {
        let says = || self.said().contains(text);
        procs::eventually(SOON, text, says).map_err(|e| e.context(self.said()))
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        procs::signal(self.child.id().cast_signed(), signal)
    }

    fn answers(&self) -> Result<()> {
        let answers = || self.ampoule("list").end().is_ok_and(|ran| ran.status == Some(0));
        procs::eventually(SOON, "the daemon answers", answers).map_err(|e| e.context(self.said()))
    }

    /// A command that asks it.
    pub(crate) fn ampoule(&self, command: &str) -> Call<'l> {
        let server = format!("unix://{}", self.lab.path("agent.sock").display());
        self.lab.ampoule().arg(command).arg("--server").arg(server)
    }

    /// `ampoule secrets COMMAND`.
    pub(crate) fn secrets(&self, command: &str) -> Call<'l> {
        let server = format!("unix://{}", self.lab.path("agent.sock").display());
        self.lab.ampoule().args(["secrets", command, "--server"]).arg(server)
    }

    /// `ampoule submit --wait` under a key, with a new output directory.
    pub(crate) fn submit(&self, job: &Path, key: &str) -> Call<'l> {
        let number = self.number.fetch_add(1, Ordering::SeqCst);
        let out = self.lab.path(&format!("fetched-{number}"));
        let call = self.ampoule("submit").arg(job).args(["--wait", "--idempotency-key", key]);
        call.arg("--out").arg(&out).out(out)
    }

    /// Submits a job by its spec, waits for its end, and gives its exit status and its run attestation.
    pub(crate) fn runs_spec(&self, spec: &Path, project: &str, key: &str) -> Result<(Option<i32>, Value)> {
        let submit = self.lab.call(self.lab.program("examples/submit_spec"));
        let submitted = submit.arg(self.socket()).args([project, key]).arg(spec).end()?.exits(0)?;
        let id = submitted.stdout_text().trim().to_owned();
        let ran = self.ampoule("watch").arg(&id).end()?;
        let record = self.lab.path("daemon/records").join(id).join("run.intoto.jsonl");
        Ok((ran.status, statement(&record)?))
    }

    /// Its public key, as the operator has it.
    pub(crate) fn key(&self) -> PathBuf {
        self.key.clone()
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.lab.path("agent.sock")
    }

    /// What has ended, to be verified with the daemon's key.
    pub(crate) fn ended(&self, live: Live<'_>) -> Result<Ran> {
        let mut ran = live.end()?;
        ran.key = self.key();
        Ok(ran)
    }

    /// Kills it with SIGKILL, and starts another one after a while.
    pub(crate) fn kill_and_start(&mut self, after: Duration) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        std::thread::sleep(after);
        self.child = Self::spawn(self.lab)?;
        self.answers()
    }

    /// The last lines of its log.
    pub(crate) fn said_last(&self) -> String {
        let said = self.said();
        let lines: Vec<&str> = said.lines().collect();
        lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
    }

    /// Its process.
    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Starts another one after somebody has killed it.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        let status = self.child.wait()?;
        ensure!(!status.success(), "the daemon ended by itself");
        self.child = Self::spawn(self.lab)?;
        self.answers()
    }

    /// Ends both. What jobs have left stays for its retention.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.lab.leaves_jobs();
        procs::signal(self.child.id().cast_signed(), Signal::TERM)?;
        procs::eventually(SOON, "the daemon ends", || matches!(self.child.try_wait(), Ok(Some(_))))?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the daemon ended with {status}");
        self.listener.take().map_or(Ok(()), Listener::stop)
    }
}

impl Drop for Ampouled<'_> {
    /// A test that failed leaves nothing either.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
