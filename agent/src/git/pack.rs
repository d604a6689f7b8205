//! Packs (gitformat-pack(5)): where each object lies, and its bytes.
//!
//! A pack came from a stranger. Sizes that it announces are held against the limits before anything is decompressed,
//! nothing is allocated by what it announces, and the chains of deltas are followed without recursion.

use super::delta;
use super::fault::Fault;
use super::limits::GitLimits;
use super::object::{Hasher, Kind, id_of};
use ampoule_spec::GitId;
use flate2::bufread::ZlibDecoder;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

type Result<T> = std::result::Result<T, Fault>;

/// The header of a pack, and the hash at its end.
const HEAD_BYTES: u64 = 12;
const TAIL_BYTES: u64 = 20;
/// The most bytes of rebuilt objects that are kept for the deltas that follow.
const CACHE_BYTES_MAX: usize = 64 << 20;
/// What looking at the beginning of an entry counts, in bytes of work.
const HEAD_WORK: u64 = 1 << 10;

/// How an object is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    Whole(Kind),
    /// As a delta over what lies at this offset.
    Above(u64),
    /// As a delta over this object.
    Over(GitId),
}

/// The beginning of an entry.
#[derive(Debug, Clone, Copy)]
struct Head {
    stored: Stored,
    size: u64,
    /// Where the compressed bytes begin.
    data: u64,
}

/// A file that is read from a place on.
struct From<'a> {
    file: &'a File,
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    used: usize,
}

impl Read for From<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(into)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for From<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.used >= self.buffer.len() {
            let wanted =
                usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX).min(32 << 10);
            self.buffer.resize(wanted, 0);
            let count = self.file.read_at(&mut self.buffer, self.at)?;
            self.buffer.truncate(count);
            self.at += count as u64;
            self.used = 0;
        }
        Ok(self.buffer.get(self.used..).unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        self.used = self.used.saturating_add(count).min(self.buffer.len());
    }
}

/// Rebuilt objects that may be the base of the next, the oldest first to go.
#[derive(Default)]
struct Cache {
    /// With the number of deltas that an object is stored with.
    objects: HashMap<u64, (Kind, Rc<[u8]>, usize)>,
    order: VecDeque<u64>,
    bytes: usize,
}

impl Cache {
    fn put(&mut self, at: u64, kind: Kind, bytes: &Rc<[u8]>, depth: usize) {
        if bytes.len() > CACHE_BYTES_MAX / 4 || self.objects.contains_key(&at) {
            return;
        }
        while self.bytes + bytes.len() > CACHE_BYTES_MAX
            && let Some(old) = self.order.pop_front()
        {
            self.bytes -= self.objects.remove(&old).map_or(0, |(_, bytes, _)| bytes.len());
        }
        self.bytes += bytes.len();
        self.order.push_back(at);
        self.objects.insert(at, (kind, Rc::clone(bytes), depth));
    }
}

/// Where a base lies that is named by its id.
pub(super) trait Index {
    fn offset(&self, id: &GitId) -> Result<Option<u64>>;
}

impl Index for HashMap<GitId, u64> {
    fn offset(&self, id: &GitId) -> Result<Option<u64>> {
        Ok(self.get(id).copied())
    }
}

/// A pack's file.
pub(super) struct PackFile {
    file: File,
    /// Where the hash at the end begins.
    end: u64,
    limits: GitLimits,
    work: Cell<u64>,
    cache: RefCell<Cache>,
}

fn corrupt(what: &str) -> Fault {
    Fault::Refused(format!("the pack is damaged: {what}"))
}

impl PackFile {
    /// Looks at the pack's header: version and number of objects.
    pub(super) fn open(file: File, limits: GitLimits) -> Result<(Self, u32)> {
        let length = file.metadata().map_err(Fault::File)?.len();
        let mut head = [0; HEAD_BYTES as usize];
        if length < HEAD_BYTES + TAIL_BYTES || file.read_exact_at(&mut head, 0).is_err() {
            return Err(corrupt("it is too short"));
        }
        let [b'P', b'A', b'C', b'K', 0, 0, 0, 2 | 3, count @ ..] = head else {
            return Err(corrupt("it does not begin as a pack of version 2 or 3 does"));
        };
        let pack =
            Self { file, end: length - TAIL_BYTES, limits, work: Cell::new(0), cache: RefCell::default() };
        Ok((pack, u32::from_be_bytes(count)))
    }

    fn head(&self, at: u64) -> Result<Head> {
        let cut = || corrupt("an entry is cut off");
        let mut bytes = [0; 64];
        let most = usize::try_from(self.end.saturating_sub(at)).unwrap_or(usize::MAX).min(bytes.len());
        let count = self.file.read_at(bytes.get_mut(..most).unwrap_or_default(), at).map_err(Fault::File)?;
        let mut rest = bytes.get(..count).unwrap_or_default().iter().copied();
        let first = rest.next().ok_or_else(cut)?;
        let mut size = u64::from(first & 0x0f);
        let (mut byte, mut shift) = (first, 4);
        while byte & 0x80 != 0 {
            byte = rest.next().ok_or_else(cut)?;
            if shift > 53 {
                return Err(corrupt("an object of more than 2^60 bytes"));
            }
            size |= u64::from(byte & 0x7f) << shift;
            shift += 7;
        }
        let stored = match (first >> 4) & 7 {
            1 => Stored::Whole(Kind::Commit),
            2 => Stored::Whole(Kind::Tree),
            3 => Stored::Whole(Kind::Blob),
            4 => Stored::Whole(Kind::Tag),
            6 => {
                let mut byte = rest.next().ok_or_else(cut)?;
                let mut back = u64::from(byte & 0x7f);
                while byte & 0x80 != 0 {
                    byte = rest.next().ok_or_else(cut)?;
                    let more = back.checked_add(1).filter(|back| *back < 1 << 56).ok_or_else(cut)?;
                    back = more << 7 | u64::from(byte & 0x7f);
                }
                let base = at.checked_sub(back).filter(|base| back > 0 && *base >= HEAD_BYTES);
                Stored::Above(base.ok_or_else(|| corrupt("a delta whose base lies outside"))?)
            }
            7 => {
                let mut id = [0; 20];
                for byte in &mut id {
                    *byte = rest.next().ok_or_else(cut)?;
                }
                Stored::Over(GitId::new(id))
            }
            _ => return Err(corrupt("an entry of an unknown type")),
        };
        if size > self.limits.object_bytes_max {
            let most = self.limits.object_bytes_max;
            return Err(Fault::Refused(format!("an object of {size} bytes, at most {most} are accepted")));
        }
        Ok(Head { stored, size, data: at + (count - rest.len()) as u64 })
    }

    /// Counts bytes that are about to be made.
    fn spend(&self, bytes: u64) -> Result<()> {
        let spent = self.work.get().saturating_add(bytes);
        self.work.set(spent);
        if spent > self.limits.work_bytes_max {
            let most = self.limits.work_bytes_max;
            return Err(Fault::Refused(format!("the pack takes more than {most} bytes to rebuild")));
        }
        Ok(())
    }

    /// Decompresses an entry, part by part, and says where the next one begins.
    fn inflate(&self, head: &Head, take: &mut dyn FnMut(&[u8])) -> Result<u64> {
        self.spend(head.size)?;
        let from = From { file: &self.file, at: head.data, end: self.end, buffer: Vec::new(), used: 0 };
        let mut decoder = ZlibDecoder::new(from);
        let mut buffer = [0; 16 << 10];
        let mut bytes = 0_u64;
        loop {
            let count = match decoder.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) => return Err(corrupt(&format!("an entry cannot be decompressed: {error}"))),
            };
            bytes += count as u64;
            if bytes > head.size {
                return Err(corrupt("an entry has more bytes than it says"));
            }
            take(buffer.get(..count).unwrap_or_default());
        }
        if bytes != head.size {
            return Err(corrupt("an entry has fewer bytes than it says"));
        }
        Ok(head.data + decoder.total_in())
    }

    fn whole(&self, head: &Head) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.inflate(head, &mut |part| bytes.extend_from_slice(part))?;
        Ok(bytes)
    }

    /// The object at an offset.
    pub(super) fn object(&self, at: u64, index: &dyn Index) -> Result<(Kind, Rc<[u8]>)> {
        let mut chain = Vec::new();
        let mut here = at;
        let most = self.limits.delta_depth_max;
        let too_deep = || Fault::Refused(format!("an object is stored with more than {most} deltas"));
        let (kind, mut bytes, mut depth) = loop {
            if let Some((kind, bytes, depth)) = self.cache.borrow().objects.get(&here) {
                break (*kind, Rc::clone(bytes), *depth);
            }
            // A chain that is walked in vain makes nothing, and takes its time all the same.
            self.spend(HEAD_WORK)?;
            let head = self.head(here)?;
            let base = match head.stored {
                Stored::Whole(kind) => {
                    let bytes: Rc<[u8]> = self.whole(&head)?.into();
                    self.cache.borrow_mut().put(here, kind, &bytes, 0);
                    break (kind, bytes, 0);
                }
                Stored::Above(base) => base,
                Stored::Over(id) => index.offset(&id)?.ok_or(Fault::Missing(id))?,
            };
            chain.push((here, head));
            if chain.len() > most {
                return Err(too_deep());
            }
            here = base;
        };
        if depth + chain.len() > most {
            return Err(too_deep());
        }
        for (at, head) in chain.into_iter().rev() {
            depth += 1;
            let delta = self.whole(&head)?;
            let result = delta::apply(&bytes, &delta, self.limits.object_bytes_max)?;
            self.spend(result.len() as u64)?;
            bytes = result.into();
            self.cache.borrow_mut().put(at, kind, &bytes, depth);
        }
        Ok((kind, bytes))
    }
}

/// A pack that came over the network, with every object's id.
pub(super) struct Pack {
    file: PackFile,
    ids: HashMap<GitId, u64>,
}

impl Pack {
    /// Reads a whole pack: finds its entries and computes each object's id.
    pub(super) fn scan(file: File, limits: GitLimits, stop: &dyn Fn() -> bool) -> Result<Self> {
        let (file, count) = PackFile::open(file, limits)?;
        if count > limits.objects_max {
            let most = limits.objects_max;
            return Err(Fault::Refused(format!("the pack has {count} objects, at most {most} are accepted")));
        }
        let mut pack = Self { file, ids: HashMap::new() };
        let mut deltas = Vec::new();
        let mut at = HEAD_BYTES;
        for _ in 0..count {
            if stop() {
                return Err(Fault::Stopped);
            }
            let head = pack.file.head(at)?;
            at = match head.stored {
                Stored::Whole(kind) => {
                    let mut hasher = Hasher::new(kind, head.size);
                    let next = pack.file.inflate(&head, &mut |part| hasher.update(part))?;
                    pack.ids.insert(sound(hasher.finish())?, at);
                    next
                }
                Stored::Above(_) | Stored::Over(_) => {
                    deltas.push(at);
                    pack.file.inflate(&head, &mut |_| ())?
                }
            };
        }
        if at != pack.file.end {
            return Err(corrupt("bytes follow its last object"));
        }
        pack.resolve(deltas, stop)?;
        Ok(pack)
    }

    /// A delta over an object that is named may come before that one is known: until nothing is found any more.
    fn resolve(&mut self, mut deltas: Vec<u64>, stop: &dyn Fn() -> bool) -> Result<()> {
        while !deltas.is_empty() {
            let before = deltas.len();
            let mut later = Vec::new();
            let mut missing = None;
            for at in deltas {
                if stop() {
                    return Err(Fault::Stopped);
                }
                match self.file.object(at, &self.ids) {
                    Ok((kind, bytes)) => {
                        self.ids.insert(sound(id_of(kind, &bytes))?, at);
                    }
                    Err(Fault::Missing(id)) => {
                        missing = Some(id);
                        later.push(at);
                    }
                    Err(fault) => return Err(fault),
                }
            }
            if let Some(id) = missing.filter(|_| later.len() == before) {
                return Err(corrupt(&format!("the base {id} of a delta is not in it")));
            }
            deltas = later;
        }
        Ok(())
    }

    pub(super) fn read(&self, id: &GitId) -> Result<(Kind, Rc<[u8]>)> {
        let at = self.ids.get(id).ok_or(Fault::Missing(*id))?;
        self.file.object(*at, &self.ids)
    }
}

fn sound(id: Option<GitId>) -> Result<GitId> {
    id.ok_or_else(|| Fault::Refused("an object is one half of a SHA-1 collision".to_owned()))
}
