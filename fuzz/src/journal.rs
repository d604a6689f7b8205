//! A journal that somebody damaged: read without a panic, cut only at a torn tail, and good to write on.

use crate::place;
use ampoule_journal::{Next, Reader, Writer};
use std::fs::OpenOptions;
use std::io::Cursor;
use std::path::Path;

/// Reads the bytes as a journal, resumes it and appends.
pub fn run(data: &[u8]) {
    let mut reader = Reader::new(Cursor::new(data));
    let mut frames = 0_usize;
    while let Ok(Next::Frame(frame)) = reader.next_frame() {
        frames += 1;
        assert!(frame.payload.len() <= data.len(), "a frame larger than the journal");
        assert!(frames <= data.len() / 17 + 1, "more frames than fit");
    }
    place::with(|place| write_on(&place.path("journal"), data));
}

fn write_on(path: &Path, data: &[u8]) {
    std::fs::write(path, data).unwrap();
    let file = OpenOptions::new().read(true).append(true).open(path).unwrap();
    let resumed = Writer::resume(file);
    if let Ok(mut resumed) = resumed {
        resumed.writer.append(7, b"after").expect("a journal that was resumed takes a frame");
        let bytes = std::fs::read(path).unwrap();
        let mut reader = Reader::new(Cursor::new(&bytes));
        let mut last = None;
        while let Ok(Next::Frame(frame)) = reader.next_frame() {
            last = Some((frame.end, frame.kind, frame.payload));
        }
        assert_eq!(last, Some((bytes.len() as u64, 7, b"after".to_vec())), "what was appended is not read");
    } else {
        assert_eq!(std::fs::read(path).unwrap(), data, "a damaged journal was changed");
    }
    std::fs::remove_file(path).unwrap();
}
