//! `ampoule audit`.

use crate::args::AuditVerifyArgs;
use crate::failure::Failed;
use crate::show;
use ampoule_agent::audit::verify_log;
use ampoule_agent::files::read_file;
use ampoule_evidence::tlog::{NOTE_BYTES_MAX, NoteKey};
use ampoule_spec::Code;
use serde_json::json;
use std::path::Path;

/// Verifies a log in a directory.
pub(crate) fn verify(args: &AuditVerifyArgs) -> Result<u8, Failed> {
    let key = key(&args.key)?;
    let older = args.checkpoint.as_deref().map(read).transpose()?;
    let verified = verify_log(&args.dir, &key, older.as_deref()).map_err(|error| {
        if args.json {
            show::json(&json!({"verified": false, "reason": error.to_string()}));
        }
        Failed::new(Code::VerifyRefused, format!("refused: {error}"))
    })?;
    let root: String = verified.checkpoint.root.iter().map(|byte| format!("{byte:02x}")).collect();
    let (origin, size) = (&verified.checkpoint.origin, verified.checkpoint.size);
    if args.json {
        show::json(&json!({
            "verified": true, "origin": origin, "entries": size, "root": root, "since": verified.since,
        }));
        return Ok(0);
    }
    show::line(&format!("verified {} ({origin})", args.dir.display()));
    show::line(&format!("  entries  {size}"));
    show::line(&format!("  root     {root}"));
    match verified.since {
        Some(older) => show::line(&format!("  begins with the {older} entries that it had before")),
        None => show::line(
            "  not compared with an older checkpoint (--checkpoint): whoever has its key can have made it anew",
        ),
    }
    Ok(0)
}

/// A key is written as a key, or stands in a file.
fn key(text: &str) -> Result<NoteKey, Failed> {
    let path = Path::new(text);
    let text = if text.contains('+') && !path.exists() {
        text.to_owned()
    } else {
        String::from_utf8_lossy(&read(path)?).into_owned()
    };
    NoteKey::parse(text.trim()).map_err(|error| Failed::new(Code::Usage, format!("--key: {error}")))
}

fn read(path: &Path) -> Result<Vec<u8>, Failed> {
    read_file(path, NOTE_BYTES_MAX as u64).map_err(|error| Failed::file(path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ampoule_agent::audit::{Action, AuditEvent, AuditLog, Decision};
    use ampoule_spec::UnixNanos;
    use std::collections::BTreeMap;

    fn append(dir: &Path) -> String {
        let log = AuditLog::open(dir, "audit.host.example").unwrap();
        let event = AuditEvent {
            at: UnixNanos(1),
            actor: "a".to_owned(),
            action: Action::Started,
            project: None,
            job: None,
            decision: Decision::Allowed,
            reason: String::new(),
            detail: BTreeMap::new(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(log.append(&event)).unwrap();
        log.checkpoint()
    }

    #[test]
    fn log_is_verified_and_every_refusal_has_its_status() {
        let (dir, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        append(dir.path());
        std::fs::write(kept.path().join("checkpoint"), append(dir.path())).unwrap();
        let key = dir.path().join("key.pub").to_str().unwrap().to_owned();
        let mut args = AuditVerifyArgs {
            dir: dir.path().to_owned(),
            key: key.clone(),
            checkpoint: Some(kept.path().join("checkpoint")),
            json: true,
        };
        assert_eq!(verify(&args).unwrap(), 0);
        args.key = std::fs::read_to_string(&key).unwrap().trim().to_owned();
        assert_eq!(verify(&args).unwrap(), 0);
        args.checkpoint = None;
        let tile = dir.path().join("tile/entries/000.p/2");
        let mut bytes = std::fs::read(&tile).unwrap();
        bytes[9] ^= 1;
        std::fs::write(&tile, bytes).unwrap();
        let failed = verify(&args).unwrap_err();
        assert_eq!(failed.code, Code::VerifyRefused);
        assert!(failed.message.starts_with("refused: tile/0/000.p/2: "), "{}", failed.message);
        args.checkpoint = Some(kept.path().join("none"));
        assert_eq!(verify(&args).unwrap_err().code, Code::FileUnusable);
        args.key = "a+b+c".to_owned();
        assert_eq!(verify(&args).unwrap_err().code, Code::Usage);
    }
}
