//! `ampoule`: run a job, verify what came out, see what this host can isolate.
//!
//! This program parses arguments and prints; every rule is in the agent's and evidence's libraries.
//! stdout is for data, stderr for people.

mod args;
mod audit;
mod bar;
mod doctor;
mod failure;
mod inspect;
mod job;
mod papers;
mod pin;
mod policy;
mod push;
mod remote;
mod run;
mod show;
mod sources;
mod store;
mod verify;

use ampoule_spec::Exit;
use args::{Args, AuditCommand, Command, JobCommand, PolicyCommand, SecretsCommand, StoreCommand};
use clap::Parser;
use failure::Failed;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            // clap's own status for an error is 2, which here means that a verification failed.
            let status = if error.use_stderr() { Exit::Usage as u8 } else { 0 };
            return ExitCode::from(status);
        }
    };
    let json = args.command.says_json();
    ExitCode::from(guarded(json, || dispatch(args)))
}

/// Turns a failure into its exit status, and a panic into 70.
fn guarded(json: bool, body: impl FnOnce() -> Result<u8, Failed>) -> u8 {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)) {
        Ok(Ok(_)) if !show::is_written() => {
            show::line(
                "ampoule: stdout cannot be written, so what was asked for is not there [file.unusable]",
            );
            ampoule_spec::Code::FileUnusable.exit() as u8
        }
        Ok(Ok(status)) => status,
        Ok(Err(failed)) => {
            if json {
                show::json(&failed.as_json());
            }
            failed.print();
            failed.code.exit() as u8
        }
        Err(_) => {
            show::line("ampoule: internal error: this is a defect of Ampoule; nothing was released");
            Exit::Internal as u8
        }
    }
}

fn dispatch(args: Args) -> Result<u8, Failed> {
    match args.command {
        Command::Run(args) => run::run(*args),
        Command::Job(JobCommand::Check(args)) => job::check(&args),
        Command::Pin(args) => pin::pin(&args),
        Command::Push(args) => push::push(&args),
        Command::Verify(args) => verify::verify(&args),
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Store(StoreCommand::Stat(args)) => store::stat(&args),
        Command::Store(StoreCommand::Verify(args)) => store::verify(&args),
        Command::Store(StoreCommand::Gc(args)) => store::gc(&args),
        Command::Audit(AuditCommand::Verify(args)) => audit::verify(&args),
        Command::Submit(args) => remote::submit::submit(&args),
        Command::Watch(args) => remote::jobs::watch(&args),
        Command::Logs(args) => remote::jobs::logs(&args),
        Command::Cancel(args) => remote::jobs::cancel(&args),
        Command::List(args) => remote::jobs::list(&args),
        Command::Get(args) => remote::jobs::get(&args),
        Command::Drain(args) => remote::host::drain(&args),
        Command::Secrets(SecretsCommand::Leases(args)) => remote::secrets::leases(&args),
        Command::Secrets(SecretsCommand::Revoke(args)) => remote::secrets::revoke(&args),
        Command::Secrets(SecretsCommand::Check(args)) => remote::secrets::check(&args),
        Command::Papers(args) => papers::papers(&args),
        Command::Policy(PolicyCommand::Test(args)) => policy::test(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ampoule_spec::Code;

    #[test]
    fn guarded_panic_is_internal_and_failure_has_its_code() {
        assert_eq!(guarded(false, || panic!("planted")), 70);
        assert_eq!(guarded(true, || Err(Failed::new(Code::InputDigestMismatch, "x"))), 65);
        assert_eq!(guarded(false, || Ok(3)), 3);
    }
}
