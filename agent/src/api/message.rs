//! The one message of a request, whole before anybody looks at it.

use super::error::ApiError;
use super::limits::Limits;
use super::shares::{Share, Shares};
use ampoule_spec::Code;
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body;
use std::sync::Arc;
use std::time::Duration;

/// What stands before a message (gRPC over HTTP/2): whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// Reads the message of at most `most` bytes with its prefix, and the end after it. The share of what is in flight is held as long as what comes back.
///
/// # Errors
/// `call.invalid`, `call.busy`, `call.timeout`. A message that is too large is refused by its prefix.
pub(super) async fn read<B: Body<Data = Bytes> + Unpin>(
    body: B,
    most: usize,
    limits: &Limits,
    shares: &Arc<Shares>,
    holder: &str,
) -> Result<(Bytes, Share), ApiError> {
    let read = tokio::time::timeout(limits.message, whole(body, most, shares, holder)).await;
    read.unwrap_or_else(|_| {
        let text = format!("the request did not arrive within {} s", limits.message.as_secs());
        Err(ApiError::new(Code::CallTimeout, text))
    })
}

async fn whole<B: Body<Data = Bytes> + Unpin>(
    mut body: B,
    most: usize,
    shares: &Arc<Shares>,
    holder: &str,
) -> Result<(Bytes, Share), ApiError> {
    let invalid = |text: String| ApiError::new(Code::CallInvalid, text);
    let mut bytes = BytesMut::new();
    let mut share = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| invalid("the request was cut short".to_owned()))?;
        let Ok(data) = frame.into_data() else { continue };
        bytes.extend_from_slice(&data);
        let Some(length) = length(&bytes, most)? else { continue };
        if share.is_none() {
            share = Some(shares.take(holder, length).ok_or_else(busy)?);
            bytes.reserve(length.saturating_sub(bytes.len()));
        }
        if bytes.len() > length {
            return Err(invalid("more than one message, where the call takes one".to_owned()));
        }
    }
    match (share, length(&bytes, most)?) {
        (Some(share), Some(length)) if length == bytes.len() => Ok((bytes.freeze(), share)),
        _ => Err(invalid("the request is no whole message".to_owned())),
    }
}

/// There is no share of the bytes in flight.
pub(super) fn busy() -> ApiError {
    ApiError::later(Code::CallBusy, "too many bytes of requests are in flight", Duration::from_secs(1))
}

/// How long the message is with its prefix; none if the prefix is not whole.
///
/// # Errors
/// `call.unknown` if it is compressed, `call.invalid` if it has more than `most` bytes.
pub(super) fn length(bytes: &BytesMut, most: usize) -> Result<Option<usize>, ApiError> {
    let Some((mut prefix, _)) = bytes.split_at_checked(PREFIX_BYTES) else { return Ok(None) };
    if prefix.get_u8() != 0 {
        let text = "compressed messages are not taken; send them as they are";
        return Err(ApiError::new(Code::CallUnknown, text));
    }
    let length = prefix.get_u32() as usize;
    if length > most {
        let text = format!("a message of {length} bytes; at most {most} are read");
        return Err(ApiError::new(Code::CallInvalid, text));
    }
    Ok(Some(length + PREFIX_BYTES))
}

/// The message without its prefix.
pub(super) fn payload(bytes: &Bytes) -> &[u8] {
    bytes.get(PREFIX_BYTES..).unwrap_or_default()
}
