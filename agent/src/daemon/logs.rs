//! Logs of the daemon itself. (A job's log is another thing.)

use super::config::{Log, LogFormat};
use std::io;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// Changes what is logged while the daemon runs.
pub(super) struct Level(reload::Handle<EnvFilter, Registry>);

impl Level {
    /// Sets what is logged from now on.
    pub(super) fn set(&self, level: &str) {
        // It was parsed when the configuration was read.
        let set = EnvFilter::builder().parse(level).map(|filter| self.0.reload(filter));
        if !matches!(set, Ok(Ok(()))) {
            tracing::warn!(level, "the log level could not be set");
        }
    }
}

/// Begins logging. Once in a process.
///
/// # Errors
/// If journald is wanted and does not answer, or something logs already.
pub(super) fn begin(log: &Log) -> io::Result<Level> {
    let filter = EnvFilter::builder().parse(&log.level).map_err(io::Error::other)?;
    let (filter, handle) = reload::Layer::new(filter);
    let layer = match log.format {
        LogFormat::Json => {
            fmt::layer().json().flatten_event(true).with_writer(io::stderr).with_filter(filter).boxed()
        }
        LogFormat::Text => fmt::layer().with_writer(io::stderr).with_ansi(false).with_filter(filter).boxed(),
        LogFormat::Journal => tracing_journald::layer()?
            .with_syslog_identifier("ampouled".to_owned())
            .with_filter(filter)
            .boxed(),
    };
    tracing_subscriber::registry().with(layer).try_init().map_err(io::Error::other)?;
    Ok(Level(handle))
}
