//! Commands that ask a daemon.

pub(crate) mod args;
pub(crate) mod host;
pub(crate) mod jobs;
mod printer;
pub(crate) mod secrets;
mod signals;
pub(crate) mod submit;

use crate::failure::Failed;
use crate::show;
use ampoule_agent::client::{Client, ClientError, Credentials, Server};
use ampoule_spec::Code;
use args::ServerArgs;
use tokio::runtime::{Builder, Runtime};

/// A daemon, and the runtime in which it is asked.
pub(crate) struct Remote {
    pub(crate) client: Client,
    pub(crate) runtime: Runtime,
}

impl Remote {
    pub(crate) fn new(args: &ServerArgs) -> Result<Self, Failed> {
        let server = args.server.as_deref().map(Server::parse).transpose()?.unwrap_or_default();
        let credentials = Credentials {
            ca: args.tls_ca.clone(),
            certificate: args.tls_cert.clone(),
            key: args.tls_key.clone(),
            token: args.token_file.clone(),
        };
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime
            .map_err(|e| Failed::new(Code::AdmissionBusy, format!("threads cannot be started: {e}")))?;
        let client = {
            let _entered = runtime.enter();
            Client::new(&server, &credentials)?
                .saying(|error| show::line(&format!("ampoule: {error}; trying again")))
        };
        Ok(Self { client, runtime })
    }

    /// Waits for an answer.
    pub(crate) fn ask<T>(&self, call: impl Future<Output = Result<T, ClientError>>) -> Result<T, Failed> {
        Ok(self.runtime.block_on(call)?)
    }
}
