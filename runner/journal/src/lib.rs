//! A framed, CRC-checked, append-only log (docs/formats.md, "Journal").
//!
//! Guarantees: what [`Reader`] returns as a frame was appended as that frame, whatever bytes a payload holds;
//! a frame that was cut short at the end of the file is told apart from one that was damaged; after a failed
//! [`Writer::sync`] nothing more is written, because Linux may drop the dirty pages and report success next time.
//!
//! Not guaranteed: that nobody edits the file (a CRC is no signature), or that several writers can share it.
//! Whoever writes holds a lock of their own.

mod crc;
mod frame;
mod reader;
mod writer;

pub use frame::{HEADER_BYTES, MAGIC, PAYLOAD_BYTES_MAX};
pub use reader::{Frame, Next, ReadError, Reader};
pub use writer::{Medium, Resumed, WriteError, Writer};
