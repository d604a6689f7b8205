//! The logs of a job as files, held against what was signed of them.

use crate::local::Place;
use ampoule_spec::{LogChunk, StepReport, Stream};
use aws_lc_rs::digest::{Context, SHA256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};

/// A stream of a step.
struct StreamFile {
    name: String,
    file: BufWriter<File>,
    context: Context,
    bytes: u64,
    expected: ampoule_spec::LogReport,
}

/// Each stream, and both of a step in the order in which they came: `<n>-<step>.stdout`, `.stderr`, `.log`.
pub(super) struct LogFiles {
    streams: BTreeMap<(u32, Stream), StreamFile>,
    both: BTreeMap<u32, BufWriter<File>>,
}

impl LogFiles {
    pub(super) fn create(steps: &[StepReport], dir: &Place) -> io::Result<Self> {
        let mut files = Self { streams: BTreeMap::new(), both: BTreeMap::new() };
        for (at, step) in (0_u32..).zip(steps) {
            for log in &step.logs {
                let name = format!("{at}-{}.{}", step.name, log.stream.as_str());
                let file = BufWriter::new(dir.create(&name, 0o644)?);
                let (context, expected) = (Context::new(&SHA256), log.clone());
                files
                    .streams
                    .insert((at, log.stream), StreamFile { name, file, context, bytes: 0, expected });
            }
            if !step.logs.is_empty() {
                let file = dir.create(&format!("{at}-{}.log", step.name), 0o644)?;
                files.both.insert(at, BufWriter::new(file));
            }
        }
        Ok(files)
    }

    pub(super) fn take(&mut self, chunk: &LogChunk) -> io::Result<()> {
        if let Some(stream) = self.streams.get_mut(&(chunk.step, chunk.stream)) {
            stream.context.update(&chunk.bytes);
            stream.bytes = stream.bytes.saturating_add(chunk.bytes.len() as u64);
            stream.file.write_all(&chunk.bytes)?;
        }
        match self.both.get_mut(&chunk.step) {
            Some(file) => file.write_all(&chunk.bytes),
            None => Ok(()),
        }
    }

    /// Makes them durable; names the first that is not what was signed. Of a log whose middle was cut the length is known.
    pub(super) fn finish(self) -> io::Result<Option<String>> {
        let mut other = None;
        for stream in self.streams.into_values() {
            let expected = stream.expected;
            let is_whole = expected.cut_bytes == 0;
            let same = stream.bytes == expected.bytes.saturating_sub(expected.cut_bytes)
                && (!is_whole || stream.context.finish().as_ref() == expected.sha256.as_bytes());
            if !same && other.is_none() {
                other = Some(stream.name);
            }
            stream.file.into_inner().map_err(|e| e.into_error())?.sync_all()?;
        }
        for file in self.both.into_values() {
            file.into_inner().map_err(|e| e.into_error())?.sync_all()?;
        }
        Ok(other)
    }
}
