//! `cargo xtask demo`: one real job from end to end.
//!
//! Builds the C library zstd in a sandbox from the sources that Cargo.lock pins, twice; compares; verifies
//! the attestation; shows that a changed file is refused. Leaves `target/demo/out` and
//! `target/demo/provenance.pub`.

use crate::shell;
use anyhow::{Context, Result, bail, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs::{self, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The crate whose C sources are built.
const SOURCES: &str = "zstd-sys";
const OUTPUTS: [&str; 2] = ["libzstd.a", "zstd-roundtrip"];
/// What `ampoule verify` exits with when it refuses.
const REFUSED: i32 = 2;

struct Demo {
    root: PathBuf,
    /// `target/demo`.
    folder: PathBuf,
    ampoule: PathBuf,
    /// Ordinary users get the `dev` profile only.
    dev: bool,
}

/// Runs the demo. Whatever goes otherwise than told is an error.
pub(crate) fn run(root: &Path) -> Result<bool> {
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(root).no_deps().exec()?;
    let demo = Demo {
        root: root.to_path_buf(),
        folder: root.join("target/demo"),
        ampoule: metadata.target_directory.join("debug/ampoule").into_std_path_buf(),
        dev: !shell::is_root(),
    };
    fs::create_dir_all(&demo.folder)?;
    title("Build the programs");
    shell::run(cargo(root).args(["build", "--locked", "-p", "ampoule-runner", "-p", "ampoule"]))?;
    title("Take the sources that Cargo.lock pins");
    demo.take_sources()?;
    title("Make a signing key");
    demo.make_key()?;
    title("Run the job");
    demo.run_job("out")?;
    title("Run it again and compare");
    demo.run_job("again")?;
    demo.compare()?;
    title("Verify");
    for output in OUTPUTS {
        let file = demo.folder.join("out/outputs").join(output);
        ensure!(demo.verify(&file, output)? == Some(0), "{output} does not verify");
    }
    title("Verify a changed file");
    demo.verify_changed()?;
    println!(
        "\nThe outputs and their evidence are in target/demo/out, the key in target/demo/provenance.pub."
    );
    Ok(true)
}

fn title(text: &str) {
    println!("\n== {text}");
}

fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

impl Demo {
    /// Copies the crate's archive to where the job file expects it.
    fn take_sources(&self) -> Result<()> {
        shell::run(cargo(&self.root).args(["fetch", "--locked"]))?;
        let pinned = locked_checksum(&self.root)?;
        let archive = find_archive(&self.root)?;
        let bytes = fs::read(&archive).with_context(|| archive.display().to_string())?;
        let digest = hex::encode(Sha256::digest(&bytes));
        ensure!(digest == pinned, "{}: sha256 {digest}, Cargo.lock says {pinned}", archive.display());
        let job = fs::read_to_string(self.root.join("examples/zstd/job.toml"))?;
        ensure!(job.contains(&pinned), "examples/zstd/job.toml: set the sha256 of src to {pinned}");
        fs::write(self.folder.join("zstd-sys.crate"), bytes)?;
        println!("{SOURCES}: sha256 {digest}");
        Ok(())
    }

    fn make_key(&self) -> Result<()> {
        ensure!(shell::has_program("openssl"), "openssl is missing; install it (apt-get install openssl)");
        let (key, public) = (self.folder.join("provenance.key"), self.folder.join("provenance.pub"));
        if !key.exists() {
            let made = Command::new("openssl")
                .args(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"])
                .output()?;
            ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr).trim());
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&key)?
                .write_all(&made.stdout)?;
        }
        fs::set_permissions(&key, Permissions::from_mode(0o600))?;
        shell::run(
            Command::new("openssl").args(["pkey", "-pubout", "-in"]).arg(&key).arg("-out").arg(&public),
        )
    }

    /// The job file to run: the example, or for an ordinary user a copy with the `dev` profile.
    fn job_file(&self) -> Result<PathBuf> {
        let example = self.root.join("examples/zstd/job.toml");
        if !self.dev {
            return Ok(example);
        }
        let mut text = fs::read_to_string(example)?;
        // `target/demo` lies as deep as `examples/zstd`, so the path of the archive stays right.
        for (from, to) in [
            ("profile = \"hermetic\"", "profile = \"dev\""),
            ("path = \"roundtrip.c\"", "path = \"../../examples/zstd/roundtrip.c\""),
        ] {
            ensure!(text.contains(from), "examples/zstd/job.toml: no {from:?} in it");
            text = text.replace(from, to);
        }
        let copy = self.folder.join("job.toml");
        fs::write(&copy, text)?;
        println!("not root: the dev profile; it is not hermetic and its attestation says so");
        Ok(copy)
    }

    fn run_job(&self, out: &str) -> Result<()> {
        let out = self.folder.join(out);
        if out.exists() {
            fs::remove_dir_all(&out)?;
        }
        let mut command = Command::new(&self.ampoule);
        command.arg("run").arg(self.job_file()?).arg("--out").arg(&out);
        command
            .arg("--state")
            .arg(self.folder.join("state"))
            .arg("--key")
            .arg(self.folder.join("provenance.key"));
        shell::run(&mut command)
    }

    /// The two runs gave the same bytes and describe the same build.
    fn compare(&self) -> Result<()> {
        for output in OUTPUTS {
            let read = |out: &str| fs::read(self.folder.join(out).join("outputs").join(output));
            let (first, second) = (read("out")?, read("again")?);
            ensure!(first == second, "{output} differs between the runs");
            println!(
                "{output}: {} bytes, sha256 {}, equal",
                first.len(),
                hex::encode(Sha256::digest(&first))
            );
            let (first, second) =
                (self.build_definition("out", output)?, self.build_definition("again", output)?);
            ensure!(first == second, "{output}: buildDefinition differs between the runs");
        }
        println!("buildDefinition: equal");
        Ok(())
    }

    fn build_definition(&self, out: &str, output: &str) -> Result<Value> {
        let file = self.attestation(out, output);
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        build_definition(&text).with_context(|| file.display().to_string())
    }

    fn attestation(&self, out: &str, output: &str) -> PathBuf {
        self.folder.join(out).join("evidence").join(format!("{output}.intoto.jsonl"))
    }

    /// Runs `ampoule verify` and gives its exit code.
    fn verify(&self, file: &Path, output: &str) -> Result<Option<i32>> {
        let mut command = Command::new(&self.ampoule);
        command.arg("verify").arg(file).arg("--attestation").arg(self.attestation("out", output));
        command.arg("--key").arg(self.folder.join("provenance.pub"));
        if self.dev {
            command.arg("--allow-dev");
        }
        Ok(shell::run_status(&mut command)?.code())
    }

    fn verify_changed(&self) -> Result<()> {
        let [output, _] = OUTPUTS;
        let mut bytes = fs::read(self.folder.join("out/outputs").join(output))?;
        let last = bytes.last_mut().context("an empty output")?;
        *last ^= 1;
        let changed = self.folder.join(format!("changed-{output}"));
        fs::write(&changed, bytes)?;
        match self.verify(&changed, output)? {
            Some(REFUSED) => println!("refused with exit code {REFUSED}, as it must be"),
            code => bail!("a changed file gave exit code {code:?} instead of {REFUSED}"),
        }
        Ok(())
    }
}

/// `predicate.buildDefinition` of the statement in the first envelope of a file.
fn build_definition(text: &str) -> Result<Value> {
    let envelope: Value = serde_json::from_str(text.lines().next().context("an empty file")?)?;
    let payload = envelope.get("payload").and_then(Value::as_str).context("no payload")?;
    let statement: Value = serde_json::from_slice(&BASE64_STANDARD.decode(payload)?)?;
    statement.pointer("/predicate/buildDefinition").cloned().context("no predicate.buildDefinition")
}

/// The sha256 that Cargo.lock has for the archive of the sources.
fn locked_checksum(root: &Path) -> Result<String> {
    let lock: toml::Table = toml::from_str(&fs::read_to_string(root.join("Cargo.lock"))?)?;
    let packages =
        lock.get("package").and_then(toml::Value::as_array).context("no packages in Cargo.lock")?;
    let found = packages.iter().find(|p| p.get("name").and_then(toml::Value::as_str) == Some(SOURCES));
    let checksum = found.and_then(|p| p.get("checksum")).and_then(toml::Value::as_str);
    checksum.map(str::to_owned).with_context(|| format!("Cargo.lock has no checksum for {SOURCES}"))
}

/// The archive as cargo downloaded it, beside the folder into which it unpacked it.
fn find_archive(root: &Path) -> Result<PathBuf> {
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(root).exec()?;
    let package = metadata.packages.iter().find(|p| p.name == SOURCES).context("zstd-sys is not used")?;
    let unpacked = package.manifest_path.parent().context("a manifest in a folder")?;
    // $CARGO_HOME/registry/src/INDEX/NAME-VERSION → $CARGO_HOME/registry/cache/INDEX/NAME-VERSION.crate
    let (name, index) = (unpacked.file_name(), unpacked.parent().and_then(|p| p.file_name()));
    let registry = unpacked.ancestors().nth(3);
    let (Some(name), Some(index), Some(registry)) = (name, index, registry) else {
        bail!("{unpacked} does not lie in a registry")
    };
    let archive = registry.join("cache").join(index).join(format!("{name}.crate")).into_std_path_buf();
    ensure!(
        archive.exists(),
        "{}: not there; the demo needs the registry, not vendored sources",
        archive.display()
    );
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn example_pins_what_the_lock_file_pins() {
        let root = &crate::root().unwrap();
        let job = fs::read_to_string(root.join("examples/zstd/job.toml")).unwrap();
        assert!(job.contains(&locked_checksum(root).unwrap()), "update the sha256 in examples/zstd/job.toml");
    }

    #[test]
    fn build_definition_is_read_from_the_envelope() {
        let statement = BASE64_STANDARD.encode(r#"{"predicate":{"buildDefinition":{"a":1}}}"#);
        let text = format!("{{\"payload\":\"{statement}\"}}\n");
        assert_eq!(build_definition(&text).unwrap(), serde_json::json!({ "a": 1 }));
        assert!(build_definition("{}").is_err() && build_definition("").is_err());
    }
}
