//! The journal's promises: torn tails, damage, forged frames, failing disks.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use ampoule_journal::{
    Frame, HEADER_BYTES, Medium, Next, PAYLOAD_BYTES_MAX, ReadError, Reader, WriteError, Writer,
};
use std::fs::{File, OpenOptions};
use std::io::{self, Cursor, Read};
use std::path::PathBuf;

/// A directory of this test's own, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ampoule-journal-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn open(&self) -> File {
        OpenOptions::new().read(true).append(true).create(true).open(self.path()).unwrap()
    }

    fn path(&self) -> PathBuf {
        self.0.join("events")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[derive(Default)]
struct Memory {
    bytes: Vec<u8>,
    writes: usize,
    short_by: usize,
    cut_fails: bool,
    full: bool,
    sync_fails: bool,
}

impl Medium for Memory {
    fn write_once(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writes += 1;
        if self.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let count = bytes.len() - self.short_by;
        self.bytes.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.sync_fails { Err(io::Error::other("the disk is gone")) } else { Ok(()) }
    }

    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        if self.cut_fails {
            return Err(io::Error::other("the disk is gone"));
        }
        self.bytes.truncate(usize::try_from(bytes).unwrap());
        Ok(())
    }
}

impl Medium for &mut Memory {
    fn write_once(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Memory::write_once(self, bytes)
    }
    fn sync(&mut self) -> io::Result<()> {
        Memory::sync(self)
    }
    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        Memory::cut(self, bytes)
    }
}

const RECORDS: [(u8, &[u8]); 4] =
    [(1, b"{\"event\":\"admitted\"}"), (2, b""), (2, &[0; 40]), (255, b"AMPJ tail")];

fn journal() -> Vec<u8> {
    let mut memory = Memory::default();
    let mut writer = Writer::on(&mut memory);
    for (kind, payload) in RECORDS {
        writer.append(kind, payload).unwrap();
    }
    assert_eq!(memory.writes, RECORDS.len(), "one write a record");
    memory.bytes
}

fn read(bytes: &[u8]) -> (Vec<Frame>, Result<Next, ReadError>) {
    let mut reader = Reader::new(bytes);
    let mut frames = Vec::new();
    loop {
        match reader.next_frame() {
            Ok(Next::Frame(frame)) => frames.push(frame),
            end => return (frames, end),
        }
    }
}

#[test]
fn frames_come_back_as_they_were_appended() {
    let bytes = journal();
    let (frames, end) = read(&bytes);
    let got: Vec<_> = frames.iter().map(|f| (f.kind, f.payload.as_slice())).collect();
    assert_eq!(got, RECORDS);
    assert!(matches!(end, Ok(Next::End { offset }) if offset == bytes.len() as u64));
}

#[test]
fn format_first_frame_is_byte_for_byte_as_documented() {
    let mut memory = Memory::default();
    Writer::on(&mut memory).append(1, b"hi").unwrap();
    let hex: String = memory.bytes.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, GOLDEN);
}

// docs/formats.md, "Journal"
const GOLDEN: &str = "414d504a020000000174f5287f930f85ca6869";

#[test]
fn tail_torn_at_every_byte_is_a_torn_tail_there() {
    let bytes = journal();
    let (frames, _) = read(&bytes);
    for length in 0..bytes.len() {
        let whole: Vec<_> = frames.iter().filter(|f| f.end <= length as u64).collect();
        let boundary = whole.last().map_or(0, |f| f.end);
        let (got, end) = read(&bytes[..length]);
        assert_eq!(got.iter().collect::<Vec<_>>(), whole, "cut at {length}");
        match end.unwrap() {
            Next::End { offset } => assert_eq!((offset, boundary), (length as u64, length as u64)),
            Next::TornTail { offset } => assert_eq!(offset, boundary, "cut at {length}"),
            Next::Frame(_) => unreachable!(),
        }
    }
}

#[test]
fn bit_flipped_anywhere_is_damage_at_that_frame() {
    let bytes = journal();
    let (frames, _) = read(&bytes);
    for at in 0..bytes.len() {
        let hit = frames.iter().position(|f| f.end > at as u64).unwrap();
        for bit in 0..8 {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << bit;
            let (got, end) = read(&bad);
            assert_eq!(got, frames[..hit], "bit {bit} of byte {at}");
            match end {
                Err(ReadError::Damaged { offset }) => assert_eq!(offset, frames[hit].offset),
                other => panic!("bit {bit} of byte {at}: {other:?}"),
            }
        }
    }
}

#[test]
fn damage_is_reported_again_and_again() {
    for at in [0, 9, 20] {
        let mut bytes = journal();
        bytes[at] ^= 1;
        let mut reader = Reader::new(bytes.as_slice());
        for _ in 0..3 {
            assert!(matches!(reader.next_frame(), Err(ReadError::Damaged { offset: 0 })));
        }
    }
}

#[test]
fn payload_with_framing_bytes_adds_no_record() {
    let forged = journal();
    let mut memory = Memory::default();
    let mut writer = Writer::on(&mut memory);
    writer.append(2, &forged).unwrap();
    writer.append(2, &forged[3..]).unwrap();
    let (frames, end) = read(&memory.bytes);
    assert_eq!(frames.len(), 2);
    assert_eq!(frames[0].payload, forged);
    assert!(matches!(end, Ok(Next::End { .. })));
}

#[test]
fn zeros_at_the_end_are_a_torn_tail_and_before_the_end_damage() {
    let good = journal();
    for zeros in [1, HEADER_BYTES, HEADER_BYTES + 1, 100_000] {
        let mut bytes = good.clone();
        bytes.resize(good.len() + zeros, 0);
        let mut reader = Reader::new(bytes.as_slice());
        for _ in 0..RECORDS.len() {
            assert!(matches!(reader.next_frame(), Ok(Next::Frame(_))));
        }
        for _ in 0..2 {
            assert!(
                matches!(reader.next_frame(), Ok(Next::TornTail { offset }) if offset == good.len() as u64)
            );
        }
        if zeros >= HEADER_BYTES {
            bytes.extend_from_slice(&good);
            assert!(
                matches!(read(&bytes).1, Err(ReadError::Damaged { offset }) if offset == good.len() as u64)
            );
        }
    }
}

#[test]
fn payload_at_the_limit_is_taken_and_beyond_it_refused() {
    let mut memory = Memory::default();
    let mut writer = Writer::on(&mut memory);
    let payload = vec![7; PAYLOAD_BYTES_MAX + 1];
    assert!(matches!(writer.append(1, &payload), Err(WriteError::Oversize { .. })));
    assert_eq!(writer.append(1, &payload[1..]).unwrap(), 0);
    assert_eq!(memory.writes, 1);
    assert_eq!(read(&memory.bytes).0[0].payload.len(), PAYLOAD_BYTES_MAX);
}

#[test]
fn length_beyond_the_limit_is_damage_without_an_allocation() {
    // A header that is right in itself but announces 4 GiB cannot be made by the writer; any change of the
    // length breaks the first CRC before anything is read for it.
    let mut bytes = journal();
    bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(read(&bytes).1, Err(ReadError::Damaged { offset: 0 })));
}

/// Gives a growing file one byte a read, and an end of file between.
struct Trickle(Cursor<Vec<u8>>, bool);

impl Read for Trickle {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 = !self.1;
        if self.1 { Ok(0) } else { self.0.read(&mut buffer[..1]) }
    }
}

#[test]
fn follow_growing_file_gives_every_frame_once() {
    let bytes = journal();
    let mut reader = Reader::new(Trickle(Cursor::new(bytes.clone()), false));
    let mut frames = Vec::new();
    for _ in 0..bytes.len() * 3 {
        if let Next::Frame(frame) = reader.next_frame().unwrap() {
            frames.push(frame);
        }
    }
    assert_eq!(frames, read(&bytes).0);
}

#[test]
fn from_offset_reads_on_where_a_frame_ended() {
    let bytes = journal();
    let (frames, _) = read(&bytes);
    let mut reader = Reader::from_offset(Cursor::new(bytes), frames[1].end).unwrap();
    assert_eq!(reader.next_frame().unwrap().frame().as_ref(), Some(&frames[2]));
}

#[test]
fn sync_that_failed_closes_the_writer() {
    let mut memory = Memory { sync_fails: true, ..Memory::default() };
    let mut writer = Writer::on(&mut memory);
    writer.append(1, b"a").unwrap();
    assert!(matches!(writer.sync(), Err(WriteError::Broken(_))));
    assert!(matches!(writer.sync(), Err(WriteError::Unusable)));
    assert!(matches!(writer.append(1, b"b"), Err(WriteError::Unusable)));
    assert_eq!(memory.writes, 1);
}

#[test]
fn sync_of_a_real_descriptor_that_cannot_sync_closes_the_writer() {
    let null = OpenOptions::new().append(true).open("/dev/null").unwrap();
    let mut writer = Writer::create(null).unwrap();
    writer.append(1, b"a").unwrap();
    assert!(matches!(writer.sync(), Err(WriteError::Broken(_))));
    assert!(matches!(writer.append(1, b"b"), Err(WriteError::Unusable)));
}

#[test]
fn short_write_leaves_no_half_frame_behind() {
    for short_by in 1..HEADER_BYTES + 3 {
        let mut memory = Memory::default();
        Writer::on(&mut memory).append(1, b"before").unwrap();
        let before = memory.bytes.clone();
        memory.short_by = short_by;
        let mut writer = Writer::on(Offset(&mut memory, before.len() as u64));
        assert!(matches!(writer.append(1, b"ab"), Err(WriteError::Full(_))));
        assert_eq!(memory.bytes, before);
        memory.cut_fails = true;
        let mut writer = Writer::on(Offset(&mut memory, before.len() as u64));
        assert!(matches!(writer.append(1, b"ab"), Err(WriteError::Broken(_))));
        assert!(matches!(writer.append(1, b"ab"), Err(WriteError::Unusable)));
    }
}

/// A medium that begins at an offset of another.
struct Offset<'a>(&'a mut Memory, u64);

impl Medium for Offset<'_> {
    fn write_once(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_once(bytes)
    }
    fn sync(&mut self) -> io::Result<()> {
        self.0.sync()
    }
    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        self.0.cut(self.1 + bytes)
    }
}

#[test]
fn full_disk_is_survived_when_room_comes_back() {
    let mut memory = Memory { full: true, ..Memory::default() };
    assert!(matches!(Writer::on(&mut memory).append(1, b"a"), Err(WriteError::Full(_))));
    assert!(memory.bytes.is_empty());
}

#[test]
fn resume_cuts_a_torn_tail_at_every_byte_and_goes_on() {
    let scratch = Scratch::new("resume");
    let bytes = journal();
    let (frames, _) = read(&bytes);
    for length in 0..=bytes.len() {
        std::fs::write(scratch.path(), &bytes[..length]).unwrap();
        let whole = frames.iter().filter(|f| f.end <= length as u64).count();
        let boundary = frames[..whole].last().map_or(0, |f| f.end);
        let mut resumed = Writer::resume(scratch.open()).unwrap();
        assert_eq!((resumed.frames, resumed.cut_bytes), (whole as u64, length as u64 - boundary));
        assert_eq!(resumed.writer.append(9, b"on").unwrap(), boundary);
        resumed.writer.sync().unwrap();
        let (got, end) = read(&std::fs::read(scratch.path()).unwrap());
        assert!(matches!(end, Ok(Next::End { .. })));
        assert_eq!(got.len(), whole + 1);
    }
}

#[test]
fn resume_damaged_journal_is_refused_and_left_alone() {
    let scratch = Scratch::new("damaged");
    let mut bytes = journal();
    bytes[5] ^= 4;
    std::fs::write(scratch.path(), &bytes).unwrap();
    assert!(matches!(Writer::resume(scratch.open()), Err(ReadError::Damaged { offset: 0 })));
    assert_eq!(std::fs::read(scratch.path()).unwrap(), bytes);
}

#[test]
fn create_on_a_file_with_content_is_refused() {
    let scratch = Scratch::new("create");
    Writer::create(scratch.open()).unwrap().append(1, b"a").unwrap();
    assert!(matches!(Writer::create(scratch.open()), Err(WriteError::NotEmpty)));
}
