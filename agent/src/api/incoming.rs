//! The messages of a call that streams them: each is whole, counted and strict before the service sees it, and none is read
//! before the one before it was taken.
//!
//! So what decides over a stream, its first message, is small and alone: nothing of what follows is read until it is judged.

use super::error::ApiError;
use super::limits::Limits;
use super::message::{busy, length, payload};
use super::schema::Schema;
use super::shares::{Share, Shares};
use super::strict;
use ampoule_spec::Code;
use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Body, Frame};
use std::sync::Arc;
use tonic::Status;

/// What is read of one stream.
struct Incoming<B> {
    body: B,
    schema: Arc<Schema>,
    /// Its messages, by their place in the schema.
    message: usize,
    limits: Limits,
    shares: Arc<Shares>,
    holder: String,
    /// What came of messages that were not given yet.
    bytes: BytesMut,
    /// Of the message that is read, or was given last.
    share: Option<Share>,
    first: bool,
}

/// A body that gives one message at a time, with its prefix, and ends with the first that is not one.
pub(super) fn messages<B: Body<Data = Bytes> + Send + Unpin + 'static>(
    body: B,
    schema: Arc<Schema>,
    message: usize,
    limits: &Limits,
    shares: &Arc<Shares>,
    holder: String,
) -> tonic::body::Body {
    let incoming = Incoming {
        body,
        schema,
        message,
        limits: *limits,
        shares: Arc::clone(shares),
        holder,
        bytes: BytesMut::new(),
        share: None,
        first: true,
    };
    tonic::body::Body::new(StreamBody::new(Box::pin(stream(incoming))))
}

fn stream<B: Body<Data = Bytes> + Send + Unpin>(
    incoming: Incoming<B>,
) -> impl Stream<Item = Result<Frame<Bytes>, Status>> + Send {
    futures_util::stream::unfold(Some(incoming), |incoming| async move {
        let mut incoming = incoming?;
        match incoming.next().await {
            Ok(None) => None,
            Ok(Some(message)) => Some((Ok(Frame::data(message)), Some(incoming))),
            Err(error) => Some((Err(Status::from(error)), None)),
        }
    })
}

impl<B: Body<Data = Bytes> + Send + Unpin> Incoming<B> {
    /// The next message with its prefix; none at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        // Who asks for the next one has done with the last.
        self.share = None;
        if !std::mem::replace(&mut self.first, false) {
            return self.whole(self.limits.part_bytes).await;
        }
        let most = self.limits.message;
        let first = self.whole(self.limits.first_message_bytes);
        tokio::time::timeout(most, first).await.unwrap_or_else(|_| {
            let text = format!("the first message did not arrive within {} s", most.as_secs());
            Err(ApiError::new(Code::CallTimeout, text))
        })
    }

    async fn whole(&mut self, most: usize) -> Result<Option<Bytes>, ApiError> {
        loop {
            if let Some(length) = length(&self.bytes, most)? {
                if self.share.is_none() {
                    self.share = Some(self.shares.take(&self.holder, length).ok_or_else(busy)?);
                }
                if self.bytes.len() >= length {
                    let message = self.bytes.split_to(length).freeze();
                    strict::check(&self.schema, self.message, payload(&message)).map_err(strict::refused)?;
                    return Ok(Some(message));
                }
            }
            let cut = || ApiError::new(Code::CallInvalid, "the request was cut short");
            match self.body.frame().await {
                None if self.bytes.is_empty() => return Ok(None),
                None => return Err(cut()),
                Some(frame) => {
                    if let Ok(data) = frame.map_err(|_| cut())?.into_data() {
                        self.bytes.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}
