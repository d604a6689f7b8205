//! `ampouled`: jobs over gRPC. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(ampoule_agent::daemon::run())
}
