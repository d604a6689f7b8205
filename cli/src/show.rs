//! Showing text to people without letting it drive their terminal or the system that reads their log.

use crate::bar;
use ampoule_evidence::escape;
use ampoule_spec::{LogChunk, Stream};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// A longer line of a step is broken, in bytes.
const LINE_BYTES_MAX: usize = 8 << 10;

/// One line to stderr. A reader that is gone is not an error.
pub(crate) fn line(text: &str) {
    escaped(&escape(text));
}

/// One line to stderr that is escaped already.
pub(crate) fn escaped(text: &str) {
    bar::aside(|| {
        let _ = writeln!(io::stderr().lock(), "{text}");
    });
}

/// Whether stdout took everything. A reader that went away has had enough; any other failure lost data.
pub(crate) fn is_written() -> bool {
    keep(io::stdout().lock().flush());
    !LOST.load(Ordering::Relaxed)
}

static LOST: AtomicBool = AtomicBool::new(false);

fn keep(written: io::Result<()>) {
    if written.is_err_and(|error| error.kind() != io::ErrorKind::BrokenPipe) {
        LOST.store(true, Ordering::Relaxed);
    }
}

/// One line to stdout.
pub(crate) fn data(text: &str) {
    keep(writeln!(io::stdout().lock(), "{text}"));
}

/// One JSON object to stdout. JSON escapes only the oldest control characters by itself.
pub(crate) fn json(value: &Value) {
    let mut line = String::new();
    for letter in value.to_string().chars() {
        if letter.is_ascii_graphic() || letter == ' ' || letter.is_alphanumeric() {
            line.push(letter);
        } else {
            let mut units = [0; 2];
            for unit in letter.encode_utf16(&mut units) {
                line.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    data(&line);
}

/// Bytes to stdout.
pub(crate) fn bytes(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    keep(out.write_all(bytes).and_then(|()| out.flush()));
}

/// Step output as prefixed, escaped lines.
#[derive(Debug, Default)]
pub(crate) struct LogLines {
    names: BTreeMap<u32, String>,
    open: BTreeMap<(u32, Stream), Vec<u8>>,
}

impl LogLines {
    /// Names a step, for the prefix.
    pub(crate) fn name(&mut self, step: u32, name: String) {
        self.names.insert(step, name);
    }

    /// Takes bytes and gives the lines that are complete.
    pub(crate) fn take(&mut self, chunk: &LogChunk) -> Vec<String> {
        let open = self.open.entry((chunk.step, chunk.stream)).or_default();
        let mut lines = Vec::new();
        for byte in &chunk.bytes {
            if *byte == b'\n' || open.len() >= LINE_BYTES_MAX {
                lines.push(std::mem::take(open));
            }
            if *byte != b'\n' {
                open.push(*byte);
            }
        }
        lines.iter().map(|line| self.prefixed(chunk.step, line)).collect()
    }

    /// Gives what a step left without a line feed.
    pub(crate) fn finish(&mut self, step: u32) -> Vec<String> {
        let mut lines = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some(line) = self.open.remove(&(step, stream)).filter(|line| !line.is_empty()) {
                lines.push(self.prefixed(step, &line));
            }
        }
        lines
    }

    /// Gives what every step left without a line feed.
    pub(crate) fn rest(&mut self) -> Vec<String> {
        let open: BTreeSet<u32> = self.open.keys().map(|(step, _)| *step).collect();
        open.into_iter().flat_map(|step| self.finish(step)).collect()
    }

    fn prefixed(&self, step: u32, line: &[u8]) -> String {
        let name = self.names.get(&step).map_or("step", String::as_str);
        // A carriage return before the line feed is how some tools end lines; it says nothing.
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let text = String::from_utf8_lossy(line);
        // Tabs are ordinary in the output of compilers and harmless on a terminal.
        let parts: Vec<String> = text.split('\t').map(escape).collect();
        format!("{name} | {}", defused(&parts.join("\t")))
    }
}

/// Breaks what some CI systems take for a command at any place of a line (`##[`, `##vso[`, `##teamcity[`), however it is
/// spelt. Those that look only at a line's beginning (`::`) are stopped by the prefix.
fn defused(text: &str) -> String {
    let Some(last) = text.rfind('[') else { return text.to_owned() };
    let (before, after) = text.split_at(last);
    let mut out = String::with_capacity(text.len());
    for letter in before.chars() {
        if letter == '#' && out.ends_with('#') {
            out.push(' ');
        }
        out.push(letter);
    }
    out + after
}

#[cfg(test)]
mod tests {
    use super::*;
    use ampoule_spec::UnixNanos;

    fn chunk(bytes: &[u8]) -> LogChunk {
        LogChunk { step: 0, stream: Stream::Stdout, at: UnixNanos(0), offset: 0, bytes: bytes.to_vec() }
    }

    #[test]
    fn lines_are_prefixed_and_joined_across_chunks() {
        let mut lines = LogLines::default();
        lines.name(0, "build".to_owned());
        assert_eq!(lines.take(&chunk(b"one\ntw")), ["build | one"]);
        assert_eq!(lines.take(&chunk(b"o\n")), ["build | two"]);
        assert_eq!(lines.take(&chunk(b"rest")), Vec::<String>::new());
        assert_eq!(lines.finish(0), ["build | rest"]);
    }

    #[test]
    fn control_bytes_and_directives_have_no_effect() {
        let mut lines = LogLines::default();
        for bytes in [
            &b"\x1b]0;title\x07\n"[..],
            b"\x9b31m\n",
            b"a\rb\n",
            b"::add-mask::x\n",
            b"##vso[task.setvariable]x\n",
            b"##teamcity[x]\n",
            b"##[error]x\n",
            "\u{202e}gpj.exe\n".as_bytes(),
        ] {
            let shown = lines.take(&chunk(bytes)).concat();
            assert!(!shown.chars().any(|c| (c.is_control() && c != '\t') || c == '\u{202e}'), "{shown:?}");
            assert!(shown.starts_with("step | ") && !shown.contains("##"), "{shown:?}");
        }
    }

    /// What CI systems, terminals and readers of logs have been driven by.
    const CORPUS: &[&[u8]] = &[
        b"::add-mask::secret",
        b"  ::set-output name=x::y",
        b"::stop-commands::token",
        b"##[add-mask]x",
        b"text ##[error]x",
        b"##vso[task.setvariable variable=x]y",
        b"text ##VSO[task.complete]y",
        b"###vso[task.complete]y",
        "##v\u{ad}so[task.complete]y".as_bytes(),
        "#\u{200b}#vso[task.complete]y".as_bytes(),
        b"##teamcity[buildStatus status='SUCCESS']",
        b"\x1b[0Ksection_start:0:x\r\x1b[0Kheader",
        b"\x1b]0;title\x07\x1b]8;;http://x\x07link",
        b"\x1b[2J\x1b[H\x1bc\x9b2J",
        b"build ok\rstep | all good",
        b"progress\x08\x08\x08\x08done",
        b"--- expanded group",
        b"\x00\xff\xfe\x80",
        "\u{202e}gpj.exe\u{2066}".as_bytes(),
        b"\\u{1b}[2J",
    ];

    #[test]
    fn corpus_of_ci_directives_has_no_effect_wherever_chunks_and_long_lines_end() {
        for attack in CORPUS {
            for before in
                [0, 1, LINE_BYTES_MAX - 3, LINE_BYTES_MAX - 1, LINE_BYTES_MAX, 2 * LINE_BYTES_MAX + 1]
            {
                let line = [&vec![b'x'; before], *attack, &b"\n"[..]].concat();
                let mut whole = LogLines::default();
                let shown = whole.take(&chunk(&line));
                for text in &shown {
                    assert!(text.starts_with("step | "), "{text:?}");
                    assert!(!text.chars().any(char::is_control), "{text:?}");
                    let says = text.find("##").is_some_and(|at| text.get(at..).unwrap().contains('['));
                    assert!(!says, "{text:?}");
                    assert!(text.len() < 8 * LINE_BYTES_MAX);
                }
                let mut bytewise = LogLines::default();
                let parts: Vec<_> = line.iter().flat_map(|byte| bytewise.take(&chunk(&[*byte]))).collect();
                assert_eq!(parts, shown);
            }
        }
    }

    #[test]
    fn endless_line_is_broken() {
        let mut lines = LogLines::default();
        let shown = lines.take(&chunk(&vec![b'x'; 3 * LINE_BYTES_MAX]));
        assert_eq!(shown.len(), 2);
    }
}
