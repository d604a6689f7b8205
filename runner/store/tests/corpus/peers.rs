//! How GNU tar and bsdtar (libarchive) read an archive.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// An entry as any reader says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// `d`, `f` or `l`, or a device's letter.
    pub(crate) kind: char,
    pub(crate) bytes: u64,
    pub(crate) target: Vec<u8>,
    /// Of files: whether the owner may execute it.
    pub(crate) executable: bool,
}

impl Entry {
    pub(crate) fn directory() -> Self {
        Self { kind: 'd', bytes: 0, target: Vec::new(), executable: false }
    }
}

/// What a reader found: names without `.` and slashes at their ends. Hard links are what they link to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    pub(crate) entries: BTreeMap<Vec<u8>, Entry>,
    /// Files in the order of the archive, hard links left out.
    pub(crate) files: Vec<Vec<u8>>,
}

/// A program that reads archives.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    program: &'static str,
    list: &'static [&'static str],
    /// Where the name begins in a line of its list.
    name_of: fn(&str) -> Option<(&str, u64, &str)>,
}

pub(crate) const PEERS: [Peer; 2] = [
    Peer {
        name: "GNU tar",
        program: "tar",
        list: &["--numeric-owner", "--full-time", "--quoting-style=c", "-tvf"],
        name_of: gnu_line,
    },
    Peer { name: "bsdtar", program: "bsdtar", list: &["--numeric-owner", "-tvf"], name_of: bsd_line },
];

impl Peer {
    /// That the program is there: a comparison with nobody would be no test.
    pub(crate) fn demand(&self) {
        let said = Command::new(self.program).arg("--version").output();
        let there = said.is_ok_and(|said| said.status.success());
        assert!(there, "{} is missing: cargo xtask test installs it (tar, libarchive-tools)", self.program);
    }

    fn run(&self, args: &[&str], archive: &Path) -> Output {
        let mut command = Command::new(self.program);
        // Names as bytes: nothing is converted.
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("LC_ALL", "C.UTF-8").env("TZ", "UTC0").stdin(Stdio::null());
        if self.program == "tar" && std::fs::read(archive).is_ok_and(|b| is_zstd(&b)) {
            // It looks for a frame alone, and not for a skippable one before it.
            command.arg("--zstd");
        }
        command.args(args).arg(archive).output().unwrap()
    }

    /// Its list of an archive; why not, if it complains of anything.
    pub(crate) fn list(&self, archive: &Path) -> Result<Reading, String> {
        let said = self.run(self.list, archive);
        if !said.status.success() {
            return Err(String::from_utf8_lossy(&said.stderr).trim().to_owned());
        }
        let text = latin(&said.stdout);
        let mut reading = Reading::default();
        for line in text.lines() {
            let (mode, bytes, rest) = (self.name_of)(line).ok_or_else(|| format!("an odd line: {line}"))?;
            let kind = match mode.chars().next().unwrap_or('?') {
                // Bsdtar's letter for a hard link is that of the mode, where the mode has one.
                '-' if bytes == 0 && rest.contains(" link to ") => 'h',
                kind => kind,
            };
            let (name, target) = match kind {
                'l' => rest.split_once(" -> ").ok_or_else(|| format!("no target: {line}"))?,
                'h' => rest.split_once(" link to ").ok_or_else(|| format!("no target: {line}"))?,
                _ => (rest, ""),
            };
            let (name, target) = (normal(&unescape(name)), unescape(target));
            let executable = matches!(mode.as_bytes().get(3), Some(b'x' | b's'));
            let entry = match kind {
                'h' => {
                    let linked = reading.entries.get(&normal(&target)).cloned();
                    linked.ok_or_else(|| format!("a hard link to nothing: {line}"))?
                }
                'd' => Entry::directory(),
                '-' => Entry { kind: 'f', bytes, target, executable },
                kind => Entry { kind, bytes: 0, target, executable: false },
            };
            if kind == '-' {
                reading.files.push(name.clone());
            }
            reading.entries.insert(name, entry);
        }
        Ok(reading)
    }

    /// The bytes of all files, one behind the other.
    pub(crate) fn bytes(&self, archive: &Path) -> Result<Vec<u8>, String> {
        let said = self.run(&["-xOf"], archive);
        if said.status.success() {
            Ok(said.stdout)
        } else {
            Err(String::from_utf8_lossy(&said.stderr).into_owned())
        }
    }
}

pub(crate) fn is_zstd(bytes: &[u8]) -> bool {
    matches!(bytes, [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// Bytes as characters of the same number, so that none is lost.
fn latin(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// `-rw-r--r-- 0/0 1 2023-11-14 22:13:20 "a"`
fn gnu_line(line: &str) -> Option<(&str, u64, &str)> {
    let (head, name) = line.split_once(" \"")?;
    let mut words = head.split_ascii_whitespace();
    let mode = words.next()?;
    let bytes = words.nth(1)?.parse().unwrap_or(0);
    // With the quote that the name begins with.
    Some((mode, bytes, line.get(head.len() + 1..)?)).filter(|_| !name.is_empty())
}

/// `-rw-r--r--  0 0      0           1 Nov 14  2023 a`
fn bsd_line(line: &str) -> Option<(&str, u64, &str)> {
    let mut rest = line;
    let mut words = Vec::new();
    for _ in 0..8 {
        rest = rest.trim_start_matches(' ');
        let (word, behind) = rest.split_at(rest.find(' ')?);
        words.push(word);
        rest = behind;
    }
    Some((words[0], words[4].parse().unwrap_or(0), rest.get(1..)?))
}

/// Takes quotes and backslashes away.
fn unescape(text: &str) -> Vec<u8> {
    let text = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(text);
    let bytes: Vec<u8> = text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        if bytes[at] != b'\\' || at + 1 == bytes.len() {
            out.push(bytes[at]);
            at += 1;
            continue;
        }
        let octal = bytes.get(at + 1..at + 4).filter(|d| d.iter().all(|d| (b'0'..=b'7').contains(d)));
        if let Some(digits) = octal {
            let value = digits.iter().fold(0_u32, |value, digit| value * 8 + u32::from(digit - b'0'));
            out.push(u8::try_from(value).unwrap());
            at += 4;
            continue;
        }
        out.push(match bytes[at + 1] {
            b'a' => 7,
            b'b' => 8,
            b't' => 9,
            b'n' => 10,
            b'v' => 11,
            b'f' => 12,
            b'r' => 13,
            other => other,
        });
        at += 2;
    }
    out
}

/// A name without `.`, empty components and slashes at its ends.
pub(crate) fn normal(name: &[u8]) -> Vec<u8> {
    let parts = name.split(|b| *b == b'/').filter(|p| !matches!(*p, b"" | b"."));
    parts.collect::<Vec<_>>().join(&b'/')
}
