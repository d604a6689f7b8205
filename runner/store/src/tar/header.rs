//! One 512-byte header.

use crate::refusal::{Refusal, shown};

pub(crate) const BLOCK: usize = 512;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    CharDevice,
    BlockDevice,
    Fifo,
}

/// What a header announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flag {
    Entry(Kind),
    /// Type `\0`: a file, or a directory if its name ends with `/` (version 7).
    Old,
    Pax,
    PaxGlobal,
    LongName,
    LongLink,
}

impl Kind {
    /// The type as stat(2) has it in `st_mode`, divided by 010000.
    fn bits(self) -> u64 {
        match self {
            Self::File | Self::HardLink => 0o10,
            Self::Directory => 0o4,
            Self::Symlink => 0o12,
            Self::CharDevice => 0o2,
            Self::BlockDevice => 0o6,
            Self::Fifo => 0o1,
        }
    }

    /// The permissions in a header's mode. Its other bits may say the same type or nothing: libarchive believes them.
    pub(crate) fn permissions(self, mode: u64) -> Option<u32> {
        let fits = matches!(mode >> 12, 0) || mode >> 12 == self.bits();
        fits.then(|| u32::try_from(mode & 0o7777).unwrap_or(0))
    }
}

/// A header's fields.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    /// With the bits of a type, which some programs write.
    pub(crate) mode: u64,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) size: u64,
    pub(crate) mtime: i64,
    pub(crate) flag: Flag,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Gnu,
}

fn field(block: &[u8; BLOCK], from: usize, length: usize) -> &[u8] {
    block.get(from..from.saturating_add(length)).unwrap_or_default()
}

/// The sum of all bytes with the checksum's own field taken as spaces.
fn checksum(block: &[u8; BLOCK]) -> u64 {
    let all: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let own: u64 = field(block, 148, 8).iter().map(|byte| u64::from(*byte)).sum();
    all.saturating_sub(own).saturating_add(8 * u64::from(b' '))
}

/// Octal digits after spaces, ended by NUL, space or the field's end; nothing but NUL and space behind them.
/// Or a positive binary number after a byte 0x80 (GNU, star). NULs alone are `None`; GNU tar refuses spaces alone.
fn number(bytes: &[u8]) -> Result<Option<u64>, ()> {
    if let [0x80, rest @ ..] = bytes {
        let mut value = 0_u64;
        for byte in rest {
            value = value.checked_mul(256).ok_or(())? | u64::from(*byte);
        }
        return Ok(Some(value));
    }
    octal(bytes)
}

/// The same without the binary form.
fn octal(bytes: &[u8]) -> Result<Option<u64>, ()> {
    let start = bytes.iter().position(|byte| *byte != b' ').unwrap_or(bytes.len());
    let text = bytes.get(start..).unwrap_or_default();
    let end = text.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(text.len());
    let (digits, tail) = text.split_at_checked(end).ok_or(())?;
    if tail.iter().any(|byte| !matches!(byte, 0 | b' ')) {
        return Err(());
    }
    let mut value = 0_u64;
    for digit in digits {
        if !(b'0'..=b'7').contains(digit) {
            return Err(());
        }
        value = value.checked_mul(8).ok_or(())? | u64::from(digit - b'0');
    }
    match (digits, start) {
        ([], 0) => Ok(None),
        ([], _) => Err(()),
        _ => Ok(Some(value)),
    }
}

/// Numbers of devices, which nobody needs here: libarchive refuses what is none, whatever the entry is.
fn devices_are_numbers(block: &[u8; BLOCK]) -> bool {
    [329, 337].into_iter().map(|from| field(block, from, 8)).all(|bytes| {
        let blank = bytes.iter().all(|byte| matches!(byte, 0 | b' '));
        blank || number(bytes).is_ok()
    })
}

/// An owner's id, for which Linux has 32 bits: GNU tar refuses more.
fn id(bytes: &[u8]) -> Result<u64, ()> {
    let id = number(bytes)?.unwrap_or(0);
    if id > u64::from(u32::MAX) { Err(()) } else { Ok(id) }
}

/// A time may also be a negative binary number.
fn time(bytes: &[u8]) -> Result<i64, ()> {
    if let [0xff, rest @ ..] = bytes {
        let mut value = -1_i64;
        for byte in rest {
            value = value.checked_mul(256).ok_or(())? | i64::from(*byte);
        }
        return Ok(value);
    }
    i64::try_from(number(bytes)?.unwrap_or(0)).map_err(|_| ())
}

/// The bytes before the first NUL; behind it there may be nothing but NULs.
fn text(bytes: &[u8]) -> Result<&[u8], ()> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (text, tail) = bytes.split_at_checked(end).ok_or(())?;
    if tail.iter().any(|byte| *byte != 0) { Err(()) } else { Ok(text) }
}

impl Header {
    /// Reads a block; `offset` is where it lies. `None` is a block of zeros.
    pub(crate) fn parse(block: &[u8; BLOCK], offset: u64) -> Result<Option<Self>, Refusal> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if octal(field(block, 148, 8)) != Ok(Some(checksum(block))) {
            return Err(Refusal::Checksum { offset });
        }
        let raw = field(block, 0, 100);
        let entry = || shown(raw.split(|byte| *byte == 0).next().unwrap_or_default());
        let bad = |field| move |()| Refusal::Field { entry: entry(), field };
        let format = format(block).ok_or_else(|| Refusal::HeaderFormat { entry: entry() })?;
        let mut name = text(raw).map_err(|()| Refusal::NulInName { entry: entry() })?.to_vec();
        if format == Format::Ustar {
            let prefix = text(field(block, 345, 155)).map_err(|()| Refusal::NulInName { entry: entry() })?;
            if !prefix.is_empty() {
                name = [prefix, b"/", &name].concat();
            }
        }
        let flag = flag(field(block, 156, 1).first().copied().unwrap_or_default(), &name)?;
        let link = match flag {
            Flag::Entry(Kind::Symlink | Kind::HardLink) => {
                text(field(block, 157, 100)).map_err(|()| Refusal::LinkTarget { entry: entry() })?
            }
            _ => &[],
        };
        if !devices_are_numbers(block) {
            return Err(bad("device")(()));
        }
        let mode = number(field(block, 100, 8)).map_err(bad("mode"))?.unwrap_or(0);
        let size = number(field(block, 124, 12)).map_err(bad("size"))?;
        let no_data = matches!(flag, Flag::Entry(kind) if kind != Kind::File);
        if size.is_none() && !no_data {
            return Err(bad("size")(()));
        }
        Ok(Some(Self {
            link: link.to_vec(),
            mode,
            uid: id(field(block, 108, 8)).map_err(bad("uid"))?,
            gid: id(field(block, 116, 8)).map_err(bad("gid"))?,
            size: size.unwrap_or(0),
            mtime: time(field(block, 136, 12)).map_err(bad("mtime"))?,
            flag,
            name,
        }))
    }
}

/// The format, if the bytes that no format uses are zeros: programs disagree about what lies there.
fn format(block: &[u8; BLOCK]) -> Option<Format> {
    let zeros = |from, length| field(block, from, length).iter().all(|byte| *byte == 0);
    match field(block, 257, 8) {
        b"ustar\x0000" if zeros(500, 12) => Some(Format::Ustar),
        // Times of access and change, offsets and sparse maps of incremental dumps; Python reads a prefix here.
        b"ustar  \0" if zeros(345, 167) => Some(Format::Gnu),
        // Between them lie device numbers, which GNU tar writes for version 7 too.
        _ if zeros(257, 72) && zeros(345, 167) => Some(Format::V7),
        _ => None,
    }
}

fn flag(byte: u8, name: &[u8]) -> Result<Flag, Refusal> {
    Ok(match byte {
        0 => Flag::Old,
        b'0' => Flag::Entry(Kind::File),
        b'1' => Flag::Entry(Kind::HardLink),
        b'2' => Flag::Entry(Kind::Symlink),
        b'3' => Flag::Entry(Kind::CharDevice),
        b'4' => Flag::Entry(Kind::BlockDevice),
        b'5' => Flag::Entry(Kind::Directory),
        b'6' => Flag::Entry(Kind::Fifo),
        b'x' => Flag::Pax,
        b'g' => Flag::PaxGlobal,
        b'L' => Flag::LongName,
        b'K' => Flag::LongLink,
        b'S' => return Err(Refusal::Sparse { entry: shown(name) }),
        _ => return Err(Refusal::UnknownType { entry: shown(name), flag: shown(&[byte]) }),
    })
}
