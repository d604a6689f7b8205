//! A daemon's audit log, read as a stranger with its key would.

use crate::lab::Lab;
use crate::procs;
use anyhow::{Context, Result};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

/// Every entry of a log that verifies. It has less than 256,000.
pub(crate) fn entries(lab: &Lab, dir: &Path) -> Result<Vec<Value>> {
    procs::eventually(SOON, "what is pending is in the log's tiles", || {
        fs::metadata(dir.join("pending")).is_ok_and(|pending| pending.len() == 0)
    })?;
    let verify = lab.ampoule().args(["audit", "verify"]).arg(dir).arg("--key").arg(dir.join("key.pub"));
    verify.end()?.exits(0)?;
    let mut entries = Vec::new();
    for number in 0..1000 {
        let (full, part) = (format!("tile/entries/{number:03}"), format!("tile/entries/{number:03}.p"));
        let path = match fs::read_dir(dir.join(part)) {
            _ if dir.join(&full).is_file() => dir.join(full),
            Ok(mut widths) => widths.next().context("an empty tile")??.path(),
            Err(_) => break,
        };
        let bytes = fs::read(path)?;
        let mut rest = bytes.as_slice();
        while let Some((length, after)) = rest.split_first_chunk() {
            let (entry, after) =
                after.split_at_checked(u16::from_be_bytes(*length).into()).context("an entry is cut")?;
            entries.push(serde_json::from_slice(entry)?);
            rest = after;
        }
    }
    Ok(entries)
}
