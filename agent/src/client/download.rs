//! An output as it comes, over connections that may be lost.

use super::channel::Client;
use super::error::ClientError;
use ampoule_proto::v1 as proto;
use std::io::{self, Read};
use tokio::runtime::Handle;
use tonic::Streaming;

/// Reads an output from its beginning. For threads that may block.
pub(super) struct Download<'a> {
    client: &'a Client,
    runtime: &'a Handle,
    job_id: &'a str,
    output: &'a str,
    stream: Option<Streaming<proto::DownloadOutputResponse>>,
    offset: u64,
    part: Vec<u8>,
    taken: usize,
    /// Whether the last stream ended as one that is whole.
    ended: bool,
}

impl<'a> Download<'a> {
    pub(super) fn new(client: &'a Client, runtime: &'a Handle, job_id: &'a str, output: &'a str) -> Self {
        let (stream, part) = (None, Vec::new());
        Self { client, runtime, job_id, output, stream, offset: 0, part, taken: 0, ended: false }
    }

    async fn next(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        let mut backoff = self.client.backoff();
        loop {
            match self.attempt().await {
                Ok(part) => return Ok(part),
                Err(error) => {
                    self.stream = None;
                    backoff.wait(error).await?;
                }
            }
        }
    }

    async fn attempt(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        if self.stream.is_none() {
            let (job_id, output) = (self.job_id.to_owned(), self.output.to_owned());
            let request = proto::DownloadOutputRequest { job_id, output, offset: self.offset };
            self.stream = Some(self.client.jobs().download_output(request).await?.into_inner());
        }
        let Some(stream) = &mut self.stream else { return Ok(None) };
        match stream.message().await? {
            None => Ok(None),
            Some(message) if message.offset == self.offset => {
                self.offset = self.offset.saturating_add(message.data.len() as u64);
                Ok(Some(message.data))
            }
            Some(message) => {
                let reason = format!("bytes from {} on, and not from {}", message.offset, self.offset);
                Err(ClientError::Answer { reason })
            }
        }
    }
}

impl Read for Download<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken >= self.part.len() && !self.ended {
            let runtime = self.runtime.clone();
            match runtime.block_on(self.next()).map_err(io::Error::other)? {
                Some(part) => (self.part, self.taken) = (part, 0),
                None => self.ended = true,
            }
        }
        let rest = self.part.get(self.taken..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        self.taken += count;
        Ok(count)
    }
}
