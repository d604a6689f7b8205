//! A launcher that is asked for imports alone, as `ampoule run` asks it.

use super::usage::{Peak, Watch};
use ampoule_ipc::Channel;
use ampoule_spec::wire::{Content, Imported, Reply, Request};
use anyhow::{Context, Result, bail};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

pub(crate) struct Intake {
    child: Child,
    channel: Channel,
}

impl Intake {
    /// Starts a launcher and waits for its greeting.
    pub(crate) fn start(runner: &Path, state: &Path) -> Result<Self> {
        fs::create_dir_all(state)?;
        fs::set_permissions(state, PermissionsExt::from_mode(0o700))?;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut command = Command::new(runner);
        command.arg("serve").arg("--state").arg(state).env_clear();
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::inherit());
        let child = command.spawn()?;
        drop(command);
        let intake = Self { child, channel: Channel::new(ours) };
        match intake.channel.receive()?.0 {
            Reply::Hello { .. } => Ok(intake),
            other => bail!("the launcher said {other:?}"),
        }
    }

    /// Looks at the launcher and its workers while they work.
    pub(crate) fn watch(&self) -> Watch {
        Watch::start(self.child.id())
    }

    pub(crate) fn find(&self, content: Content) -> Result<Option<Imported>> {
        self.channel.send(&Request::Find(content), &[])?;
        match self.channel.receive()?.0 {
            Reply::Found { imported } => Ok(imported),
            other => bail!("the launcher said {other:?}"),
        }
    }

    pub(crate) fn import(&self, content: Content, file: &Path) -> Result<Imported> {
        let source = File::open(file).with_context(|| file.display().to_string())?;
        self.channel.send(&Request::Import(content), &[source.as_fd()])?;
        match self.channel.receive()?.0 {
            Reply::Imported(imported) => Ok(imported),
            other => bail!("the launcher said {other:?}"),
        }
    }

    /// Imports one thing and says what launcher and worker had of memory.
    pub(crate) fn import_watched(&self, content: Content, file: &Path) -> Result<Peak> {
        let watch = self.watch();
        let imported = self.import(content, file);
        let peak = watch.stop();
        imported.map(|_| peak)
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        let _ = shutdown(&self.channel, Shutdown::Both);
        let _ = self.child.wait();
    }
}
