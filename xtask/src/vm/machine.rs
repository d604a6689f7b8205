//! The machine as a command line.

use super::Accelerator;
use super::image::Base;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

const MEMORY_MIB: &str = "4096";
const PROCESSORS: &str = "2";
/// An old model: the guest then uses no instruction that is slow to emulate, nor virtualises itself.
const EMULATED_MODEL: &str = "Nehalem";
/// The exit status of timeout(1) when the time was over.
const TIME_OVER: i32 = 124;
/// How much of the console is shown when the guest said nothing.
const TAIL_LINES: usize = 30;

/// One boot of a virtual machine.
pub(super) struct Machine<'a> {
    pub(super) base: &'a Base,
    pub(super) second: &'a Path,
    /// What kernel and systemd say.
    pub(super) console: &'a Path,
    pub(super) accel: Accelerator,
    pub(super) limit: Duration,
}

impl Machine<'_> {
    /// The command that boots it; it ends when the guest powers off, and its output is the tests'.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        // If we are killed, timeout(1) is asked to end, and asks QEMU; ^C reaches all of them.
        command.args(["--pdeathsig", "TERM", "--", "timeout", "--foreground", "--kill-after=10"]);
        command.arg(self.limit.as_secs().to_string());
        command.args(["qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot"]);
        let (accel, model) = match self.accel {
            Accelerator::Tcg => ("tcg,thread=multi", EMULATED_MODEL),
            Accelerator::Kvm => ("kvm", "host"),
        };
        command
            .args(["-machine", "q35", "-accel", accel, "-cpu", model, "-smp", PROCESSORS, "-m", MEMORY_MIB]);
        command.arg("-kernel").arg(&self.base.kernel).arg("-initrd").arg(&self.base.initrd);
        command.args(["-append", &kernel_arguments()]);
        // What is written to the first disk goes to a nameless file in TMPDIR.
        command.arg("-drive").arg(drive(&self.base.disk, "snapshot=on"));
        command.arg("-drive").arg(drive(self.second, "readonly=on"));
        command.args(["-device", "virtio-rng-pci"]);
        command.arg("-serial").arg(format!("file:{}", self.console.display())).args(["-serial", "stdio"]);
        if let Some(folder) = self.second.parent() {
            command.env("TMPDIR", folder);
        }
        command
    }
}

/// A virtio disk; a comma in a name is doubled for QEMU.
fn drive(file: &Path, option: &str) -> String {
    format!("file={},format=raw,if=virtio,{option}", file.display().to_string().replace(',', ",,"))
}

fn kernel_arguments() -> String {
    [
        "console=ttyS0",
        "root=/dev/vda rw",
        // A guest that panics ends, as -no-reboot turns the reboot into an exit.
        "panic=-1",
        // They cost time and protect nobody here.
        "mitigations=off",
        "systemd.wants=second-disk.service",
        // The console is a file.
        "SYSTEMD_COLORS=0",
        // State directories lie in /tmp, and must be on the disk: Linux 6.1 maps no ids on tmpfs.
        "systemd.mask=tmp.mount",
        // What comes late or by the clock is a difference between before and after the tests: systemd 257 mounts
        // something for each getty.
        "systemd.mask=timers.target",
        "systemd.mask=getty.target",
    ]
    .join(" ")
}

/// Why there is no result, with the end of what the console showed.
pub(super) fn why_silent(status: ExitStatus, console: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(console).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default().join("\n");
    println!("\n--- the end of {}\n{tail}", console.display());
    match status.code() {
        Some(TIME_OVER) => "the time was over".to_owned(),
        _ => format!("no result; QEMU: {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell;
    use std::path::PathBuf;

    fn shown(accel: Accelerator) -> String {
        let file = |name: &str| PathBuf::from(format!("/x/{name}"));
        let base = Base { kernel: file("k"), initrd: file("i"), disk: file("a,b") };
        let (second, console) = (file("second"), file("console"));
        let limit = Duration::from_secs(90);
        shell::shown(&Machine { base: &base, second: &second, console: &console, accel, limit }.command())
    }

    #[test]
    fn command_ends_the_machine_in_time() {
        let line = shown(Accelerator::Tcg);
        assert!(line.starts_with("setpriv --pdeathsig TERM -- timeout --foreground --kill-after=10 90 qemu"));
        assert!(line.contains(" -no-reboot ") && line.contains(" panic=-1 "));
    }

    #[test]
    fn command_keeps_the_base_image_as_it_is() {
        let line = shown(Accelerator::Kvm);
        assert!(line.contains("file=/x/a,,b,format=raw,if=virtio,snapshot=on"), "{line}");
        assert!(line.contains("file=/x/second,format=raw,if=virtio,readonly=on"), "{line}");
        assert!(line.contains("-accel kvm -cpu host") && !line.contains("-nic"), "{line}");
    }
}
