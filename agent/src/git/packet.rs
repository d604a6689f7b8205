//! Packet lines (gitprotocol-common(5)): four hexadecimal digits of length, then bytes.

use crate::inputs::InputError;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

/// The most bytes of one packet, its length included.
const PACKET_BYTES_MAX: usize = 65520;

/// A packet.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packet {
    Data(Vec<u8>),
    /// The end of a message.
    Flush,
    /// The end of a section.
    Delimiter,
    /// The server has nothing more to say.
    End,
}

/// Writes a line as a packet.
pub(super) fn line(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(format!("{:04x}{text}\n", text.len() + 5).as_bytes());
}

/// Reads packets from the body of an answer.
pub(super) struct Packets {
    what: String,
    body: BoxStream<'static, reqwest::Result<Vec<u8>>>,
    buffer: Vec<u8>,
    at: usize,
    /// Bytes that may still come.
    left: u64,
}

impl Packets {
    /// The packets of an answer of at most `bytes_max` bytes.
    pub(super) fn new(what: &str, response: reqwest::Response, bytes_max: u64) -> Self {
        let body = response.bytes_stream().map(|part| part.map(|part| part.to_vec())).boxed();
        Self { what: what.to_owned(), body, buffer: Vec::new(), at: 0, left: bytes_max }
    }

    pub(super) fn refused(&self, reason: impl Into<String>) -> InputError {
        InputError::Refused { what: self.what.clone(), reason: reason.into() }
    }

    /// The next packet.
    pub(super) async fn next(&mut self) -> Result<Packet, InputError> {
        let length = self.take(4).await?;
        let digits = std::str::from_utf8(&length).ok().filter(|text| !text.starts_with('+'));
        let length = digits.and_then(|text| usize::from_str_radix(text, 16).ok());
        match length {
            Some(0) => Ok(Packet::Flush),
            Some(1) => Ok(Packet::Delimiter),
            Some(2) => Ok(Packet::End),
            Some(length @ 4..=PACKET_BYTES_MAX) => self.take(length - 4).await.map(Packet::Data),
            _ => Err(self.refused("the answer is not in git's protocol: a packet without a length")),
        }
    }

    /// A line of text, without its end; nothing at the end of a section or message.
    pub(super) async fn text(&mut self) -> Result<Option<String>, InputError> {
        let Packet::Data(mut bytes) = self.next().await? else { return Ok(None) };
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        if let Some(message) = bytes.strip_prefix(b"ERR ") {
            return Err(self.error(message));
        }
        let text = String::from_utf8(bytes);
        text.map(Some).map_err(|_| self.refused("the answer has a line that is not UTF-8"))
    }

    /// What the server says that it cannot do.
    pub(super) fn error(&self, message: &[u8]) -> InputError {
        let (what, text) = (self.what.clone(), super::object::shown(message));
        if message.windows(11).any(|part| part == b"not our ref") {
            let reason = format!(
                "the server does not give this commit ({text}): it is not in the repository, or the server gives only \
                 what a branch or tag names (uploadpack.allowAnySHA1InWant)"
            );
            return InputError::Missing { what, reason };
        }
        InputError::Unreachable { url: what, reason: format!("the server says: {text}"), source: None }
    }

    async fn take(&mut self, count: usize) -> Result<Vec<u8>, InputError> {
        while self.buffer.len() - self.at < count {
            let broken = |reason: &str, cause: Option<reqwest::Error>| InputError::Unreachable {
                url: self.what.clone(),
                reason: reason.to_owned(),
                source: cause.map(|e| Box::new(e.without_url()) as Box<dyn std::error::Error + Send + Sync>),
            };
            let part = match self.body.next().await {
                Some(Ok(part)) => part,
                Some(Err(e)) if e.is_timeout() => return Err(broken("the server fell silent", Some(e))),
                Some(Err(e)) => return Err(broken("the answer is not complete", Some(e))),
                None => return Err(broken("the answer is not complete", None)),
            };
            self.left = self.left.checked_sub(part.len() as u64).ok_or_else(|| InputError::Refused {
                what: self.what.clone(),
                reason: "the server's answer has more bytes than are accepted".to_owned(),
            })?;
            self.buffer.drain(..self.at);
            self.at = 0;
            self.buffer.extend_from_slice(&part);
        }
        let end = self.at + count;
        let taken = self.buffer.get(self.at..end).unwrap_or_default().to_vec();
        self.at = end;
        Ok(taken)
    }
}
