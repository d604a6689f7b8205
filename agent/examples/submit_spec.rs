//! Submits a job by its spec, for tests: `submit_spec SOCKET PROJECT KEY SPEC.json` prints the job's id.

use ampoule_agent::api::convert::job_request;
use ampoule_agent::client::{Client, Credentials, Server};
use ampoule_proto::v1::SubmitJobRequest;
use ampoule_spec::JobSpec;
use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().ok_or("usage: submit_spec SOCKET PROJECT KEY SPEC.json");
    let (socket, project, key, file) = (PathBuf::from(next()?), next()?, next()?, next()?);
    let spec: JobSpec = serde_json::from_slice(&std::fs::read(file)?)?;
    let request = SubmitJobRequest {
        idempotency_key: key,
        project,
        job: Some(job_request(&spec)),
        ..SubmitJobRequest::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = {
        let _within = runtime.enter();
        Client::new(&Server::Unix(socket), &Credentials::default())?
    };
    let (job, _) = runtime.block_on(client.submit(&request))?;
    println!("{}", job.id);
    Ok(())
}
