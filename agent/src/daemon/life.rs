//! From the command line to the exit status.

use super::args::Args;
use super::config::Config;
use super::logs::Level;
use super::places::PlaceError;
use super::vitals::Vitals;
use super::{host, http, logs, notify, places};
use ampoule_spec::Exit;
use clap::Parser;
use sd_notify::NotifyState;
use std::future::pending;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How often systemd is told how many jobs there are.
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// Why the daemon ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    /// The configuration, or what it names.
    #[error("{0}")]
    Config(String),
    /// The host does not give what the daemon needs.
    #[error("{what}: {source}")]
    Host {
        /// What.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Somebody else has what it needs.
    #[error("{0}")]
    Busy(String),
}

impl Ended {
    fn exit(&self) -> Exit {
        match self {
            Self::Config(_) => Exit::Usage,
            Self::Host { .. } => Exit::Unsupported,
            Self::Busy(_) => Exit::TryAgain,
        }
    }

    fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| match source.kind() {
            io::ErrorKind::AddrInUse => Self::Busy(format!("{what}: somebody else listens there")),
            _ => Self::Host { what, source },
        }
    }
}

impl From<PlaceError> for Ended {
    fn from(error: PlaceError) -> Self {
        Self::Config(error.to_string())
    }
}

/// Runs `ampouled`, and gives its exit status.
pub fn run() -> u8 {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage as u8 } else { 0 };
        }
    };
    let body = std::panic::AssertUnwindSafe(|| dispatch(&args));
    match std::panic::catch_unwind(body) {
        Ok(Ok(())) => 0,
        Ok(Err(ended)) => {
            // Before the log there is only this, and a person at a terminal reads it.
            eprintln!("ampouled: {ended}");
            ended.exit() as u8
        }
        Err(_) => Exit::Internal as u8,
    }
}

fn dispatch(args: &Args) -> Result<(), Ended> {
    let config = Config::load(&args.config).map_err(|e| Ended::Config(e.to_string()))?;
    if args.print_config {
        print!("{}", config.show());
        return Ok(());
    }
    places::check(&config)?;
    if args.record_baseline {
        return record_baseline(&config);
    }
    if args.check_config {
        println!("{}: good", args.config.display());
        return Ok(());
    }
    let level = logs::begin(&config.log).map_err(Ended::host("the log"))?;
    places::state(&config.state)?;
    let vitals = Arc::new(Vitals::default());
    catch_panics(&vitals);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(Ended::host("threads"))?;
    let daemon = Daemon { file: args.config.clone(), config, vitals, level };
    let ended = runtime.block_on(daemon.live());
    // What hangs in a call that blocks does not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

fn record_baseline(config: &Config) -> Result<(), Ended> {
    let Some(path) = &config.host.baseline else {
        return Err(Ended::Config("host.baseline: missing; say where the baseline is to be".to_owned()));
    };
    let facts = host::facts(config);
    let count = facts.len();
    host::record(path, facts).map_err(|e| Ended::Config(e.to_string()))?;
    println!("{}: {count} facts", path.display());
    Ok(())
}

/// A panic is logged in one line and counted. What panicked is gone; the rest goes on.
fn catch_panics(vitals: &Arc<Vitals>) {
    let vitals = vitals.clone();
    std::panic::set_hook(Box::new(move |info| {
        vitals.metrics.panics.inc();
        let text = info.payload_as_str().unwrap_or("no text");
        let at = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(at, text, "a defect of Ampoule");
    }));
}

/// A daemon that lives.
struct Daemon {
    file: PathBuf,
    config: Config,
    vitals: Arc<Vitals>,
    level: Level,
}

impl Daemon {
    async fn live(mut self) -> Result<(), Ended> {
        let mut signals = Signals::take().map_err(Ended::host("signals"))?;
        let bound = http::Bound::bind(&self.config.metrics).map_err(Ended::host("metrics.listen"))?;
        let pages = bound.map(|bound| tokio::spawn(http::serve(bound, self.vitals.clone())));
        // What is not known yet does not hold.
        self.vitals.set_launcher(false);
        self.vitals.set_accepting(false);
        self.look_at_host().await?;
        let watchdog = notify::watchdog().map(|every| tokio::spawn(feed(every)));
        tracing::info!(version = env!("CARGO_PKG_VERSION"), dev = self.config.dev, "ready");
        notify::tell(&[NotifyState::Ready]);
        let mut status = tokio::time::interval(STATUS_EVERY);
        let mut look = tokio::time::interval(self.config.host.every);
        look.tick().await;
        loop {
            tokio::select! {
                _ = look.tick() => {
                    if let Err(error) = self.look_at_host().await {
                        // What cannot be compared is not known to be as it was.
                        tracing::error!(%error, "the host cannot be compared with its baseline");
                        self.vitals.set_drift(1, self.config.host.refuse_on_drift);
                    }
                },
                what = signals.next() => match what {
                    Told::Reload => self.reload(),
                    Told::End => break,
                },
                _ = status.tick() => self.tell_status(),
            }
        }
        tracing::info!("ending; jobs go on");
        notify::tell(&[NotifyState::Stopping]);
        self.vitals.set_ending();
        for task in [pages, watchdog].into_iter().flatten() {
            task.abort();
        }
        Ok(())
    }

    /// Compares the host with its baseline, if there is one.
    async fn look_at_host(&self) -> Result<(), Ended> {
        let Some(path) = self.config.host.baseline.clone() else { return Ok(()) };
        let config = self.config.clone();
        let compared = tokio::task::spawn_blocking(move || host::compare(&path, &host::facts(&config))).await;
        let drift =
            compared.map_err(|e| Ended::Host { what: "the host's facts".into(), source: e.into() })?;
        let drift = drift.map_err(|e| Ended::Config(e.to_string()))?;
        for host::Drift { fact, recorded, found } in &drift {
            tracing::warn!(fact, recorded, found, "the host is not what its baseline says");
        }
        self.vitals.set_drift(drift.len(), self.config.host.refuse_on_drift);
        Ok(())
    }

    fn tell_status(&self) {
        let metrics = &self.vitals.metrics;
        let status = format!("{} running, {} waiting", metrics.running.get(), metrics.queued.get());
        notify::tell(&[NotifyState::Status(&status)]);
    }

    /// All of what can be read again is good and used, or nothing changes.
    fn reload(&mut self) {
        notify::reloading();
        let read = Config::load(&self.file).map_err(|e| Ended::Config(e.to_string()));
        let read = read.and_then(|config| places::check(&config).map(|()| config).map_err(Ended::from));
        self.vitals.metrics.reloaded(read.is_ok());
        match read {
            Ok(config) => {
                self.level.set(&config.log.level);
                self.config.log.level.clone_from(&config.log.level);
                tracing::info!("the configuration was read again");
            }
            Err(error) => tracing::error!(%error, "the configuration was not taken; the one before stays"),
        }
        notify::tell(&[NotifyState::Ready]);
    }
}

/// Feeds the watchdog. That it is fed shows that tasks run.
async fn feed(every: Duration) {
    let mut clock = tokio::time::interval(every);
    loop {
        clock.tick().await;
        notify::tell(&[NotifyState::Watchdog]);
    }
}

/// What somebody outside wants.
enum Told {
    Reload,
    End,
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn take() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            Some(()) = self.hangup.recv() => Told::Reload,
            Some(()) = self.terminate.recv() => Told::End,
            Some(()) = self.interrupt.recv() => Told::End,
            else => pending().await,
        }
    }
}
