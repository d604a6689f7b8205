//! A key of Transit as what signs evidence.
//!
//! What is guaranteed: the public key is read once and kept in the directory of keys; from then on nothing is signed that
//! does not verify with that key, whatever the server has under its name later. A server that is away stops signing, and
//! no daemon from starting, once the key is known.

use super::transit::Transit;
use super::wire::read_private;
use super::{Config, Vault, VaultError};
use crate::files::read_operators;
use ampoule_evidence::{PublicKey, Signer, SignerError};
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// What is added to a call's budget before the thread that makes it is given up.
const GRACE: Duration = Duration::from_secs(5);
/// How many statements wait for their signature.
const WAITING_MAX: usize = 64;
/// The file in the directory of keys that has the public key.
const KEPT: &str = "transit.json";

/// A key of Transit, and the server that has it: the operator's file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransitKey {
    /// Where the engine is.
    #[serde(default = "mount")]
    pub mount: String,
    /// The key's name.
    pub key: String,
    /// The version that signs; none: the newest when it is first read.
    pub version: Option<u64>,
    /// The server.
    pub vault: Config,
}

fn mount() -> String {
    "transit".to_owned()
}

/// The public key as it was first read.
#[derive(Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Kept {
    mount: String,
    key: String,
    version: u64,
    public_key: String,
}

struct Work {
    pae: Vec<u8>,
    answer: SyncSender<Result<Vec<u8>, String>>,
}

/// Signs by Transit. Its calls block; a thread of its own talks to the server.
pub struct TransitSigner {
    spki: Vec<u8>,
    work: SyncSender<Work>,
    patience: Duration,
}

impl std::fmt::Debug for TransitSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TransitSigner(..)")
    }
}

impl TransitKey {
    /// Reads the operator's file; its relative paths are taken from its directory.
    ///
    /// # Errors
    /// A text with file and field.
    pub fn load(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let text = read_operators(path).map_err(|e| e.to_string())?;
        let mut key: Self = toml::from_str(&text).map_err(|e| format!("{shown}: {e}"))?;
        key.vault = key.vault.based(path.parent().unwrap_or(Path::new("")));
        key.vault.check().map_err(|e| format!("{shown}: vault.{e}"))?;
        Ok(key)
    }

    /// The file with which the agent logs in, if there is one: no step may have it.
    pub fn login_file(&self) -> Option<&Path> {
        self.vault.login.file()
    }
}

impl TransitSigner {
    /// Uses the public key that is kept in this directory, or reads it from the server and keeps it there. Blocks: for a
    /// call's budget at most.
    ///
    /// # Errors
    /// A text with what to do.
    pub fn open(key: &TransitKey, keys: &Path) -> Result<Self, String> {
        let (key, keys) = (key.clone(), keys.to_owned());
        let patience = key.vault.budget + GRACE;
        let (work, queue) = sync_channel(WAITING_MAX);
        let (opened, is_open) = sync_channel(1);
        let thread = std::thread::Builder::new().name("transit".to_owned());
        let serve = move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
                return;
            };
            match runtime.block_on(known(&key, &keys)) {
                Ok((vault, transit)) => {
                    let spki = transit.public_key().map(PublicKey::spki_der).unwrap_or_default();
                    let _ = opened.send(Ok(spki));
                    serve(&runtime, &vault, &transit, &queue);
                }
                Err(error) => drop(opened.send(Err(error))),
            }
        };
        thread.spawn(serve).map_err(|e| format!("no thread can be started: {e}"))?;
        let spki = is_open
            .recv_timeout(patience)
            .map_err(|_| "the signing key was not read in time".to_owned())??;
        Ok(Self { spki, work, patience })
    }
}

impl Signer for TransitSigner {
    fn public_key_spki_der(&self) -> &[u8] {
        &self.spki
    }

    fn sign(&self, pae: &[u8]) -> Result<Vec<u8>, SignerError> {
        let failed = |reason: &str| SignerError { reason: reason.to_owned() };
        let (answer, signed) = sync_channel(1);
        let work = Work { pae: pae.to_vec(), answer };
        self.work.try_send(work).map_err(|_| failed("too many statements wait for Transit"))?;
        match signed.recv_timeout(self.patience) {
            Ok(signed) => signed.map_err(|reason| SignerError { reason }),
            Err(_) => Err(failed("Transit did not sign in time")),
        }
    }
}

fn serve(runtime: &tokio::runtime::Runtime, vault: &Vault, key: &Transit, queue: &Receiver<Work>) {
    while let Ok(work) = queue.recv() {
        // A defect in one signature is not the end of all.
        let signed =
            std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(vault.sign(key, &work.pae))));
        let signed = match signed {
            Ok(signed) => signed.map(|signature| signature.der).map_err(|e| e.to_string()),
            Err(_) => Err("a defect: signing by Transit ended early".to_owned()),
        };
        // Whoever asked may have given up.
        let _ = work.answer.send(signed);
    }
}

/// The server, and the key that it must sign with.
async fn known(key: &TransitKey, keys: &Path) -> Result<(Vault, Transit), String> {
    let vault = Vault::new(key.vault.clone(), None).map_err(|e| e.to_string())?;
    let path = keys.join(KEPT);
    if let Some(kept) = kept(&path)? {
        let is_same = kept.mount == key.mount
            && kept.key == key.key
            && key.version.is_none_or(|version| version == kept.version);
        if is_same {
            let public =
                PublicKey::from_pem(&kept.public_key).map_err(|e| format!("{}: {e}", path.display()))?;
            return Ok((vault, Transit::known(&kept.mount, &kept.key, kept.version, public)));
        }
    }
    let transit =
        vault.transit(&key.mount, &key.key, key.version).await.map_err(|e: VaultError| e.to_string())?;
    let spki = transit.public_key().map(PublicKey::spki_der).unwrap_or_default();
    let read = Kept {
        mount: key.mount.clone(),
        key: key.key.clone(),
        version: transit.version(),
        public_key: crate::signing::to_pem("PUBLIC KEY", &spki),
    };
    keep(&path, &read).map_err(|e| format!("{} cannot be written: {e}", path.display()))?;
    Ok((vault, transit))
}

fn kept(path: &Path) -> Result<Option<Kept>, String> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = read_private("signing.transit", path).map_err(|e| e.to_string())?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| format!("{}: {e}; remove it to trust the key that the server has now", path.display()))
}

fn keep(path: &Path, kept: &Kept) -> std::io::Result<()> {
    let aside: PathBuf = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    file.write_all(&serde_json::to_vec(kept)?)?;
    file.sync_all()?;
    std::fs::rename(&aside, path)
}
