//! Calls with bytes as messages: any method, by its path.

use bytes::{Buf, BufMut, Bytes};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};

#[derive(Debug, Clone, Default)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// Calls a method with one message. The messages that came, or the status.
pub(crate) async fn call(
    channel: Channel,
    path: &str,
    message: Vec<u8>,
    token: Option<&str>,
) -> Result<Vec<Bytes>, Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|e| Status::from_error(Box::new(e)))?;
    let mut request = Request::new(Bytes::from(message));
    if let Some(token) = token {
        let value = MetadataValue::try_from(format!("Bearer {token}")).unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    let path = format!("/{path}").parse().unwrap();
    let mut stream = client.server_streaming(request, path, RawCodec).await?.into_inner();
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await? {
        messages.push(message);
    }
    Ok(messages)
}

/// Whether the status was not said by the daemon: there was no connection.
pub(crate) fn is_transport(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// Sends messages of a stream that then goes on and says nothing. What is answered.
pub(crate) async fn stream(channel: Channel, path: &str, messages: Vec<Vec<u8>>) -> Result<Bytes, Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|e| Status::from_error(Box::new(e)))?;
    let messages = futures_util::stream::iter(messages.into_iter().map(Bytes::from));
    let messages = futures_util::StreamExt::chain(messages, futures_util::stream::pending());
    let path = format!("/{path}").parse().unwrap();
    Ok(client.client_streaming(Request::new(messages), path, RawCodec).await?.into_inner())
}
