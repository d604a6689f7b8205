//! The command line's grammar.

use crate::remote::args::{
    CancelArgs, DrainArgs, GetArgs, ListArgs, LogsArgs, SecretsCheckArgs, SecretsLeasesArgs,
    SecretsRevokeArgs, SubmitArgs, WatchArgs,
};
use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// What every page of help ends with.
pub(crate) const EXITS: &str = "Exit status: 0 success, signed and durable; 1 the job failed; 2 verification refused; 3 cancelled; \
64 usage or bad job; 65 an input's digest did not match; 69 the host cannot give what the profile demands; \
70 internal, unclean teardown or provenance refused; 75 try again; 77 denied.";

/// Build in a sealed sandbox, and sign what is known about it.
#[derive(Debug, Parser)]
#[command(name = "ampoule", version, about, after_help = EXITS, max_term_width = 110)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run one job here, without a daemon.
    Run(Box<RunArgs>),
    /// Work with job files.
    #[command(subcommand)]
    Job(JobCommand),
    /// Resolve tags and URLs of a job file to digests, in place.
    Pin(PinArgs),
    /// Bring what a run has released to a registry, or into an OCI layout, with its attestation.
    Push(PushArgs),
    /// Verify an artifact against its attestation.
    Verify(VerifyArgs),
    /// Show an attestation to a person. Checks no signature.
    Inspect(InspectArgs),
    /// Measure what this host can isolate.
    Doctor(DoctorArgs),
    /// Look after the store: inputs and images by digest.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Read a daemon's audit log.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Work with the policy of ampouled.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Have a daemon run a job.
    Submit(Box<SubmitArgs>),
    /// Follow a daemon's job to its end; ends with its status.
    Watch(WatchArgs),
    /// Show what a daemon's job has written.
    Logs(LogsArgs),
    /// End a daemon's job.
    Cancel(CancelArgs),
    /// List a daemon's jobs, newest first.
    List(ListArgs),
    /// Show a daemon's job.
    Get(GetArgs),
    /// Have a daemon take no more jobs, also over restarts, until this is undone; what runs ends as it would.
    Drain(DrainArgs),
    /// Look after what steps of a daemon's jobs have of secrets.
    #[command(subcommand)]
    Secrets(SecretsCommand),
    /// Write man pages and completions of this program and of ampouled.
    #[command(hide = true)]
    Papers(PapersArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct PapersArgs {
    /// Where to: man/ and completions/ are made in it.
    pub(crate) dir: PathBuf,
}

impl Command {
    /// Whether stdout is for a program.
    pub(crate) fn says_json(&self) -> bool {
        match self {
            Self::Run(args) => args.json,
            Self::Job(JobCommand::Check(args)) => args.json,
            Self::Pin(args) => args.json,
            Self::Push(args) => args.json,
            Self::Verify(args) => args.json,
            Self::Inspect(_) | Self::Papers(_) => false,
            Self::Doctor(args) => args.json,
            Self::Store(StoreCommand::Stat(args)) => args.json,
            Self::Store(StoreCommand::Verify(args)) => args.json,
            Self::Store(StoreCommand::Gc(args)) => args.json,
            Self::Audit(AuditCommand::Verify(args)) => args.json,
            Self::Policy(PolicyCommand::Test(_)) => false,
            Self::Submit(args) => args.json,
            Self::Watch(args) => args.json,
            Self::Logs(_) => false,
            Self::Cancel(args) => args.json,
            Self::List(args) => args.json,
            Self::Get(args) => args.json,
            Self::Drain(args) => args.json,
            Self::Secrets(SecretsCommand::Leases(args)) => args.json,
            Self::Secrets(SecretsCommand::Revoke(args)) => args.json,
            Self::Secrets(SecretsCommand::Check(args)) => args.json,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// Validate a job file without running it.
    Check(CheckArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Ask a policy the cases in DIR/cases/*.json, and show what it says otherwise than expected.
    Test(PolicyTestArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct PolicyTestArgs {
    /// The policy's directory: *.rego, data.json, cases/*.json.
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Say what is in the store.
    Stat(StoreStatArgs),
    /// Read everything back, or what digests name, and say what is damaged.
    Verify(StoreVerifyArgs),
    /// Remove what was not used for longest. What a job uses, or evidence in the state directory needs, stays.
    Gc(StoreGcArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Verify a log, offline: its checkpoint's signature, every entry, every tile, and the root.
    Verify(AuditVerifyArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum SecretsCommand {
    /// List what was taken for steps and is not given back yet, the oldest first. Never a value.
    Leases(SecretsLeasesArgs),
    /// Have the servers take back now what a job has, whether or not its steps still run; 75 if they have not yet.
    Revoke(SecretsRevokeArgs),
    /// Look whether steps could have their secrets now: servers, logins, policies, and where each secret comes from. Reads none of a server's.
    Check(SecretsCheckArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXITS)]
pub(crate) struct AuditVerifyArgs {
    /// The log's directory, or a copy of it.
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// The log's public key: a file that was kept elsewhere, or the key itself (NAME+HASH+KEY).
    #[arg(long, value_name = "FILE|KEY")]
    pub(crate) key: String,
    /// A checkpoint that was kept elsewhere: the log must still begin with what it had then.
    #[arg(long, value_name = "FILE")]
    pub(crate) checkpoint: Option<PathBuf>,
    /// One JSON object on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct StoreStatArgs {
    #[command(flatten)]
    pub(crate) host: HostArgs,
    /// One JSON object on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct StoreVerifyArgs {
    /// What to read: digests of inputs, images, layers or trees, or the store's own names. Default: everything.
    #[arg(value_name = "DIGEST")]
    pub(crate) digests: Vec<String>,
    /// Move what is damaged aside, so that the next run takes it in anew.
    #[arg(long)]
    pub(crate) quarantine: bool,
    #[command(flatten)]
    pub(crate) host: HostArgs,
    /// One JSON object a line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct StoreGcArgs {
    /// So much may stay, as in 20GiB.
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_size: Option<String>,
    /// What was not used for so long goes, as in 30d or 12h.
    #[arg(long, value_name = "AGE")]
    pub(crate) max_age: Option<String>,
    /// Say what would go, and remove nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) host: HostArgs,
    /// One JSON object on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXITS)]
pub(crate) struct RunArgs {
    /// The job file.
    #[arg(value_name = "JOB.toml", required_unless_present = "argv", conflicts_with = "argv")]
    pub(crate) job: Option<PathBuf>,
    /// Where outputs and evidence go: a directory that is new or empty. Default: below the state directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// A parameter of the job file.
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) params: Vec<(String, String)>,
    /// Sign with this PKCS#8 PEM key (ECDSA P-256) instead of a development key.
    #[arg(long, value_name = "PEM")]
    pub(crate) key: Option<PathBuf>,
    /// The base of builder ids and type URIs.
    #[arg(long, value_name = "URL", default_value = "https://ampoule.example")]
    pub(crate) authority: String,
    /// A profile other than the job's: hermetic or dev.
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Option<String>,
    /// Credentials for registries: a config.json or auth.json, which nobody else can read.
    #[arg(long, value_name = "FILE")]
    pub(crate) registry_auth: Option<PathBuf>,
    /// With -- ARGV: the image, as in a job file.
    #[arg(long, value_name = "IMAGE", conflicts_with = "job")]
    pub(crate) image: Option<String>,
    /// With -- ARGV: a file to take out, relative to the current directory.
    #[arg(long = "output", value_name = "PATH", conflicts_with = "job")]
    pub(crate) outputs: Vec<String>,
    #[command(flatten)]
    pub(crate) host: HostArgs,
    #[command(flatten)]
    pub(crate) sources: SourcesArgs,
    /// One JSON object a line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
    /// Pass the steps' output through byte for byte instead of prefixing and escaping it.
    #[arg(long, conflicts_with = "json")]
    pub(crate) raw: bool,
    /// Run this in a sandbox over a copy-on-write layer of the current directory.
    #[arg(last = true, value_name = "ARGV")]
    pub(crate) argv: Vec<String>,
}

/// Where things lie on this host.
#[derive(Debug, clap::Args)]
pub(crate) struct HostArgs {
    /// Where jobs, the store and development keys lie. Default: /var/lib/ampoule for root, else
    /// $XDG_STATE_HOME/ampoule or ~/.local/state/ampoule.
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// A directory of compiled profiles instead of those built in.
    #[arg(long, value_name = "DIR", hide = true)]
    pub(crate) profiles: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct PinArgs {
    /// The job file.
    #[arg(value_name = "JOB.toml")]
    pub(crate) job: PathBuf,
    /// Change nothing and ask nobody: end with 64 if something is not pinned, with 65 if a path is not what its digest says.
    #[arg(long)]
    pub(crate) check: bool,
    /// Pin this input to what lies at its path now, also if it has a digest. May be given several times.
    #[arg(long, value_name = "INPUT", conflicts_with = "check")]
    pub(crate) path: Vec<String>,
    /// Credentials for registries: a config.json or auth.json, which nobody else can read.
    #[arg(long, value_name = "FILE")]
    pub(crate) registry_auth: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) sources: SourcesArgs,
    /// One JSON object a line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where inputs may come from.
#[derive(Debug, clap::Args)]
pub(crate) struct SourcesArgs {
    /// The rules of where inputs may come from. Default: $XDG_CONFIG_HOME/ampoule/sources.toml or
    /// ~/.config/ampoule/sources.toml (not for root), else /etc/ampoule/sources.toml; without any, every public address.
    #[arg(long, value_name = "FILE")]
    pub(crate) sources: Option<PathBuf>,
    /// The project whose rules hold. Default: default.
    #[arg(long, value_name = "NAME")]
    pub(crate) project: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// The job file.
    #[arg(value_name = "JOB.toml")]
    pub(crate) job: PathBuf,
    /// A parameter of the job file.
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) params: Vec<(String, String)>,
    /// One JSON object on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct PushArgs {
    /// The output directory of a run.
    #[arg(value_name = "OUT")]
    pub(crate) out: PathBuf,
    /// Where to: docker://HOST/REPO[:TAG], or oci:DIR[:TAG] with a new directory.
    #[arg(value_name = "DESTINATION")]
    pub(crate) to: String,
    /// Bring this output alone. May be given several times; without it, all that provenance names.
    #[arg(long, value_name = "NAME")]
    pub(crate) output: Vec<String>,
    /// Credentials for registries: a config.json or auth.json, which nobody else can read.
    #[arg(long, value_name = "FILE")]
    pub(crate) registry_auth: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) sources: SourcesArgs,
    /// One JSON object on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("trusted").required(true).args(["key", "trust"]))]
pub(crate) struct VerifyArgs {
    /// The artifact: a file, or the directory of an output that is a tree.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Its attestation: .intoto.jsonl or .sigstore.json.
    #[arg(long, value_name = "FILE")]
    pub(crate) attestation: PathBuf,
    /// The public key that must have signed.
    #[arg(long, value_name = "PUB")]
    pub(crate) key: Option<PathBuf>,
    /// A trust file: keys, each with its builder.
    #[arg(long, value_name = "FILE")]
    pub(crate) trust: Option<PathBuf>,
    /// The builder id that must have signed.
    #[arg(long, value_name = "ID")]
    pub(crate) builder: Option<String>,
    /// An input that must have been used: its URI, or sha256:DIGEST.
    #[arg(long, value_name = "URI")]
    pub(crate) source: Option<String>,
    /// A parameter and the value that it must have had.
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) params: Vec<(String, String)>,
    /// Verify a run attestation: FILE is then its report.json or one of its logs.
    #[arg(long)]
    pub(crate) run: bool,
    /// Accept a development builder, which claims nothing.
    #[arg(long)]
    pub(crate) allow_dev: bool,
    /// One JSON object on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// The attestation: .intoto.jsonl or .sigstore.json.
    #[arg(value_name = "ATTESTATION")]
    pub(crate) attestation: PathBuf,
    /// Write the signed bytes (DSSE's pre-authentication encoding) to stdout, for openssl.
    #[arg(long, conflicts_with = "signature")]
    pub(crate) pae: bool,
    /// Write the signature (ASN.1 DER) to stdout, for openssl.
    #[arg(long)]
    pub(crate) signature: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// The profile to measure for. Default: hermetic for root, dev for others.
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Option<String>,
    #[command(flatten)]
    pub(crate) host: HostArgs,
    /// One JSON object on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn grammar_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn run_takes_a_file_or_a_command_but_not_both() {
        let parse = |text: &str| Args::try_parse_from(text.split(' '));
        assert!(parse("ampoule run job.toml").is_ok());
        assert!(parse("ampoule run -- make all").is_ok());
        assert!(parse("ampoule run").is_err());
        assert!(parse("ampoule run job.toml -- make").is_err());
        assert!(parse("ampoule run job.toml --image host").is_err());
        assert!(parse("ampoule verify f --attestation a").is_err());
    }
}
