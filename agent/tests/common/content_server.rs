//! The content service on a socket, over a store in memory.

#![allow(unreachable_pub, dead_code, reason = "shared by tests")]

use ampoule_agent::client::{Client, Credentials, Server};
use ampoule_agent::content::{ContentLimits, Contents, Gate, ImportError, Importer, service};
use ampoule_proto::v1::{self as proto, upload_request::Part};
use ampoule_spec::wire::{Content, Imported};
use ampoule_spec::{Code, Name, Sha256};
use ampoule_store::Limits;
use ampoule_store::pack::pack_filtered;
use ampoule_store::unpack::unpack;
use aws_lc_rs::digest::{SHA256, digest};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tonic::{Extensions, Status};

/// The store of a launcher, as far as content goes: like it, it reads nothing when it has what is named.
#[derive(Clone, Default)]
pub struct Memory(pub Arc<Mutex<BTreeSet<Content>>>);

impl Importer for Memory {
    fn present(&self, contents: &[Content]) -> Result<Vec<bool>, ImportError> {
        let there = self.0.lock().unwrap();
        Ok(contents.iter().map(|content| there.contains(content)).collect())
    }

    fn import(&self, content: Content, mut bytes: File) -> Result<Imported, ImportError> {
        let imported = |sha256| Imported { sha256, bytes: 0, entries: 0 };
        if let (true, Some(sha256)) = (self.0.lock().unwrap().contains(&content), named(&content)) {
            return Ok(imported(sha256));
        }
        let refused = |text: String| ImportError { code: Code::InputRefused, message: text };
        let (content, sha256) = match content {
            Content::Directory { epoch, .. } => {
                let dir = tempfile::tempdir().unwrap();
                let into = File::open(dir.path()).unwrap().into();
                let tree =
                    unpack(bytes, into, epoch, 1000, &mut |_| ()).map_err(|e| refused(e.to_string()))?.tree;
                (Content::Directory { tree: Some(tree), epoch }, tree)
            }
            other => {
                let mut all = Vec::new();
                bytes.read_to_end(&mut all).unwrap();
                assert_eq!(named(&other), Some(sha256(&all)), "the service hands on what it has not checked");
                (other, sha256(&all))
            }
        };
        self.0.lock().unwrap().insert(content);
        Ok(imported(sha256))
    }
}

fn named(content: &Content) -> Option<Sha256> {
    match content {
        Content::Directory { tree, .. } => *tree,
        Content::File { sha256, .. } => *sha256,
        Content::Archive { sha256, .. }
        | Content::ImageTar { sha256 }
        | Content::OciManifest { sha256 }
        | Content::OciConfig { sha256 }
        | Content::OciLayer { sha256 } => Some(*sha256),
        Content::Git { .. } => None,
    }
}

pub fn sha256(bytes: &[u8]) -> Sha256 {
    Sha256::new(digest(&SHA256, bytes).as_ref().try_into().unwrap())
}

/// Lets everybody at every project but one.
pub struct ButSecret;

impl Gate for ButSecret {
    async fn allow(&self, call: &'static str, project: &Name, _: &Extensions) -> Result<(), Status> {
        match project.as_str() {
            "secret" => Err(Status::permission_denied(format!("{call} is not for you"))),
            _ => Ok(()),
        }
    }
}

/// Serves a directory's content until it is dropped.
pub struct Served {
    pub client: Client,
    pub contents: Arc<Contents<Memory>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

pub async fn serve(dir: &Path, store: &Memory, limits: ContentLimits) -> Served {
    let contents = Arc::new(Contents::open(&dir.join("content"), store.clone(), limits).unwrap());
    let socket = dir.join("socket");
    let _ = std::fs::remove_file(&socket);
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    let service = service(Arc::clone(&contents), ButSecret);
    let serving = tokio::spawn(async move {
        let server = tonic::transport::Server::builder().add_service(service);
        server.serve_with_incoming(incoming).await.unwrap();
    });
    let client = Client::new(&Server::Unix(socket), &Credentials::default()).unwrap();
    Served { client, contents, serving }
}

pub fn reference(kind: proto::ContentKind, sha256: Sha256, epoch: u64) -> proto::ContentRef {
    proto::ContentRef { kind: kind.into(), sha256: sha256.to_string(), epoch, executable: false }
}

pub fn file_ref(bytes: &[u8]) -> proto::ContentRef {
    reference(proto::ContentKind::File, sha256(bytes), 7)
}

/// A directory's archive and reference.
pub fn directory(dir: &Path) -> (Vec<u8>, proto::ContentRef) {
    let mut archive = Vec::new();
    let packed =
        pack_filtered(File::open(dir).unwrap().as_fd(), &mut archive, &|_, _| false, &Limits::default())
            .unwrap();
    (archive, reference(proto::ContentKind::Directory, packed.tree, 7))
}

pub fn header(
    project: &str,
    content: &proto::ContentRef,
    size: usize,
    offset: usize,
) -> proto::UploadRequest {
    let header = proto::UploadHeader {
        project: project.to_owned(),
        content: Some(content.clone()),
        size_bytes: size as u64,
        offset: offset as u64,
    };
    proto::UploadRequest { part: Some(Part::Header(header)) }
}

pub fn data(bytes: &[u8]) -> proto::UploadRequest {
    proto::UploadRequest { part: Some(Part::Data(bytes.to_vec())) }
}

impl Served {
    /// Uploads bytes from an offset on, in small messages.
    pub async fn upload(
        &self,
        project: &str,
        content: &proto::ContentRef,
        bytes: &[u8],
        offset: usize,
    ) -> Result<bool, Status> {
        let mut parts = vec![header(project, content, bytes.len(), offset)];
        parts.extend(bytes[offset..].chunks(1000).map(data));
        self.send(parts).await
    }

    pub async fn send(&self, parts: Vec<proto::UploadRequest>) -> Result<bool, Status> {
        let answer = self.client.contents().upload(tokio_stream::iter(parts)).await?;
        Ok(answer.into_inner().present)
    }

    /// Begins an upload and stays silent. Dropping what this gives cuts it short.
    pub async fn begin(&self, parts: Vec<proto::UploadRequest>) -> Cut {
        let (send, receive) = tokio::sync::mpsc::channel(100);
        for part in parts {
            send.send(part).await.unwrap();
        }
        let mut contents = self.client.contents();
        let call = tokio::spawn(async move {
            let stream = tokio_stream::wrappers::ReceiverStream::new(receive);
            contents.upload(stream).await.map(|answer| answer.into_inner().present)
        });
        Cut { call, stream: send }
    }

    /// Waits until so many bytes of an upload are there.
    pub async fn until(&self, project: &str, content: &proto::ContentRef, offset: u64) {
        for _ in 0..500 {
            if self.offset(project, content).await == (false, offset) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{:?} bytes are there and not {offset}", self.offset(project, content).await);
    }

    /// Waits until nobody is at an upload any more: one that would begin it anew, and says too much, is refused for that then.
    pub async fn until_left(&self, project: &str, content: &proto::ContentRef) {
        for _ in 0..500 {
            let (_, offset) = self.offset(project, content).await;
            let probe = header(project, content, 1 << 20, offset as usize + 1);
            let answer = self.send(vec![probe]).await.unwrap_err();
            if answer.code() == tonic::Code::OutOfRange {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("somebody is at it");
    }

    pub async fn missing(&self, project: &str, contents: &[proto::ContentRef]) -> Vec<proto::ContentRef> {
        let request = proto::FindMissingRequest { project: project.to_owned(), contents: contents.to_vec() };
        self.client.contents().find_missing(request).await.unwrap().into_inner().missing
    }

    pub async fn offset(&self, project: &str, content: &proto::ContentRef) -> (bool, u64) {
        let request = proto::GetUploadRequest { project: project.to_owned(), content: Some(content.clone()) };
        let answer = self.client.contents().get_upload(request).await.unwrap().into_inner();
        (answer.present, answer.offset)
    }
}

pub struct Cut {
    pub call: tokio::task::JoinHandle<Result<bool, Status>>,
    stream: tokio::sync::mpsc::Sender<proto::UploadRequest>,
}

impl Cut {
    /// Ends it without a word.
    pub fn cut(self) {
        self.call.abort();
    }
}
