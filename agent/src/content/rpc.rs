//! `ContentService`: requests checked, asked of the gate, and handed on.

use super::import::Importer;
use super::refs::{content, content_ref};
use super::{Begun, ContentError, Contents, Upload};
use ampoule_proto::v1 as proto;
use ampoule_proto::v1::content_service_server::{ContentService, ContentServiceServer};
use ampoule_proto::v1::upload_request::Part;
use ampoule_spec::Name;
use ampoule_spec::wire::Content;
use std::future::Future;
use std::sync::Arc;
use tonic::{Extensions, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

/// The most references in one question.
const REFERENCES_MAX: usize = 1000;
/// The most bytes in one message.
const DATA_BYTES_MAX: usize = 1 << 20;
/// The most bytes of one message, with what stands around them.
const MESSAGE_BYTES_MAX: usize = DATA_BYTES_MAX + (1 << 10);

/// Who decides whether a caller may do something with a project's content.
pub trait Gate: Send + Sync + 'static {
    /// Lets a call pass: `call` is its name in the schema, `extensions` what the transport has proven of the caller.
    ///
    /// # Errors
    /// What the caller hears.
    fn allow(
        &self,
        call: &'static str,
        project: &Name,
        extensions: &Extensions,
    ) -> impl Future<Output = Result<(), Status>> + Send;

    /// So many bytes of an upload were taken.
    fn received(&self, _bytes: u64) {}
}

/// The service.
#[derive(Debug)]
pub struct Rpc<I, G> {
    contents: Arc<Contents<I>>,
    gate: G,
}

/// The service over contents, behind a gate.
pub fn service<I: Importer, G: Gate>(contents: Arc<Contents<I>>, gate: G) -> ContentServiceServer<Rpc<I, G>> {
    // The front reads no larger ones; whoever serves without it does not either.
    ContentServiceServer::new(Rpc { contents, gate }).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

impl From<ContentError> for Status {
    fn from(error: ContentError) -> Self {
        let code = error.status.unwrap_or_else(|| status(error.code.grpc()));
        let text = error.heard().to_owned();
        let fault = [("fault".to_owned(), error.code.fault().as_str().to_owned())];
        let mut details = ErrorDetails::with_error_info(error.code.as_str(), "ampoule.v1", fault);
        if let Some(field) = &error.field {
            details.add_bad_request_violation(field, &text);
        }
        if let Some(after) = error.retry_after {
            details.set_retry_info(Some(after));
        }
        Status::with_error_details(code, text, details)
    }
}

/// The status of a name in the table of codes.
fn status(name: &str) -> tonic::Code {
    match name {
        "INVALID_ARGUMENT" => tonic::Code::InvalidArgument,
        "NOT_FOUND" => tonic::Code::NotFound,
        "PERMISSION_DENIED" => tonic::Code::PermissionDenied,
        "RESOURCE_EXHAUSTED" => tonic::Code::ResourceExhausted,
        "FAILED_PRECONDITION" => tonic::Code::FailedPrecondition,
        "ABORTED" => tonic::Code::Aborted,
        "UNAVAILABLE" => tonic::Code::Unavailable,
        "DATA_LOSS" => tonic::Code::DataLoss,
        _ => tonic::Code::Internal,
    }
}

fn project(field: &str, text: &str) -> Result<Name, ContentError> {
    Name::parse(text).map_err(|e| ContentError::wrong(field, e.to_string()))
}

fn reference(field: &str, reference: Option<&proto::ContentRef>) -> Result<Content, ContentError> {
    let reference = reference.ok_or_else(|| ContentError::wrong(field, "missing"))?;
    Ok(content(field, reference)?)
}

impl<I: Importer, G: Gate> Rpc<I, G> {
    /// The next part; none at the end.
    async fn next(&self, stream: &mut Streaming<proto::UploadRequest>) -> Result<Option<Part>, Status> {
        let silence = self.contents.limits().silence;
        let message = tokio::time::timeout(silence, stream.message()).await.map_err(|_| {
            Status::deadline_exceeded(format!(
                "nothing came for {} s; what came is kept, go on from there",
                silence.as_secs()
            ))
        })??;
        match message {
            None => Ok(None),
            Some(proto::UploadRequest { part: Some(part) }) => Ok(Some(part)),
            Some(proto::UploadRequest { part: None }) => {
                Err(ContentError::wrong("part", "a message with neither a header nor data").into())
            }
        }
    }

    async fn begin(&self, header: &proto::UploadHeader, extensions: &Extensions) -> Result<Begun, Status> {
        let project = project("header.project", &header.project)?;
        let content = reference("header.content", header.content.as_ref())?;
        self.gate.allow("Upload", &project, extensions).await?;
        Ok(self.contents.begin(&project, content, header.size_bytes, header.offset).await?)
    }

    async fn receive(
        &self,
        mut upload: Upload,
        stream: &mut Streaming<proto::UploadRequest>,
    ) -> Result<Upload, Status> {
        while let Some(part) = self.next(stream).await? {
            let Part::Data(data) = part else {
                return Err(ContentError::wrong("header", "a second one; an upload has one").into());
            };
            if data.len() > DATA_BYTES_MAX {
                let text = format!("{} bytes in one message; send at most {DATA_BYTES_MAX}", data.len());
                return Err(ContentError::wrong("data", text).into());
            }
            let bytes = data.len() as u64;
            upload = upload.append(data).await?;
            self.gate.received(bytes);
        }
        if upload.there() == upload.size() {
            return Ok(upload);
        }
        let text = format!(
            "the stream ended after {} of {} bytes; they are kept, go on from there",
            upload.there(),
            upload.size()
        );
        Err(ContentError::wrong("data", text).into())
    }
}

#[tonic::async_trait]
impl<I: Importer, G: Gate> ContentService for Rpc<I, G> {
    async fn find_missing(
        &self,
        request: Request<proto::FindMissingRequest>,
    ) -> Result<Response<proto::FindMissingResponse>, Status> {
        let (_, extensions, request) = request.into_parts();
        let project = project("project", &request.project)?;
        if request.contents.len() > REFERENCES_MAX {
            let text = format!("{} references; ask for at most {REFERENCES_MAX}", request.contents.len());
            return Err(ContentError::wrong("contents", text).into());
        }
        let contents = request.contents.iter().enumerate();
        let contents = contents.map(|(at, reference)| content(&format!("contents[{at}]"), reference));
        let contents = contents.collect::<Result<Vec<_>, _>>().map_err(ContentError::from)?;
        self.gate.allow("FindMissing", &project, &extensions).await?;
        let missing = self.contents.missing(&project, contents).await?;
        let missing = missing.iter().filter_map(content_ref).collect();
        Ok(Response::new(proto::FindMissingResponse { missing }))
    }

    async fn upload(
        &self,
        request: Request<Streaming<proto::UploadRequest>>,
    ) -> Result<Response<proto::UploadResponse>, Status> {
        let (_, extensions, mut stream) = request.into_parts();
        let Some(Part::Header(header)) = self.next(&mut stream).await? else {
            return Err(ContentError::wrong("header", "missing; send it first").into());
        };
        match self.begin(&header, &extensions).await? {
            Begun::Present => Ok(Response::new(proto::UploadResponse { present: true })),
            Begun::Open(upload) => {
                let upload = self.receive(upload, &mut stream).await?;
                self.contents.finish(upload).await?;
                Ok(Response::new(proto::UploadResponse { present: false }))
            }
        }
    }

    async fn get_upload(
        &self,
        request: Request<proto::GetUploadRequest>,
    ) -> Result<Response<proto::GetUploadResponse>, Status> {
        let (_, extensions, request) = request.into_parts();
        let project = project("project", &request.project)?;
        let content = reference("content", request.content.as_ref())?;
        self.gate.allow("GetUpload", &project, &extensions).await?;
        let offset = self.contents.offset(&project, content).await?;
        let response =
            proto::GetUploadResponse { present: offset.is_none(), offset: offset.unwrap_or_default() };
        Ok(Response::new(response))
    }
}
