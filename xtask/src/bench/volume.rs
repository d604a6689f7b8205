//! A new file system for each run.
//!
//! On a file system in use the same work takes one time or three: ext4 passes over inodes that were freed in the last
//! minutes one by one, and the run before has just freed many.

use crate::shell;
use anyhow::{Context, Result};
use rustix::fs::sync;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Room for the largest image, by every contender.
const BYTES: u64 = 12 << 30;

/// An ext4 on a loop device over a sparse file. What is written to it goes to the disk: the host caches it once.
pub(crate) struct Volume {
    file: PathBuf,
    /// Where it is mounted.
    pub(crate) dir: PathBuf,
}

impl Volume {
    /// Makes and mounts one in `folder`; what another left there is removed.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let volume = Self { file: folder.join("volume.img"), dir: folder.join("volume") };
        volume.unmount();
        fs::create_dir_all(&volume.dir)?;
        File::create(&volume.file)?.set_len(BYTES)?;
        let mut make = Command::new("mkfs.ext4");
        make.args(["-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1"]).arg(&volume.file);
        quiet(&mut make)?;
        let mut attach = Command::new("losetup");
        attach.args(["--direct-io=on", "--find", "--show"]).arg(&volume.file);
        let device = quiet(&mut attach)?;
        // The background's own writing to a new file system would be in the figures.
        let mounted =
            quiet(Command::new("mount").args(["-o", "noinit_itable", device.trim()]).arg(&volume.dir));
        // It goes when the file system is unmounted.
        quiet(Command::new("losetup").args(["--detach", device.trim()]))?;
        mounted?;
        sync();
        Ok(volume)
    }

    fn unmount(&self) {
        // Storage of containers mounts itself below.
        while quiet(Command::new("umount").arg("--recursive").arg(&self.dir)).is_ok() {}
        let _ = fs::remove_file(&self.file);
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// Runs a command and gives what it printed.
pub(crate) fn quiet(command: &mut Command) -> Result<String> {
    let done = command.stdin(std::process::Stdio::null()).output().with_context(|| shell::shown(command))?;
    anyhow::ensure!(
        done.status.success(),
        "{}: {}: {}",
        shell::shown(command),
        done.status,
        String::from_utf8_lossy(&done.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
