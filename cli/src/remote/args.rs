//! The grammar of commands that ask a daemon.

use crate::args::{EXITS, pair};
use std::path::PathBuf;

/// Which daemon, and how it knows us.
#[derive(Debug, clap::Args)]
pub(crate) struct ServerArgs {
    /// The daemon: unix:///PATH or https://HOST:PORT. Default: unix:///run/ampoule/agent.sock.
    #[arg(long, value_name = "URL", env = "AMPOULE_SERVER")]
    pub(crate) server: Option<String>,
    /// The authorities of the daemon's certificate (PEM); needed for https.
    #[arg(long, value_name = "FILE", env = "AMPOULE_CA")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Our certificate (PEM).
    #[arg(long, value_name = "FILE", env = "AMPOULE_CERT")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, value_name = "FILE", env = "AMPOULE_KEY")]
    pub(crate) tls_key: Option<PathBuf>,
    /// A file with a bearer token, read at each call.
    #[arg(long, value_name = "FILE", env = "AMPOULE_TOKEN_FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

/// What the first SIGINT or SIGTERM does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum OnSignal {
    /// Ends the job, and waits for its record.
    Cancel,
    /// Leaves the job alone.
    Detach,
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXITS)]
pub(crate) struct SubmitArgs {
    /// The job file.
    #[arg(value_name = "JOB.toml")]
    pub(crate) job: PathBuf,
    /// Show what happens until the job is finished, and end with its status.
    #[arg(long)]
    pub(crate) wait: bool,
    /// Where outputs and evidence go, verified: a directory that is new or empty.
    #[arg(long, value_name = "DIR", requires = "wait")]
    pub(crate) out: Option<PathBuf>,
    /// What this job is called by us. The same key gives the same job, whatever its state. Default: a new one.
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
    /// A parameter of the job file.
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) params: Vec<(String, String)>,
    /// A label, for people and filters.
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) labels: Vec<(String, String)>,
    /// Whose job it is.
    #[arg(long, value_name = "NAME", default_value = "default", env = "AMPOULE_PROJECT")]
    pub(crate) project: String,
    /// 0 to 9; higher ones of the same project go first.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=9))]
    pub(crate) priority: u32,
    /// A profile other than the job's.
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Option<String>,
    /// What the first SIGINT or SIGTERM does; the second leaves.
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = OnSignal::Cancel)]
    pub(crate) on_signal: OnSignal,
    /// The public key that must have signed. Without this and --trust the daemon's word is taken for whose key it is.
    #[arg(long, value_name = "PUB", requires = "out", conflicts_with = "trust")]
    pub(crate) key: Option<PathBuf>,
    /// A trust file: keys, each with its builder.
    #[arg(long, value_name = "FILE", requires = "out")]
    pub(crate) trust: Option<PathBuf>,
    /// With --key or --trust: accept a development builder, which claims nothing.
    #[arg(long)]
    pub(crate) allow_dev: bool,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// One JSON object a line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXITS)]
pub(crate) struct WatchArgs {
    /// The job's id.
    #[arg(value_name = "JOB")]
    pub(crate) job: String,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// One JSON object a line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct LogsArgs {
    /// The job's id.
    #[arg(value_name = "JOB")]
    pub(crate) job: String,
    /// Wait for what is to come.
    #[arg(long)]
    pub(crate) follow: bool,
    /// Pass the bytes through as they are instead of prefixing and escaping lines.
    #[arg(long)]
    pub(crate) raw: bool,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CancelArgs {
    /// The job's id.
    #[arg(value_name = "JOB")]
    pub(crate) job: String,
    /// Why, for the record.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) reason: String,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// One JSON object on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DrainArgs {
    /// Take jobs again.
    #[arg(long, conflicts_with = "cancel_queued")]
    pub(crate) undo: bool,
    /// End the jobs that wait.
    #[arg(long)]
    pub(crate) cancel_queued: bool,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// One JSON object on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Only those of this project.
    #[arg(long, value_name = "NAME")]
    pub(crate) project: Option<String>,
    /// Only those with this label.
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) labels: Vec<(String, String)>,
    /// At most this many.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// One JSON object a line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct GetArgs {
    /// The job's id.
    #[arg(value_name = "JOB")]
    pub(crate) job: String,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// One JSON object on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXITS)]
pub(crate) struct SecretsLeasesArgs {
    /// Only those of this project.
    #[arg(long, value_name = "NAME")]
    pub(crate) project: Option<String>,
    /// Only those of this job.
    #[arg(long, value_name = "JOB")]
    pub(crate) job: Option<String>,
    /// Only those of this server, by its name in secrets.toml.
    #[arg(long = "of", value_name = "NAME")]
    pub(crate) of: Option<String>,
    /// Only what is to be taken back and is not yet.
    #[arg(long)]
    pub(crate) pending: bool,
    /// At most this many.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// One JSON object a line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXITS)]
pub(crate) struct SecretsRevokeArgs {
    /// Everything of this job.
    #[arg(value_name = "JOB", required_unless_present = "grant", conflicts_with = "grant")]
    pub(crate) job: Option<String>,
    /// One grant, by its number in `ampoule secrets leases`.
    #[arg(long, value_name = "N")]
    pub(crate) grant: Option<u64>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// One JSON object on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXITS)]
pub(crate) struct SecretsCheckArgs {
    /// Only secrets of this project, and the servers that they are of.
    #[arg(long, value_name = "NAME")]
    pub(crate) project: Option<String>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// One JSON object on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}
