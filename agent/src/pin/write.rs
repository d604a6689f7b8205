//! Replaces a file as a whole, if it is still what was read.

use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Error, Read, Result, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

/// Replaces what is `before` in the file at `path` by `after`. Owner and mode stay; a link stays one, and what it leads to is
/// replaced.
///
/// The two files change places, and what was there is looked at once more before it is removed: so what somebody else has
/// written in the meantime is never lost.
pub(super) fn replace(path: &Path, before: &[u8], after: &[u8]) -> Result<()> {
    let path = fs::canonicalize(path)?;
    let dir = path.parent().ok_or_else(|| Error::other("it lies nowhere"))?;
    let meta = fs::metadata(&path)?;
    let aside = dir.join(format!(".ampoule-pin-{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
    let outcome = (|| {
        file.write_all(after)?;
        let made = file.metadata()?;
        if (made.uid(), made.gid()) != (meta.uid(), meta.gid()) {
            fchown(&file, Some(meta.uid()), Some(meta.gid()))?;
        }
        file.set_permissions(Permissions::from_mode(meta.mode() & 0o7777))?;
        file.sync_all()?;
        same(&path, before)?;
        renameat_with(CWD, &aside, CWD, &path, RenameFlags::EXCHANGE)?;
        same(&aside, before).inspect_err(|_| {
            // Back to what they wrote.
            let _ = renameat_with(CWD, &aside, CWD, &path, RenameFlags::EXCHANGE);
        })?;
        File::open(dir)?.sync_all()
    })();
    let _ = fs::remove_file(&aside);
    outcome
}

fn same(path: &Path, before: &[u8]) -> Result<()> {
    let mut now = Vec::new();
    File::open(path)?.take(before.len() as u64 + 1).read_to_end(&mut now)?;
    if now == before {
        return Ok(());
    }
    Err(Error::other("it has changed meanwhile and was left alone; run pin again"))
}
