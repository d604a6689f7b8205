//! What a supervisor looks at in a sandbox while its job runs, and after its last step.

use crate::sandbox::Sandbox;
use ampoule_sys::process::Child;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};

impl Sandbox {
    /// Proves that no process but init is left: every control group lists it alone. (Init has reaped all its
    /// children before it answered, so without control groups its word is the proof.)
    ///
    /// # Errors
    /// What is left, for people.
    pub fn quiesce(&self) -> Result<(), String> {
        let Some(cgroup) = &self.cgroup else { return Ok(()) };
        match cgroup.others_than(self.init.as_ref().map(|init| init.pid)) {
            Ok(0) => Ok(()),
            Ok(others) => Err(format!("{others} processes are left after the last step")),
            Err(error) => Err(format!("a control group cannot be read: {error}")),
        }
    }

    /// Kills every process of the sandbox, whatever state it is in. Only to be destroyed after that.
    pub fn kill(&self) {
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill();
        }
        if let Some(init) = &self.init {
            // The kernel kills the rest of its pid namespace with it.
            let _ = pidfd_send_signal(&init.pidfd, Signal::KILL);
        }
    }

    /// Whether the writable layer is out of bytes, and whether out of inodes.
    pub fn scratch_is_full(&self) -> Option<(bool, bool)> {
        let fs = rustix::fs::fstatvfs(self.root()?).ok()?;
        // The kernel takes room for what it holds as one piece of a write, up to 2 MiB, or refuses the write.
        let piece = (2 << 20).min(fs.f_blocks.saturating_mul(fs.f_frsize) / 8);
        Some((fs.f_bavail.saturating_mul(fs.f_frsize) < piece, fs.f_favail < 2))
    }

    /// Has what the job writes go to the host's disk without a stay in the host's page cache, if the disk can do that.
    pub fn bypass_host_cache(&self) {
        // Where it cannot, the host's memory is used twice and the job is slower: no reason to end it.
        let _ = self.rootfs.as_ref().map(|rootfs| rootfs.scratch.bypass_host_cache());
    }

    /// Says whether bytes of the writable layer were lost that the kernel has tried to write, which a job is not told.
    ///
    /// # Errors
    /// That of the lost bytes.
    pub fn lost_bytes(&self) -> std::io::Result<()> {
        self.rootfs.as_ref().map_or(Ok(()), |rootfs| rootfs.scratch.lost())
    }

    /// The same after everything was written: ask when outputs were read.
    ///
    /// # Errors
    /// That of the lost bytes.
    pub fn sync_scratch(&self) -> std::io::Result<()> {
        self.rootfs.as_ref().map_or(Ok(()), |rootfs| rootfs.scratch.sync())
    }

    /// Holds the limits against those that were set, and looks whether init is still in every group: to be asked when the
    /// last step has ended. An init that leaves with the step is in none, and only the limits are looked at.
    ///
    /// # Errors
    /// What is not as it was, for people.
    pub fn verify_limits(&self) -> Result<(), String> {
        let Some(cgroup) = &self.cgroup else { return Ok(()) };
        cgroup.verify()?;
        let Some(init) = &self.init else { return Ok(()) };
        match cgroup.without(init.pid) {
            Ok(None) => Ok(()),
            // A process leaves its groups before its end can be seen.
            Ok(Some(_)) if has_ended(init) => Ok(()),
            Ok(Some(dir)) => Err(format!("the job was moved out of its control group {}", dir.display())),
            Err(error) => Err(format!("a control group of the job cannot be read: {error}")),
        }
    }
}

/// How long a process may take from leaving its groups to its end.
const END_LIMIT: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

fn has_ended(process: &Child) -> bool {
    let mut ready = [PollFd::new(&process.pidfd, PollFlags::IN)];
    rustix::io::retry_on_intr(|| poll(&mut ready, Some(&END_LIMIT))) == Ok(1)
}
