//! Everything that serves, put together: jobs, content, callers and listeners.

use super::able::ThisHost;
use super::config::{Collector, Config, SigningKey, Traces as TracesTo};
use super::glue::{CountedGate, OfProjects, ProjectContents, ToLauncher};
use super::record::Recorder;
use super::vitals::Vitals;
use super::{capacity, listen, secret};
use crate::admission::{Desk, Policy};
use crate::api::{self, Limits, Listener, Parts, Server, Tls, TlsFiles};
use crate::audit::{Action, AuditError, AuditEvent, AuditLog, OURSELVES};
use crate::client::{ClientError, channel};
use crate::content::{self, ContentLimits};
use crate::export::sha256_of;
use crate::files::read_operators;
use crate::identity::{Fetch, Identities, IdentitiesFile};
use crate::job::ledger::OpenError;
use crate::job::queue::{Amount, Quota, Rules};
use crate::job::{Intakes, Jobs, Keep, Keeper, KeeperError, Options, Sources, ledger};
use crate::local;
use crate::secrets::Secrets;
use crate::sources::SourcesFile;
use crate::traces::{Counts, Traces, tell};
use ampoule_spec::Sha256;
use ampoule_spec::wire::SESSIONS_MAX;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// The services of the schema, as health calls them.
const SERVICES: [&str; 3] = ["ampoule.v1.JobService", "ampoule.v1.ContentService", "ampoule.v1.HostService"];
/// Jobs whose inputs are fetched at the same time, and uploads that are imported.
const IMPORTS: usize = 4;
/// Questions to the launcher at the same time, what its store has.
const LOOKUPS: usize = 2;
// Each of them has a session of the launcher's, and so have what takes jobs and what asks for profiles: the places that it
// keeps for questions about jobs are nobody else's.
const _: () = assert!(2 * IMPORTS + LOOKUPS + 2 <= SESSIONS_MAX);
/// Readers of a project's jobs at the same time.
const READERS: usize = 1024;
/// How long what waits for the audit log has at the end.
const RECORD_WITHIN: Duration = Duration::from_secs(5);
/// How long spans that have ended have at the end.
const SPANS_WITHIN: Duration = Duration::from_secs(2);
/// How often content that was left is looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

/// Why the daemon cannot serve.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// What the configuration names.
    #[error("{0}")]
    Config(String),
    /// The host.
    #[error("{0}")]
    Host(String),
    /// Somebody else has it.
    #[error("{0}")]
    Busy(String),
    /// A defect.
    #[error("{0}")]
    Defect(String),
}

pub(super) fn config(field: &str) -> impl Fn(&dyn std::fmt::Display) -> Trouble + '_ {
    move |error| Trouble::Config(format!("{field}: {error}"))
}

impl From<KeeperError> for Trouble {
    fn from(error: KeeperError) -> Self {
        let text = crate::chain::chain(&error);
        match error {
            KeeperError::Ledger(OpenError::Locked(_)) => Self::Busy(text),
            KeeperError::Key(_) => Self::Config(format!("signing: {text}")),
            _ => Self::Host(text),
        }
    }
}

/// Everything that serves.
pub(super) struct Services {
    pub(super) keeper: Arc<Keeper>,
    pub(super) desk: Arc<Desk>,
    pub(super) identities: Arc<Identities>,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) host: Arc<ThisHost>,
    pub(super) measured: Amount,
    health: HealthReporter,
    vitals: Arc<Vitals>,
    stop: CancellationToken,
    listening: TaskTracker,
    background: Vec<JoinHandle<()>>,
    pub(super) recorder: Recorder,
    pub(super) secrets: Arc<Secrets>,
    recording: JoinHandle<()>,
    /// Sends spans, if there are any.
    sending: Option<JoinHandle<()>>,
}

/// Looks at what can be read again, and changes nothing.
///
/// # Errors
/// The field of the configuration and what is wrong with what it names.
pub(super) fn check(of: &Config) -> Result<(), Trouble> {
    Policy::load(&of.policy).map_err(|e| config("policy")(&e))?;
    IdentitiesFile::load(&of.identities).map_err(|e| config("identities")(&e))?;
    open_tls(of)?;
    sources(of)?;
    secret::check(of)?;
    match &of.traces {
        Some(TracesTo { endpoint: Collector::Https(_), credentials }) => {
            channel::check(credentials).map_err(traces)
        }
        _ => Ok(()),
    }
}

/// What is wrong with a file of the collector's, by the key that names it: a client of ours names it by a variable.
fn traces(error: ClientError) -> Trouble {
    let (what, reason) = match error {
        ClientError::Setting { what, reason } => (what, reason),
        ClientError::File { what, path, reason } => (what, format!("{}: {reason}", path.display())),
        other => ("", crate::chain::chain(&other)),
    };
    let field = match what {
        "AMPOULE_CA" => "traces.ca",
        "AMPOULE_CERT" => "traces.certificate",
        "AMPOULE_KEY" => "traces.key",
        _ => "traces",
    };
    config(field)(&reason)
}

/// Spans, if somebody collects them.
fn begin_traces(of: &Config, counts: &Counts) -> Result<(Traces, Option<JoinHandle<()>>), Trouble> {
    let Some(to) = &of.traces else { return Ok((Traces::default(), None)) };
    let channel = match &to.endpoint {
        Collector::Loopback(address) => channel::loopback(*address),
        Collector::Https(server) => channel::channel(server, &to.credentials),
    };
    let (made, task) = Traces::begin(channel.map_err(traces)?, counts.clone());
    Ok((made, Some(task)))
}

fn open_tls(of: &Config) -> Result<Option<Arc<Tls>>, Trouble> {
    let Some(files) = &of.tls else { return Ok(None) };
    let files = TlsFiles {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        client_ca: files.client_ca.clone(),
        tokens: files.tokens,
    };
    Ok(Some(Arc::new(Tls::open(files).map_err(|e| config("tls")(&e))?)))
}

/// Where inputs may come from, and the SHA-256 of the file that says it.
pub(super) fn sources(of: &Config) -> Result<(Sources, Option<Sha256>), Trouble> {
    let files = of.files.clone();
    let Some(path) = &of.sources else {
        let all = crate::sources::Policy::nothing();
        return Ok((Sources { all, projects: Default::default(), files }, None));
    };
    let wrong = |e: crate::jobfile::JobFileError| Trouble::Config(e.to_string());
    let text = read_operators(path).map_err(wrong)?;
    let (shown, base) = (path.display().to_string(), path.parent().unwrap_or(Path::new("")));
    let file = SourcesFile::parse(&text, &shown, base).map_err(wrong)?;
    // Callers hear of it, and have no business with where it lies.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let policies = file.policies().into_iter().map(|(project, policy)| (project, policy.called(&name)));
    let projects = policies.collect();
    // Who is not in the file has the rules of `default`, without what would be shown there in the name of `default`; and
    // none if there are none.
    let all = file.policy(None).map(|policy| policy.called(&name).without_secrets());
    let all = all.unwrap_or_else(|_| crate::sources::Policy::nothing());
    Ok((Sources { all, projects, files }, Some(sha256_of(text.as_bytes()))))
}

/// Opens the content of all projects.
fn open_contents(of: &Config, vitals: &Arc<Vitals>) -> Result<Arc<ProjectContents>, Trouble> {
    let to_launcher = ToLauncher { socket: of.runner.socket.clone(), vitals: vitals.clone() };
    let of_bytes = ContentLimits::of_bytes(of.limits.upload_bytes);
    let limits = ContentLimits { imports: IMPORTS, lookups: LOOKUPS, ..of_bytes };
    let contents = ProjectContents::open(&of.state.join("content"), to_launcher, limits);
    Ok(Arc::new(contents.map_err(|e| Trouble::Host(format!("content: {e}")))?))
}

fn number(of: u64) -> u32 {
    u32::try_from(of).unwrap_or(u32::MAX)
}

/// What the queue goes by.
pub(super) fn rules(of: &Config, measured: Amount) -> Rules {
    let quota = |of: super::config::Quota| Quota {
        running: number(of.running),
        queued: number(of.queue),
        weight: number(of.weight),
    };
    Rules {
        capacity: capacity::of_host(of, measured),
        running: number(of.limits.running),
        queued: number(of.limits.queue),
        patience: number(of.limits.patience),
        quota: quota(of.quota),
        projects: of.projects.iter().map(|(name, of)| (name.clone(), quota(*of))).collect(),
    }
}

fn key(of: &Config) -> local::SigningKey {
    match &of.signing {
        None => local::SigningKey::Development,
        Some(SigningKey::File(path)) => local::SigningKey::File(path.clone()),
        Some(SigningKey::Transit(path)) => local::SigningKey::Transit(path.clone()),
        Some(SigningKey::Credential(name)) => {
            let directory = std::env::var_os("CREDENTIALS_DIRECTORY").unwrap_or_default();
            local::SigningKey::Credential(Path::new(&directory).join(name))
        }
    }
}

fn options(
    of: &Config,
    rules: Rules,
    shown: Arc<OfProjects>,
    (witness, secrets): (Recorder, Arc<Secrets>),
    (accept_loss, drifted): (Option<u64>, Option<bool>),
) -> Result<Options, Trouble> {
    let retention = ledger::Retention {
        count: usize::try_from(of.retention.count).unwrap_or(usize::MAX),
        bytes: of.retention.record_bytes,
        age_ns: u64::try_from(of.retention.records.as_nanos()).unwrap_or(u64::MAX),
        least_ns: u64::try_from(of.retention.least.as_nanos()).unwrap_or(u64::MAX),
    };
    let lookups = shown.contents.lookups();
    Ok(Options {
        state: of.state.clone(),
        socket: of.runner.socket.clone(),
        jobs: of.runner.state.join("jobs"),
        key: key(of),
        authority: of.authority.clone(),
        sources: sources(of)?.0,
        shown,
        witness: Arc::new(witness),
        rules,
        needs: capacity::needs().map_err(Trouble::Defect)?,
        ledger: ledger::Options { retention, accept_loss, ..ledger::Options::default() },
        keep: Keep { age: of.retention.jobs, bytes: of.retention.bytes, ..Keep::default() },
        intakes: Intakes { places: IMPORTS, ..Intakes::default() },
        lookups,
        readers: READERS,
        drifted,
        secrets: Some(secrets),
    })
}

impl Services {
    /// Opens everything, and listens. What was acknowledged before is taken up; with drift no job is taken or started, and none is started under a launcher
    /// that came up since the host was looked at; without an answer nobody minds.
    ///
    /// # Errors
    /// [`Trouble`].
    pub(super) async fn open(
        of: &Config,
        vitals: &Arc<Vitals>,
        accept_loss: Option<u64>,
        drifted: Option<bool>,
    ) -> Result<Self, Trouble> {
        // What is free by and by is what jobs have left: it is measured once.
        let measured = capacity::measured(of);
        let rules = rules(of, measured);
        let (recorder, recording) = Recorder::begin(audit_log(of)?, vitals.clone(), of.audit);
        begin(&recorder, of).await?;
        let (traces, sending) = begin_traces(of, &vitals.metrics.spans)?;
        let desk =
            Desk::open(of.policy.clone(), Arc::new(recorder.clone())).map_err(|e| config("policy")(&e))?;
        let fetch = Fetch::new(None).map_err(Trouble::Host)?;
        let identities = Identities::open(&of.identities, Arc::new(fetch));
        let identities = Arc::new(identities.map_err(|e| config("identities")(&e))?);
        let (desk, tls) = (Arc::new(desk), open_tls(of)?);
        let contents = open_contents(of, vitals)?;
        let host = Arc::new(ThisHost::new(of, rules.capacity));
        let of_projects = Arc::new(OfProjects { contents: contents.clone(), host: host.clone() });
        let secrets = secret::open(of, vitals, &recorder)?;
        let with = (recorder.clone(), secrets.clone());
        let of_all = options(of, rules.clone(), of_projects.clone(), with, (accept_loss, drifted))?;
        let keeper = Arc::new(Keeper::open(of_all)?);
        let health = HealthReporter::new();
        let gate = CountedGate { gate: api::ContentGate(desk.clone()), vitals: vitals.clone() };
        let defect = |e: api::ApiError| Trouble::Defect(e.to_string());
        let routes =
            Routes::new(api::jobs::service(keeper.clone(), of_projects, desk.clone()).map_err(defect)?)
                .add_service(content::service(contents.clone(), gate))
                .add_service(api::host::service(keeper.clone(), host.clone(), secrets.clone(), desk.clone()));
        let parts = Parts {
            routes,
            identities: identities.clone(),
            desk: desk.clone(),
            health: health.clone(),
            reflection: of.listen.reflection,
            limits: Limits { drain: of.drain_deadline, ..Limits::default() },
            traces: traces.clone(),
        };
        let server = Server::new(parts).map_err(defect)?;
        let (stop, listening) = (CancellationToken::new(), TaskTracker::new());
        for listener in listeners(of, &tls)? {
            listening.spawn(server.clone().serve(listener, stop.clone()));
        }
        listening.close();
        let mut background = vec![
            tokio::spawn(super::counted::count(keeper.changes(), vitals.clone())),
            tokio::spawn(sweep(contents)),
            tokio::spawn(host.clone().keep_asking()),
            tokio::spawn(secret::keep_identity(secrets.clone(), vitals.clone())),
            tokio::spawn(secrets.clone().watch()),
        ];
        background.extend(sending.is_some().then(|| tokio::spawn(tell(traces, keeper.changes()))));
        let vitals = vitals.clone();
        let services = Self {
            keeper,
            desk,
            identities,
            tls,
            host,
            measured,
            health,
            vitals,
            stop,
            listening,
            background,
            recorder,
            secrets,
            recording,
            sending,
        };
        services.look().await;
        Ok(services)
    }

    /// Looks how it is, and has health, metrics and systemd's status say so.
    pub(super) async fn look(&self) {
        let launcher = self.keeper.health().launcher;
        let (accepting, running, queued) = self.keeper.load();
        if self.vitals.set_launcher(launcher) && launcher {
            self.host.ask_again();
        }
        self.vitals.set_accepting(accepting);
        self.vitals.metrics.running.set(i64::from(running));
        self.vitals.metrics.queued.set(i64::from(queued));
        let serves = |ready: bool| if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        let ready = self.vitals.not_ready().is_empty();
        self.health.set_service_status("", ServingStatus::Serving).await;
        for service in SERVICES {
            // A job's events and evidence are there for whoever asks, whether or not new jobs are taken.
            self.health.set_service_status(service, serves(ready)).await;
        }
    }

    /// Ends or resumes the intake and the start of jobs because of the host. An operator's drain is another matter.
    /// `under`: how often the launcher had come up before the look.
    pub(super) async fn set_drifted(&self, drifted: bool, under: u64) {
        self.keeper.set_drifted(drifted, under);
        self.look().await;
    }

    /// Ends: calls in flight have their time, jobs go on.
    pub(super) async fn end(self) {
        for service in std::iter::once("").chain(SERVICES) {
            self.health.set_service_status(service, ServingStatus::NotServing).await;
        }
        self.stop.cancel();
        self.listening.wait().await;
        for task in self.background {
            task.abort();
            let _ = task.await;
        }
        if let Some(keeper) = Arc::into_inner(self.keeper) {
            keeper.close().await;
        }
        self.secrets.log_out().await;
        let _ = self.recorder.write(&AuditEvent::now(Action::Stopped, OURSELVES)).await;
        // What waits to be written is; then nobody can ask any more.
        drop((self.recorder, self.desk, self.identities, self.secrets));
        let _ = tokio::time::timeout(RECORD_WITHIN, self.recording).await;
        if let Some(sending) = self.sending {
            let _ = tokio::time::timeout(SPANS_WITHIN, sending).await;
        }
    }
}

/// Writes down that the daemon starts, and with what.
async fn begin(recorder: &Recorder, of: &Config) -> Result<(), Trouble> {
    let config = sha256_of(of.show().as_bytes()).to_string();
    let started = AuditEvent::now(Action::Started, OURSELVES).with("version", env!("CARGO_PKG_VERSION"));
    let written = recorder.write(&started.with("config", config)).await;
    written.map_err(|e| Trouble::Host(crate::chain::chain(&e)))
}

/// The audit log of the state directory.
fn audit_log(of: &Config) -> Result<AuditLog, Trouble> {
    let dir = of.state.join("audit");
    std::fs::create_dir_all(&dir).map_err(|e| Trouble::Host(format!("{}: {e}", dir.display())))?;
    AuditLog::open(&dir, &of.audit_origin).map_err(|error| match error {
        AuditError::Locked(_) => Trouble::Busy(error.to_string()),
        _ => Trouble::Host(crate::chain::chain(&error)),
    })
}

fn listeners(of: &Config, tls: &Option<Arc<Tls>>) -> Result<Vec<Listener>, Trouble> {
    let mut listeners = Vec::new();
    let failed = |field: &str, error: std::io::Error| match error.kind() {
        std::io::ErrorKind::AddrInUse => Trouble::Busy(format!("{field}: somebody else listens there")),
        _ => Trouble::Host(format!("{field}: {error}")),
    };
    if let Some(path) = &of.listen.unix {
        let bound = listen::unix(path).and_then(tokio::net::UnixListener::from_std);
        listeners.push(Listener::Unix(bound.map_err(|e| failed("listen.unix", e))?));
    }
    if let (Some(address), Some(tls)) = (of.listen.tcp, tls) {
        let bound = std::net::TcpListener::bind(address)
            .and_then(|bound| bound.set_nonblocking(true).map(|()| bound))
            .and_then(tokio::net::TcpListener::from_std);
        listeners.push(Listener::Tcp(bound.map_err(|e| failed("listen.tcp", e))?, tls.clone()));
    }
    for passed in listen::of_systemd(&of.listen.systemd).map_err(Trouble::Config)? {
        listeners.push(match (passed, tls) {
            (listen::Passed::Unix(listener), _) => Listener::Unix(
                tokio::net::UnixListener::from_std(listener).map_err(|e| failed("listen.systemd", e))?,
            ),
            (listen::Passed::Tcp(listener), Some(tls)) => Listener::Tcp(
                tokio::net::TcpListener::from_std(listener).map_err(|e| failed("listen.systemd", e))?,
                tls.clone(),
            ),
            (listen::Passed::Tcp(_), None) => {
                let text = "listen.systemd: a socket of the unit is TCP, and there is no [tls]";
                return Err(Trouble::Config(text.to_owned()));
            }
        });
    }
    Ok(listeners)
}

async fn sweep(contents: Arc<ProjectContents>) {
    let mut clock = tokio::time::interval(SWEEP_EVERY);
    loop {
        clock.tick().await;
        let contents = contents.clone();
        let _ = tokio::task::spawn_blocking(move || contents.sweep()).await;
    }
}
