//! From the command line to the exit status.

use super::args::Args;
use super::config::Config;
use super::drift::Watch;
use super::logs::Level;
use super::places::PlaceError;
use super::reload::{self, Ready};
use super::services::{self, Services, Trouble};
use super::vitals::Vitals;
use super::{host, http, logs, notify, places, secret};
use crate::audit::{Action, AuditEvent, OURSELVES};
use crate::job::{Jobs as _, Keeper};
use ampoule_spec::Exit;
use clap::Parser;
use sd_notify::NotifyState;
use std::future::pending;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How often it is looked how jobs and launcher are.
const HEALTH_EVERY: Duration = Duration::from_secs(1);
/// How often systemd is told how many jobs there are.
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// Why the daemon ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    /// The configuration, or what it names.
    #[error("{0}")]
    Config(String),
    /// The host does not give what the daemon needs.
    #[error("{0}")]
    Host(String),
    /// Somebody else has what it needs.
    #[error("{0}")]
    Busy(String),
    /// A defect.
    #[error("{0}")]
    Defect(String),
}

impl Ended {
    fn exit(&self) -> Exit {
        match self {
            Self::Config(_) => Exit::Usage,
            Self::Host(_) => Exit::Unsupported,
            Self::Busy(_) => Exit::TryAgain,
            Self::Defect(_) => Exit::Internal,
        }
    }

    fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| match source.kind() {
            io::ErrorKind::AddrInUse => Self::Busy(format!("{what}: somebody else listens there")),
            _ => Self::Host(format!("{what}: {source}")),
        }
    }
}

impl From<PlaceError> for Ended {
    fn from(error: PlaceError) -> Self {
        Self::Config(error.to_string())
    }
}

impl From<Trouble> for Ended {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Config(text) => Self::Config(text),
            Trouble::Host(text) => Self::Host(text),
            Trouble::Busy(text) => Self::Busy(text),
            Trouble::Defect(text) => Self::Defect(text),
        }
    }
}

/// Looks at the configuration and at all that it names, and changes nothing.
fn look_at(config: &Config) -> Result<(), Ended> {
    places::check(config)?;
    Ok(services::check(config)?)
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
    look_at(&config)?;
    if args.record_baseline {
        return record_baseline(&config);
    }
    if args.check_config {
        // What the daemon finds out by and by.
        places::check_state(&config.state)?;
        secret::check_all(&config)?;
        println!("{}: good", args.config.display());
        return Ok(());
    }
    let level = logs::begin(&config.log).map_err(Ended::host("the log"))?;
    places::state(&config.state)?;
    let vitals = Arc::new(Vitals::default());
    catch_panics(&vitals);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(Ended::host("threads"))?;
    let daemon =
        Daemon { file: args.config.clone(), config, vitals, level, accept_loss: args.accept_ledger_loss };
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
    accept_loss: Option<u64>,
}

impl Daemon {
    async fn live(mut self) -> Result<(), Ended> {
        let mut signals = Signals::take().map_err(Ended::host("signals"))?;
        let bound = http::Bound::bind(&self.config.metrics).map_err(Ended::host("metrics.listen"))?;
        let pages = bound.map(|bound| tokio::spawn(http::serve(bound, self.vitals.clone())));
        // What is not known yet does not hold.
        self.vitals.set_launcher(false);
        self.vitals.set_accepting(false);
        let mut watch = Watch::begin(&self.config, &self.vitals).await?;
        let services = Services::open(&self.config, &self.vitals, self.accept_loss, watch.drifted()).await?;
        watch.tell_first(&services).await;
        let keeper = services.keeper.clone();
        let watchdog = notify::watchdog().map(|every| tokio::spawn(feed(every, keeper)));
        tracing::info!(version = env!("CARGO_PKG_VERSION"), dev = self.config.dev, "ready");
        notify::tell(&[NotifyState::Ready]);
        let mut status = tokio::time::interval(STATUS_EVERY);
        let mut health = tokio::time::interval(HEALTH_EVERY);
        let mut look = tokio::time::interval(self.config.host.every);
        look.tick().await;
        loop {
            tokio::select! {
                _ = look.tick() => watch.look(&services).await,
                () = watch.until_risen(&services.keeper) => watch.look(&services).await,
                what = signals.next() => match what {
                    Told::Reload => self.reload(&services).await,
                    Told::End => break,
                },
                _ = health.tick() => {
                    services.look().await;
                    watch.look_if_replaced(&services).await;
                },
                _ = status.tick() => self.tell_status(),
            }
        }
        tracing::info!("ending; jobs go on");
        notify::tell(&[NotifyState::Stopping]);
        self.vitals.set_ending();
        if let Some(watchdog) = watchdog {
            watchdog.abort();
            let _ = watchdog.await;
        }
        services.end().await;
        if let Some(pages) = pages {
            pages.abort();
        }
        Ok(())
    }

    fn tell_status(&self) {
        let metrics = &self.vitals.metrics;
        let status = format!("{} running, {} waiting", metrics.running.get(), metrics.queued.get());
        notify::tell(&[NotifyState::Status(&status)]);
    }

    /// All of what can be read again is good, written down and used, or nothing changes.
    async fn reload(&mut self, services: &Services) {
        notify::reloading();
        let taken = self.try_reload(services).await;
        self.vitals.metrics.reloaded(taken.is_ok());
        services.secrets.was_read(taken.as_ref().map(drop).map_err(ToString::to_string));
        match taken {
            Ok(config) => {
                self.level.set(&config.log.level);
                self.config = reload::in_force(&self.config, config.clone());
                let waits = self.config.differences(&config);
                if !waits.is_empty() {
                    let keys = waits.join(", ");
                    tracing::warn!(keys, "these keys take effect with the next start alone");
                }
                tracing::info!("the configuration was read again");
            }
            Err(error) => {
                tracing::error!(%error, "the configuration was not taken; the one before stays");
                let entry = AuditEvent::now(Action::ConfigReloaded, OURSELVES).denied(error.to_string());
                // Nothing has changed: what cannot be recorded is told by log and metric.
                let _ = services.recorder.write(&entry).await;
            }
        }
        notify::tell(&[NotifyState::Ready]);
    }

    async fn try_reload(&self, services: &Services) -> Result<Config, Ended> {
        let config = Config::load(&self.file).map_err(|e| Ended::Config(e.to_string()))?;
        look_at(&config)?;
        let ready = Ready::read(&config, services)?;
        let unwritten = |e| Ended::Host(format!("the audit log: {}", crate::chain::chain(&e)));
        services.recorder.write(&ready.entry()).await.map_err(unwritten)?;
        ready.take(services).await;
        Ok(config)
    }
}

/// Feeds the watchdog. That it is fed shows that tasks run and jobs can be asked for.
async fn feed(every: Duration, keeper: Arc<Keeper>) {
    let mut clock = tokio::time::interval(every);
    loop {
        clock.tick().await;
        // A daemon whose jobs cannot be asked for is dead for its clients too.
        let _ = keeper.load();
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
