//! What lies here goes to a project of a daemon.

use super::channel::Client;
use super::error::ClientError;
use crate::content::content_ref;
use crate::inputs::sha256_of;
use crate::local::take::{Pack, TakenPacked, Taker};
use crate::local::{Cancel, LocalError};
use ampoule_proto::v1::{self as proto, upload_request::Part};
use ampoule_spec::Sha256;
use ampoule_spec::wire::Content;
use ampoule_store::pack::{PackError, Packed};
use aws_lc_rs::digest::{Context, SHA256};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Mutex;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Bytes in one message.
const PART_BYTES: usize = 256 << 10;
/// Messages that wait to be sent.
const PARTS: usize = 4;

/// Uploads to a project. For threads that may block and are none of the runtime's.
#[derive(Debug)]
pub struct Uploader<'a> {
    pub(super) client: Client,
    pub(super) runtime: Handle,
    pub(super) project: String,
    pub(super) cancel: &'a Cancel,
}

/// Writes what a content consists of, from its beginning.
type Source<'a> = dyn Fn(&mut dyn Write) -> io::Result<()> + Sync + 'a;

fn server(error: ClientError) -> LocalError {
    LocalError::Server { code: error.code(), message: error.to_string() }
}

impl Uploader<'_> {
    /// Calls until it is answered.
    fn call<T, F: Future<Output = Result<T, tonic::Status>>>(
        &self,
        call: impl Fn() -> F,
    ) -> Result<T, LocalError> {
        let mut backoff = self.client.backoff();
        loop {
            if self.cancel.is_cancelled() {
                return Err(LocalError::Cancelled);
            }
            match self.runtime.block_on(call()) {
                Ok(answer) => return Ok(answer),
                Err(status) => self.runtime.block_on(backoff.wait(status.into())).map_err(server)?,
            }
        }
    }

    fn reference(content: &Content) -> Result<proto::ContentRef, LocalError> {
        content_ref(content).ok_or_else(|| {
            let reason = "a content that cannot be uploaded".to_owned();
            server(ClientError::Answer { reason })
        })
    }

    /// Uploads what the project does not have, from where an earlier attempt ended.
    fn upload(&self, content: &Content, bytes: u64, source: &Source<'_>) -> Result<(), LocalError> {
        let reference = Self::reference(content)?;
        let mut backoff = self.client.backoff();
        let mut reached = 0;
        loop {
            let get = || proto::GetUploadRequest {
                project: self.project.clone(),
                content: Some(reference.clone()),
            };
            let at = self.call(|| async { self.client.contents().get_upload(get()).await })?.into_inner();
            if at.present {
                return Ok(());
            }
            if at.offset > reached {
                reached = at.offset;
                backoff.reset();
            }
            match self.attempt(&reference, bytes, at.offset, source)? {
                Ok(_) => return Ok(()),
                Err(error) => self.runtime.block_on(backoff.wait(error)).map_err(server)?,
            }
            if self.cancel.is_cancelled() {
                return Err(LocalError::Cancelled);
            }
        }
    }

    /// One stream. The outer error is ours, the inner one the daemon's or the connection's.
    fn attempt(
        &self,
        reference: &proto::ContentRef,
        bytes: u64,
        offset: u64,
        source: &Source<'_>,
    ) -> Result<Result<bool, ClientError>, LocalError> {
        let header = proto::UploadHeader {
            project: self.project.clone(),
            content: Some(reference.clone()),
            size_bytes: bytes,
            offset,
        };
        let (sender, receiver) = mpsc::channel(PARTS);
        let header = proto::UploadRequest { part: Some(Part::Header(header)) };
        // The channel is empty: there is room.
        let _ = sender.blocking_send(header);
        let mut contents = self.client.contents();
        let call = async move { contents.upload(ReceiverStream::new(receiver)).await };
        let call = self.runtime.spawn(call);
        let mut parts = Parts { sender, skip: offset, part: Vec::new(), gone: false };
        let written = source(&mut parts).and_then(|()| parts.flush());
        let gone = parts.gone;
        if written.is_err() && !gone {
            // What came so far is no whole content: it is not to be taken for one.
            call.abort();
        }
        drop(parts);
        if self.cancel.is_cancelled() {
            return Err(LocalError::Cancelled);
        }
        match self.runtime.block_on(call) {
            Ok(Ok(answer)) => Ok(Ok(answer.into_inner().present)),
            Ok(Err(status)) => Ok(Err(status.into())),
            Err(_) => match written {
                Err(error) => Err(LocalError::Server {
                    code: ampoule_spec::Code::FileUnusable,
                    message: format!("what is uploaded cannot be read: {error}"),
                }),
                Ok(()) => Ok(Err(ClientError::Lost { reason: "the upload ended early".to_owned() })),
            },
        }
    }
}

/// Cuts what is written into messages, and leaves out what is there already.
struct Parts {
    sender: mpsc::Sender<proto::UploadRequest>,
    skip: u64,
    part: Vec<u8>,
    gone: bool,
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
        self.skip = self.skip.saturating_sub(skipped as u64);
        let rest = bytes.get(skipped..).unwrap_or_default();
        let taken = rest.len().min(PART_BYTES.saturating_sub(self.part.len()));
        self.part.extend_from_slice(rest.get(..taken).unwrap_or_default());
        if self.part.len() >= PART_BYTES {
            self.flush()?;
        }
        Ok(skipped + taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.part.is_empty() {
            return Ok(());
        }
        let part = Part::Data(std::mem::take(&mut self.part));
        let sent = self.sender.blocking_send(proto::UploadRequest { part: Some(part) });
        sent.map_err(|_| {
            self.gone = true;
            io::Error::from(io::ErrorKind::BrokenPipe)
        })
    }
}

/// Counts and hashes what is written.
struct Measure {
    bytes: u64,
    context: Context,
}

impl Write for Measure {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        self.context.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn measure(source: &Source<'_>) -> io::Result<(u64, Sha256)> {
    let mut measure = Measure { bytes: 0, context: Context::new(&SHA256) };
    source(&mut measure)?;
    let sha256 = sha256_of(measure.context.finish().as_ref()).map_err(io::Error::other)?;
    Ok((measure.bytes, sha256))
}

impl Taker for Uploader<'_> {
    fn has(&self, content: &Content) -> Result<bool, LocalError> {
        let contents = vec![Self::reference(content)?];
        let request =
            || proto::FindMissingRequest { project: self.project.clone(), contents: contents.clone() };
        let answer = self.call(|| async { self.client.contents().find_missing(request()).await })?;
        Ok(answer.into_inner().missing.is_empty())
    }

    /// The digest is computed here first: the daemon is told it before the bytes.
    fn take_file(&self, content: Content, file: File) -> Result<Sha256, LocalError> {
        let unreadable = |e: io::Error| LocalError::Server {
            code: ampoule_spec::Code::FileUnusable,
            message: format!("what is uploaded cannot be read: {e}"),
        };
        let file = Mutex::new(file);
        let source = |out: &mut dyn Write| {
            let mut file = file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            file.seek(SeekFrom::Start(0))?;
            copy(&mut *file, out, self.cancel)
        };
        let (bytes, found) = measure(&source).map_err(unreadable)?;
        if self.cancel.is_cancelled() {
            return Err(LocalError::Cancelled);
        }
        let content = match content {
            Content::File { sha256: None, executable, epoch } => {
                Content::File { sha256: Some(found), executable, epoch }
            }
            other => other,
        };
        let named = content_ref(&content).map(|reference| reference.sha256).unwrap_or_default();
        if named != found.to_string() {
            return Err(LocalError::Server {
                code: ampoule_spec::Code::InputDigestMismatch,
                message: format!("expected sha256:{named}, found sha256:{found}"),
            });
        }
        if !self.has(&content)? {
            self.upload(&content, bytes, &source)?;
        }
        Ok(found)
    }

    fn take_packed(&self, content: Content, pack: &Pack<'_>) -> Result<TakenPacked, LocalError> {
        let last: Mutex<Option<Result<Packed, PackError>>> = Mutex::new(None);
        let keep = |packed| *last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(packed);
        let source = |out: &mut dyn Write| {
            let packed =
                pack(&mut *out).and_then(|packed| out.flush().map(|()| packed).map_err(PackError::Write));
            let is_packed = packed.is_ok();
            keep(packed);
            if is_packed { Ok(()) } else { Err(io::Error::other("not packed")) }
        };
        let measured = measure(&source);
        let take = || last.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let (bytes, packed) = match (measured, take()) {
            (Ok((bytes, _)), Some(Ok(packed))) => (bytes, packed),
            (_, Some(Err(error))) => return Ok((Err(error), Ok(Sha256::new([0; 32])))),
            _ => return Err(LocalError::Cancelled),
        };
        let tree = match content {
            Content::Directory { tree: Some(tree), .. } if tree != packed.tree => {
                return Ok((Ok(packed), Ok(tree)));
            }
            Content::Directory { epoch, .. } => Content::Directory { tree: Some(packed.tree), epoch },
            _ => return Err(LocalError::Cancelled),
        };
        let taken = match self.has(&tree)? {
            true => Ok(packed.tree),
            false => self.upload(&tree, bytes, &source).map(|()| packed.tree),
        };
        match take() {
            // It changed since its digest was computed.
            Some(Ok(again)) if again.tree != packed.tree && taken.is_err() => {
                Ok((Err(PackError::Changed { path: ".".to_owned() }), taken))
            }
            Some(Err(error)) if taken.is_err() => Ok((Err(error), taken)),
            _ => Ok((Ok(packed), taken)),
        }
    }
}

fn copy(from: &mut dyn Read, to: &mut dyn Write, cancel: &Cancel) -> io::Result<()> {
    let mut buffer = vec![0; PART_BYTES];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        to.write_all(buffer.get(..count).unwrap_or_default())?;
    }
}
