//! Endpoints that `vaultrs` lacks, or whose bodies hold secrets that it would leave behind in memory.

use rustify::Endpoint;
use rustify::enums::{RequestMethod, RequestType, ResponseType};
use rustify::errors::ClientError;
use serde::Serialize;
use zeroize::Zeroizing;

/// A call by method and path.
pub(super) struct Call {
    method: RequestMethod,
    path: String,
    body: Option<Zeroizing<Vec<u8>>>,
    query: Option<String>,
}

impl Call {
    /// Reads.
    pub(super) fn get(path: String) -> Self {
        Self { method: RequestMethod::GET, path, body: None, query: None }
    }

    /// Lists what is below.
    pub(super) fn list(path: String) -> Self {
        Self { method: RequestMethod::LIST, path, body: None, query: None }
    }

    /// Writes without a body.
    pub(super) fn do_it(path: String) -> Self {
        Self { method: RequestMethod::POST, path, body: None, query: None }
    }

    /// Writes this body.
    pub(super) fn post(path: String, body: &impl Serialize) -> Self {
        // Room for a whole one, so that a secret is not copied about while it grows.
        let mut text = Zeroizing::new(Vec::with_capacity(8 << 10));
        // Structures of texts and numbers give no error.
        let _ = serde_json::to_writer(&mut *text, body);
        Self { method: RequestMethod::POST, path, body: Some(text), query: None }
    }

    /// The same with a query.
    pub(super) fn with_query(self, query: String) -> Self {
        Self { query: Some(query), ..self }
    }
}

impl Endpoint for Call {
    /// Answers are read by us, without copies of their texts.
    type Response = ();
    const REQUEST_BODY_TYPE: RequestType = RequestType::JSON;
    const RESPONSE_BODY_TYPE: ResponseType = ResponseType::JSON;

    fn path(&self) -> String {
        self.path.clone()
    }

    fn method(&self) -> RequestMethod {
        self.method.clone()
    }

    fn query(&self) -> Result<Option<String>, ClientError> {
        Ok(self.query.clone())
    }

    fn body(&self) -> Result<Option<Vec<u8>>, ClientError> {
        Ok(self.body.as_ref().map(|body| body.to_vec()))
    }
}
