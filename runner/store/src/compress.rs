//! Compressing an output. It parses nothing; a process without privilege runs it all the same.

use std::io::{self, Read, Write};

/// The level of every `tar.zst`: zstd's own default. Another level gives other bytes.
const LEVEL: i32 = 3;

/// The version of the library, on which the bytes depend.
pub fn version() -> &'static str {
    zstd::zstd_safe::version_string()
}

/// Compresses everything that `from` gives as one zstd frame with a checksum. Equal bytes give equal bytes, whatever
/// pieces they come in; memory does not grow with them.
///
/// # Errors
/// What reading or writing says.
pub fn compress(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<()> {
    let mut encoder = zstd::stream::write::Encoder::new(to, LEVEL)?;
    encoder.include_checksum(true)?;
    io::copy(from, &mut encoder)?;
    encoder.finish()?.flush()
}
