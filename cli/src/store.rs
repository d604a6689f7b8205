//! `ampoule store`: what is in the store, whether it is sound, and what may go.

use crate::args::{HostArgs, StoreGcArgs, StoreStatArgs, StoreVerifyArgs};
use crate::failure::Failed;
use crate::{run, show};
use ampoule_agent::local::{self, Runner, Verified, find_runner};
use ampoule_evidence::rfc3339;
use ampoule_spec::{Code, Collect, Collected, Exit, Sha256, StoreStat, StoredObject};
use serde_json::{Value, json};

/// A runner over the state directory that is meant.
fn runner(host: &HostArgs) -> Result<Runner, Failed> {
    let state = run::state_dir(host)?;
    // Who asks about a store changes nothing: a name that is misspelt is no new, empty one.
    if !state.join("store").is_dir() {
        let text = format!("{} has no store; name the state directory with --state", state.display());
        return Err(Failed::new(Code::FileUnusable, text));
    }
    local::make_state(&state)?;
    Ok(Runner::start(&find_runner()?, &state, host.profiles.as_deref())?)
}

/// Says what is in the store.
pub(crate) fn stat(args: &StoreStatArgs) -> Result<u8, Failed> {
    let stat = runner(&args.host)?.store_stat()?;
    if args.json {
        show::json(&json!(stat));
    } else {
        stat_lines(&stat).iter().for_each(|line| show::data(line));
    }
    Ok(Exit::Success as u8)
}

fn stat_lines(stat: &StoreStat) -> Vec<String> {
    let mut lines = vec![format!("{:<14} {:>8} objects  {:>16} bytes", "all", stat.objects, stat.bytes)];
    let kinds = stat.kinds.iter();
    lines.extend(kinds.map(|k| format!("{:<14} {:>8} objects  {:>16} bytes", k.kind, k.objects, k.bytes)));
    lines.push(format!("{:<14} {:>8} objects  {:>16} bytes", "kept", stat.kept, stat.kept_bytes));
    lines.push(format!("{:<14} {:>8} objects", "in use", stat.in_use));
    lines.push(format!("{:<14} {:>8}", "quarantined", stat.quarantined));
    let (swept, staging) = (stat.swept, stat.staging);
    lines.push(format!("{:<14} {swept:>8} left by who died, removed now; {staging} under way", "staging"));
    if stat.unreadable > 0 {
        lines.push(format!("{:<14} {:>8} objects; see ampoule store verify", "unreadable", stat.unreadable));
    }
    lines.push(format!("{:<14} {}", "oldest use", stat.oldest.map_or("-".to_owned(), rfc3339)));
    lines.push(format!(
        "{:<14} {} bytes, of which imports leave {}",
        "free", stat.free_bytes, stat.reserve_bytes
    ));
    lines
}

/// Reads objects back; 2 if one is damaged.
pub(crate) fn verify(args: &StoreVerifyArgs) -> Result<u8, Failed> {
    let named: Vec<Option<&str>> = match args.digests.as_slice() {
        [] => vec![None],
        digests => digests.iter().map(|digest| hex(digest).map(Some)).collect::<Result<_, _>>()?,
    };
    let runner = runner(&args.host)?;
    let (mut objects, mut bytes, mut damaged) = (0_u64, 0_u64, 0_u64);
    for digest in named {
        let before = objects;
        runner.store_objects::<Failed>(digest, &mut |object| {
            let verified = runner.store_verify(object.object, args.quarantine)?;
            objects += 1;
            bytes += verified.bytes;
            damaged += u64::from(verified.damage.is_some());
            tell(&object, &verified, args.json);
            Ok(())
        })?;
        if let (Some(digest), true) = (digest, objects == before) {
            return Err(Failed::new(
                Code::InputMissing,
                format!("the store has nothing that {digest} names"),
            ));
        }
    }
    if args.json {
        let result = json!({"event": "result", "objects": objects, "bytes": bytes, "damaged": damaged});
        show::json(&result);
    }
    let text = format!("{objects} objects and {bytes} bytes read, {damaged} objects damaged");
    if damaged == 0 {
        show::line(&text);
        return Ok(Exit::Success as u8);
    }
    let remedy = match args.quarantine {
        true => "they are in quarantine, and the next run that needs them takes them in anew",
        false => {
            "with --quarantine they are moved aside, and the next run that needs them takes them in anew"
        }
    };
    Err(Failed::new(Code::VerifyRefused, format!("{text}; {remedy}")))
}

/// The digits of a digest that a person wrote.
fn hex(digest: &str) -> Result<&str, Failed> {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    match Sha256::parse(hex) {
        Ok(_) => Ok(hex),
        Err(error) => Err(Failed::new(Code::Usage, format!("{digest:?}: {error}"))),
    }
}

fn tell(object: &StoredObject, verified: &Verified, as_json: bool) {
    if as_json {
        show::json(&json!({
            "event": "object", "object": object.object, "contents": object.contents, "bytes": object.bytes,
            "damage": verified.damage, "quarantined": verified.quarantined,
        }));
    } else if let Some(damage) = &verified.damage {
        let aside = if verified.quarantined { "; in quarantine" } else { "" };
        show::line(&format!("{}: {damage}{aside}; it was {}", object.object, names(object)));
    }
}

fn names(object: &StoredObject) -> String {
    if object.contents.is_empty() { "named by nothing".to_owned() } else { object.contents.join(", ") }
}

/// Removes what nobody needs.
pub(crate) fn gc(args: &StoreGcArgs) -> Result<u8, Failed> {
    let wanted = wanted(args)?;
    let done = runner(&args.host)?.store_collect(wanted)?;
    if args.json {
        show::json(&as_json(&done, wanted.dry_run));
        return Ok(Exit::Success as u8);
    }
    let verb = if wanted.dry_run { "would remove" } else { "removed" };
    for object in &done.objects {
        let used = rfc3339(object.used);
        show::line(&format!(
            "{verb} {}: {} bytes, last used {used}, {}",
            object.object,
            object.bytes,
            names(object)
        ));
    }
    gc_lines(&done, verb, &wanted).iter().for_each(|line| show::line(line));
    Ok(Exit::Success as u8)
}

fn wanted(args: &StoreGcArgs) -> Result<Collect, Failed> {
    let usage = |flag: &str, example: &str, text: &str| {
        Failed::new(
            Code::Usage,
            format!("{flag} {text:?}: write a whole number above 0 with a unit, as in {example}"),
        )
    };
    let max_bytes = match &args.max_size {
        Some(text) => Some(local::size(text).ok_or_else(|| usage("--max-size", "20GiB", text))?),
        None => None,
    };
    let max_age_seconds = match &args.max_age {
        Some(text) => Some(local::age_seconds(text).ok_or_else(|| usage("--max-age", "30d", text))?),
        None => None,
    };
    Ok(Collect { max_bytes, max_age_seconds, dry_run: args.dry_run })
}

fn as_json(done: &Collected, dry_run: bool) -> Value {
    let mut value = json!(done);
    if let Some(object) = value.as_object_mut() {
        object.insert("dry_run".to_owned(), dry_run.into());
    }
    value
}

fn gc_lines(done: &Collected, verb: &str, wanted: &Collect) -> Vec<String> {
    let told = done.objects.len() as u64;
    let mut lines = Vec::new();
    if done.removed > told {
        lines.push(format!("and {} more", done.removed - told));
    }
    lines.push(format!(
        "{verb} {} objects with {} bytes, {} dead imports, {} names of nothing; left are {} objects with {} bytes",
        done.removed, done.removed_bytes, done.swept, done.dangling, done.left, done.left_bytes
    ));
    if done.in_use + done.kept > 0 {
        lines.push(format!(
            "{} objects stay because something uses them, {} because evidence in the state directory needs them",
            done.in_use, done.kept
        ));
    }
    if wanted.max_bytes.is_some_and(|max| done.left_bytes > max) {
        lines.push("that is still more than --max-size".to_owned());
    }
    if wanted.max_bytes.is_none() && wanted.max_age_seconds.is_none() {
        lines.push("without --max-size or --max-age only what belongs to nobody goes".to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn args(text: &str) -> StoreGcArgs {
        use crate::args::{Args, Command, StoreCommand};
        match Args::try_parse_from(text.split(' ')).unwrap().command {
            Command::Store(StoreCommand::Gc(args)) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn sizes_and_ages_have_units_or_are_refused() {
        let asked = wanted(&args("ampoule store gc --max-size 20GiB --max-age 1d --dry-run")).unwrap();
        assert_eq!(
            asked,
            Collect { max_bytes: Some(20 << 30), max_age_seconds: Some(86_400), dry_run: true }
        );
        assert_eq!(wanted(&args("ampoule store gc")).unwrap(), Collect::default());
        for bad in ["--max-size 20", "--max-size 1.5GiB", "--max-age 30", "--max-age 1y"] {
            let refused = wanted(&args(&format!("ampoule store gc {bad}"))).unwrap_err();
            assert_eq!(refused.code, Code::Usage, "{bad}");
        }
    }

    #[test]
    fn what_could_not_go_is_said() {
        let done = Collected { in_use: 1, kept: 2, left_bytes: 11, ..Collected::default() };
        let lines = gc_lines(&done, "removed", &Collect { max_bytes: Some(10), ..Collect::default() });
        assert!(lines[1].starts_with("1 objects stay because something uses them, 2 because"));
        assert_eq!(lines[2], "that is still more than --max-size");
    }
}
