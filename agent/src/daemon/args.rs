//! The command line of `ampouled`.

use clap::Parser;
use std::path::PathBuf;

/// Where the configuration is if nothing else is said.
pub const CONFIG_DEFAULT: &str = "/etc/ampoule/agent.toml";

/// Takes jobs over gRPC, has them run in sandboxes by ampoule-runner, and signs what was built.
///
/// It holds no privilege, and everything it does is decided by one file. SIGHUP reads that file, the policy, certificates
/// and sources again; SIGTERM ends the daemon and leaves jobs running, which the next start takes up.
#[derive(Debug, Parser)]
#[command(name = "ampouled", version)]
pub struct Args {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = CONFIG_DEFAULT)]
    pub config: PathBuf,
    /// Check the configuration and every file that it names, and end.
    #[arg(long)]
    pub check_config: bool,
    /// Print what is in force, as a configuration, and end.
    #[arg(long, conflicts_with = "check_config")]
    pub print_config: bool,
    /// Write what the host is now to `host.baseline`, and end.
    #[arg(long, conflicts_with_all = ["check_config", "print_config"])]
    pub record_baseline: bool,
    /// Start although the ledger is damaged, and give up every job from this byte on: the one that the refusal names.
    #[arg(long, value_name = "BYTE")]
    pub accept_ledger_loss: Option<u64>,
}
