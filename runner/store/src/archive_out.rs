//! Writing a deterministic tar archive, entry by entry.

use std::io::{self, Write};

/// The size of a tar block.
const BLOCK: usize = 512;
/// The first size that eleven octal digits cannot say.
const OCTAL_END: u64 = 1 << 33;
/// What an archive ends with.
pub(crate) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// An archive of files that are in memory: modes 0755 and 0644, no owners, no times. Equal calls give equal bytes.
///
/// Paths are bytes, with components joined by `/`; whoever reads the archive checks them.
#[derive(Debug)]
pub struct ArchiveWriter<W> {
    out: W,
}

impl<W: Write> ArchiveWriter<W> {
    /// An archive that is written to `out`.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// A directory.
    ///
    /// # Errors
    /// As writing.
    pub fn directory(&mut self, path: &[u8]) -> io::Result<()> {
        header(&mut self.out, b'5', path, b"", 0o755, 0, 0)
    }

    /// A file with its bytes.
    ///
    /// # Errors
    /// As writing.
    pub fn file(&mut self, path: &[u8], executable: bool, bytes: &[u8]) -> io::Result<()> {
        let size = bytes.len() as u64;
        header(&mut self.out, b'0', path, b"", if executable { 0o755 } else { 0o644 }, size, 0)?;
        self.out.write_all(bytes)?;
        pad(&mut self.out, size)
    }

    /// A symbolic link.
    ///
    /// # Errors
    /// As writing.
    pub fn link(&mut self, path: &[u8], target: &[u8]) -> io::Result<()> {
        header(&mut self.out, b'2', path, target, 0o777, 0, 0)
    }

    /// Ends the archive. One that was not ended is refused by whoever reads it.
    ///
    /// # Errors
    /// As writing.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&END)?;
        self.out.flush()
    }
}

/// A header with a time, and with a PAX header before it for what a plain one cannot say.
pub(crate) fn header(
    out: &mut (impl Write + ?Sized),
    flag: u8,
    path: &[u8],
    target: &[u8],
    mode: u32,
    size: u64,
    epoch: u64,
) -> io::Result<()> {
    let mut name = path.to_vec();
    if flag == b'5' {
        name.push(b'/');
    }
    let mut records = Vec::new();
    let plain = |text: &[u8]| text.len() <= 100 && text.is_ascii();
    if std::str::from_utf8(&name).is_err() || std::str::from_utf8(target).is_err() {
        record(&mut records, "hdrcharset", b"BINARY");
    }
    if !plain(target) {
        record(&mut records, "linkpath", target);
    }
    if epoch >= OCTAL_END {
        record(&mut records, "mtime", epoch.to_string().as_bytes());
    }
    if !plain(&name) {
        record(&mut records, "path", &name);
    }
    if size >= OCTAL_END {
        record(&mut records, "size", size.to_string().as_bytes());
    }
    if !records.is_empty() {
        let length = records.len() as u64;
        out.write_all(&block(b'x', b"PaxHeader", b"", 0o644, length, 0))?;
        out.write_all(&records)?;
        pad(out, length)?;
    }
    let name = if plain(&name) { name.as_slice() } else { b"PaxName" };
    let target = if plain(target) { target } else { b"PaxTarget" };
    let octal = |number: u64| if number >= OCTAL_END { 0 } else { number };
    out.write_all(&block(flag, name, target, mode, octal(size), octal(epoch)))
}

pub(crate) fn pad(out: &mut (impl Write + ?Sized), size: u64) -> io::Result<()> {
    let used = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    let zeros = [0; BLOCK];
    out.write_all(if used == 0 { &[] } else { zeros.get(used..).unwrap_or_default() })
}

/// Appends `<length> <key>=<value>\n`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// A ustar header without an owner.
fn block(flag: u8, name: &[u8], target: &[u8], mode: u32, size: u64, mtime: u64) -> [u8; BLOCK] {
    let mut block = [0_u8; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in block.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    put(0, name);
    put(100, format!("{mode:07o}\0").as_bytes());
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, format!("{mtime:011o}\0").as_bytes());
    put(148, b"        ");
    put(156, &[flag]);
    put(157, target);
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    for (to, from) in block.iter_mut().skip(148).zip(sum.bytes()) {
        *to = from;
    }
    block
}
