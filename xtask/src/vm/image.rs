//! The base image of a release: made once, kept under a digest of what it is made of.

use super::Release;
use crate::shell;
use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What signs the archive.
pub(super) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What the guest has beyond Debian's essential packages: the machine itself, and what the tests and their jobs run.
const PACKAGES: [&str; 14] = [
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "systemd-sysv",
    "udev",
    "gcc",
    "libc6-dev",
    "make",
    "iproute2",
    "procps",
    "openssl",
    "strace",
    // What an operator has beside our package: somebody else's client, and the files of a small image.
    "curl",
    "busybox-static",
    "ca-certificates",
];
/// The unit of the base image, and where it goes.
const UNIT: (&str, &str) = ("integration/vm/second-disk.service", "etc/systemd/system/second-disk.service");
/// What the runner asks an operator to load (modules-load.d(5)), and where that is said.
const MODULES: (&str, &str) = ("loop\next4\n", "etc/modules-load.d/ampoule.conf");
/// Room for the packages and for what tests write; the file is sparse.
const DISK: &str = "6G";

/// A machine's first disk and what boots from it.
pub(super) struct Base {
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    pub(super) disk: PathBuf,
}

/// The base image of a release; made if there is none of this recipe.
pub(super) fn base(root: &Path, folder: &Path, release: Release) -> Result<Base> {
    let unit = fs::read_to_string(root.join(UNIT.0)).context(UNIT.0)?;
    let prefix = format!("base-{}-", release.name());
    let name = prefix.clone() + &digest(release, &unit);
    let place = folder.join(&name);
    if !place.exists() {
        for entry in fs::read_dir(folder)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        let part = folder.join(format!("{name}.part"));
        make(&part, release, &unit)?;
        fs::rename(&part, &place)?;
    }
    Ok(Base {
        kernel: place.join("vmlinuz"),
        initrd: place.join("initrd.img"),
        disk: place.join("root.ext4"),
    })
}

/// What the image is made of. The mirror is not part of it: any has the same packages.
fn digest(release: Release, unit: &str) -> String {
    let recipe = [release.name(), &PACKAGES.join(","), DISK, UNIT.1, unit, MODULES.0].join("\n");
    hex::encode(Sha256::digest(recipe)).chars().take(16).collect()
}

fn make(part: &Path, release: Release, unit: &str) -> Result<()> {
    let tree = part.join("tree");
    fs::create_dir_all(part)?;
    // It mounts what it needs in a namespace of its own; nothing of that shows here.
    shell::run(&mut bootstrap(release, &tree, &mirror()?))?;
    fs::write(tree.join(UNIT.1), unit)?;
    fs::write(tree.join(MODULES.1), MODULES.0).context(MODULES.1)?;
    shell::run(&mut file_system(&tree, &part.join("root.ext4"), DISK))?;
    let boot = tree.join("boot");
    fs::copy(only(&boot, "vmlinuz-")?, part.join("vmlinuz"))?;
    fs::copy(only(&boot, "initrd.img-")?, part.join("initrd.img"))?;
    fs::remove_dir_all(&tree)?;
    Ok(())
}

fn bootstrap(release: Release, tree: &Path, mirror: &str) -> Command {
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--quiet", "--mode=root", "--variant=minbase", "--format=directory"])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg(format!("--keyring={KEYRING}"))
        .arg(release.name())
        .arg(tree)
        .arg(mirror);
    command
}

/// The command that makes an ext4 file system of a folder, without a mount.
pub(super) fn file_system(tree: &Path, file: &Path, size: &str) -> Command {
    let mut command = Command::new("mkfs.ext4");
    command
        .args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d"])
        .arg(tree)
        .arg(file)
        .arg(size);
    command
}

/// The mirror of Debian that the host's own apt uses.
pub(crate) fn mirror() -> Result<String> {
    let asked = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI)"])
        .args(["Created-By: Packages", "Origin: Debian", "Label: Debian"])
        .output()
        .context("apt-get: a base image is made on Debian or a relative of it")?;
    let text = String::from_utf8_lossy(&asked.stdout);
    let uri = text.lines().next().context("apt knows no mirror of Debian; add one, then apt-get update")?;
    Ok(uri.trim_end_matches('/').to_owned())
}

/// The one file in a folder whose name begins so.
fn only(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder)?.flatten();
    let found: Vec<PathBuf> =
        entries.filter(|e| e.file_name().to_string_lossy().starts_with(prefix)).map(|e| e.path()).collect();
    ensure!(found.len() == 1, "{} has {} files {prefix}*", folder.display(), found.len());
    found.into_iter().next().context("no file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_follows_release_and_unit() {
        let digests =
            [digest(Release::Bookworm, "a"), digest(Release::Bookworm, "b"), digest(Release::Trixie, "a")];
        assert_eq!(digest(Release::Bookworm, "a"), digests[0]);
        assert!(digests[0] != digests[1] && digests[0] != digests[2]);
        assert_eq!(digests[0].len(), 16);
    }

    #[test]
    fn only_wants_exactly_one_file() {
        let folder = tempfile::tempdir().unwrap();
        assert!(only(folder.path(), "vmlinuz-").is_err());
        fs::write(folder.path().join("vmlinuz-1"), "").unwrap();
        assert_eq!(only(folder.path(), "vmlinuz-").unwrap(), folder.path().join("vmlinuz-1"));
        fs::write(folder.path().join("vmlinuz-2"), "").unwrap();
        assert!(only(folder.path(), "vmlinuz-").is_err());
    }
}
