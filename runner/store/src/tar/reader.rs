//! Entries one after another.

use super::header::{BLOCK, Flag, Header, Kind};
use super::pax::Pax;
use crate::limits::{PATH_BYTES_MAX, TARGET_BYTES_MAX};
use crate::refusal::{Refusal, shown};
use crate::stream::Stream;
use crate::worker::WorkError;

/// The largest PAX header; extended attributes travel in it.
const PAX_BYTES_MAX: u64 = 1 << 20;
/// The largest GNU long name or target with its final NUL.
const LONG_BYTES_MAX: u64 = 8 << 10;
/// The most extension headers before one entry: libarchive stops at 33.
const EXTENSIONS_MAX: usize = 16;
/// The first size that eleven octal digits cannot say.
const OCTAL_END: u64 = 1 << 33;

/// An entry, all its headers taken together.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: (i64, u32),
    pub(crate) size: u64,
}

/// The extensions that came before an entry.
#[derive(Default)]
struct Extensions {
    pax: Option<Pax>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Extensions {
    fn none(&self) -> bool {
        self.pax.is_none() && self.name.is_none() && self.link.is_none()
    }
}

/// A tar archive.
pub(crate) struct Archive {
    from: Stream,
    /// Bytes of the current entry's data that were not read yet.
    data: u64,
    /// Bytes of padding behind them.
    padding: u64,
}

fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64).saturating_sub(size)
}

impl Archive {
    pub(crate) fn new(from: Stream) -> Self {
        Self { from, data: 0, padding: 0 }
    }

    /// The next entry, or nothing at the end of the archive.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, WorkError> {
        self.skip_data()?;
        let mut extensions = Extensions::default();
        let mut headers = 0;
        loop {
            let offset = self.from.bytes();
            let Some(block) = self.block()? else {
                return Err(Refusal::NoEnd {}.into());
            };
            let Some(header) = Header::parse(&block, offset)? else {
                if !extensions.none() {
                    return Err(Refusal::ExtensionDangles {}.into());
                }
                self.end()?;
                return Ok(None);
            };
            if header.size > i64::MAX as u64 {
                return Err(Refusal::Field { entry: shown(&header.name), field: "size" }.into());
            }
            let conflict = || Refusal::ExtensionsConflict { entry: shown(&header.name) };
            headers += 1;
            match header.flag {
                Flag::Old | Flag::Entry(_) => return self.entry(header, extensions).map(Some),
                _ if headers > EXTENSIONS_MAX => return Err(conflict().into()),
                Flag::Pax if extensions.none() => {
                    let bytes = self.extension(&header, PAX_BYTES_MAX)?;
                    extensions.pax = Some(Pax::parse(&bytes, &header.name)?);
                }
                Flag::PaxGlobal if extensions.none() => {
                    let bytes = self.extension(&header, PAX_BYTES_MAX)?;
                    Pax::check_global(&bytes)?;
                }
                Flag::LongName if extensions.pax.is_none() && extensions.name.is_none() => {
                    extensions.name = Some(self.long(&header)?);
                }
                Flag::LongLink if extensions.pax.is_none() && extensions.link.is_none() => {
                    extensions.link = Some(self.long(&header)?);
                }
                Flag::Pax | Flag::PaxGlobal | Flag::LongName | Flag::LongLink => {
                    return Err(conflict().into());
                }
            }
        }
    }

    /// Reads on in the current entry's data; 0 at its end.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, WorkError> {
        let limit = usize::try_from(self.data).unwrap_or(usize::MAX).min(buffer.len());
        let part = buffer.get_mut(..limit).unwrap_or_default();
        if part.is_empty() {
            return Ok(0);
        }
        let count = self.from.read(part)?;
        if count == 0 {
            return Err(Refusal::Truncated { what: "a file" }.into());
        }
        self.data = self.data.saturating_sub(count as u64);
        Ok(count)
    }

    /// The stream, of which the archive was read to its end.
    pub(crate) fn into_stream(self) -> Stream {
        self.from
    }

    fn entry(&mut self, header: Header, extensions: Extensions) -> Result<Entry, WorkError> {
        let pax = extensions.pax.unwrap_or_default();
        let name = pax.path.or(extensions.name).unwrap_or(header.name);
        let link = pax.link.or(extensions.link);
        let kind = match header.flag {
            Flag::Entry(kind) => kind,
            _ if name.ends_with(b"/") => Kind::Directory,
            _ => Kind::File,
        };
        let size = match pax.size {
            Some(size) if size == header.size || (header.size == 0 && size >= OCTAL_END) => size,
            Some(pax) => {
                let header = header.size;
                return Err(Refusal::SizeDisagrees { entry: shown(&name), header, pax }.into());
            }
            None => header.size,
        };
        if size > i64::MAX as u64 {
            return Err(Refusal::Field { entry: shown(&name), field: "size" }.into());
        }
        if kind != Kind::File && size != 0 {
            // Whether the data follows depends on the program that reads it.
            return Err(Refusal::SizeOnEmpty { entry: shown(&name), bytes: size }.into());
        }
        let is_link = matches!(kind, Kind::Symlink | Kind::HardLink);
        if link.is_some() && !is_link {
            return Err(Refusal::ExtensionsConflict { entry: shown(&name) }.into());
        }
        if is_link && header.link.is_empty() {
            // Libarchive takes the target of an extension header in place of another one, and not of none.
            return Err(Refusal::LinkTarget { entry: shown(&name) }.into());
        }
        let link = link.unwrap_or(header.link);
        if is_link && (link.is_empty() || link.contains(&0)) {
            return Err(Refusal::LinkTarget { entry: shown(&name) }.into());
        }
        if link.len() > TARGET_BYTES_MAX {
            return Err(Refusal::LinkTooLong { entry: shown(&name) }.into());
        }
        let mode = kind.permissions(header.mode);
        let mode = mode.ok_or_else(|| Refusal::Field { entry: shown(&name), field: "mode" })?;
        self.data = size;
        self.padding = padding(size);
        Ok(Entry {
            link,
            kind,
            mode,
            uid: pax.uid.unwrap_or(header.uid),
            gid: pax.gid.unwrap_or(header.gid),
            mtime: pax.mtime.unwrap_or((header.mtime, 0)),
            size,
            name,
        })
    }

    /// A GNU long name or target: bytes and NULs at the end.
    fn long(&mut self, header: &Header) -> Result<Vec<u8>, WorkError> {
        let mut bytes = self.extension(header, LONG_BYTES_MAX)?;
        let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        if bytes.iter().skip(length).any(|byte| *byte != 0) {
            return Err(Refusal::NulInName { entry: shown(&bytes) }.into());
        }
        bytes.truncate(length);
        if bytes.len() > PATH_BYTES_MAX {
            return Err(Refusal::PathTooLong { entry: shown(&bytes) }.into());
        }
        Ok(bytes)
    }

    fn extension(&mut self, header: &Header, bytes_max: u64) -> Result<Vec<u8>, WorkError> {
        if header.size > bytes_max {
            let entry = shown(&header.name);
            return Err(Refusal::ExtensionTooLarge { entry, bytes: header.size }.into());
        }
        let mut bytes = vec![0; usize::try_from(header.size).unwrap_or(0)];
        self.fill(&mut bytes, "an extension header")?;
        self.padding = padding(header.size);
        self.skip_data()?;
        Ok(bytes)
    }

    /// A whole block, or nothing if the stream ends before it.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, WorkError> {
        let mut block = [0; BLOCK];
        let mut rest = block.as_mut_slice();
        while !rest.is_empty() {
            let whole = rest.len() == BLOCK;
            match self.from.read(rest)? {
                0 if whole => return Ok(None),
                0 => return Err(Refusal::Truncated { what: "a header" }.into()),
                count => rest = rest.get_mut(count..).unwrap_or_default(),
            }
        }
        Ok(Some(block))
    }

    fn fill(&mut self, mut rest: &mut [u8], what: &'static str) -> Result<(), WorkError> {
        while !rest.is_empty() {
            match self.from.read(rest)? {
                0 => return Err(Refusal::Truncated { what }.into()),
                count => rest = rest.get_mut(count..).unwrap_or_default(),
            }
        }
        Ok(())
    }

    fn skip_data(&mut self) -> Result<(), WorkError> {
        let mut block = [0; BLOCK];
        let mut left = self.data.saturating_add(self.padding);
        (self.data, self.padding) = (0, 0);
        while left > 0 {
            let limit = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
            let part = block.get_mut(..limit).unwrap_or_default();
            self.fill(part, "a file")?;
            left = left.saturating_sub(limit as u64);
        }
        Ok(())
    }

    /// After one block of zeros: another one, and from there on zeros alone.
    fn end(&mut self) -> Result<(), WorkError> {
        match self.block()? {
            None => return Err(Refusal::NoEnd {}.into()),
            Some(block) if block.iter().any(|byte| *byte != 0) => {
                return Err(Refusal::TrailingData {}.into());
            }
            Some(_) => {}
        }
        let mut buffer = [0; 4096];
        loop {
            let count = self.from.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            if buffer.iter().take(count).any(|byte| *byte != 0) {
                return Err(Refusal::TrailingData {}.into());
            }
        }
    }
}
