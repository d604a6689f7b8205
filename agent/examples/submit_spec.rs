//! Submits a job by its spec, for tests: `submit_spec SOCKET PROJECT KEY SPEC.json [PROVENANCE]` prints the job's id. The
//! provenance goes beside every input that is another job's output.

use ampoule_agent::api::convert::job_request;
use ampoule_agent::client::{Client, Credentials, Server};
use ampoule_proto::v1::SubmitJobRequest;
use ampoule_proto::v1::input::Source;
use ampoule_spec::JobSpec;
use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().ok_or("usage: submit_spec SOCKET PROJECT KEY SPEC.json");
    let (socket, project, key, file) = (PathBuf::from(next()?), next()?, next()?, next()?);
    let spec: JobSpec = serde_json::from_slice(&std::fs::read(file)?)?;
    let mut job = job_request(&spec);
    if let Some(file) = args.next() {
        let provenance = std::fs::read(file)?;
        for input in &mut job.inputs {
            if let Some(Source::Attestation(made)) = &mut input.source {
                made.provenance = provenance.clone();
            }
        }
    }
    let request =
        SubmitJobRequest { idempotency_key: key, project, job: Some(job), ..SubmitJobRequest::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = {
        let _within = runtime.enter();
        Client::new(&Server::Unix(socket), &Credentials::default())?
    };
    match runtime.block_on(client.submit(&request)) {
        Ok((job, _)) => println!("{}", job.id),
        Err(error) => {
            eprintln!("{}: {error}", error.code().as_str());
            std::process::exit(i32::from(error.code().exit() as u8));
        }
    }
    Ok(())
}
