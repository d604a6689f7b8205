//! `ampoule doctor`.

use crate::args::DoctorArgs;
use crate::failure::Failed;
use crate::{run, show};
use ampoule_agent::local::{Measurement, Runner, find_runner};
use ampoule_evidence::{escape, rfc3339};
use ampoule_spec::wire::Quarantined;
use ampoule_spec::{Code, Exit, Name};
use serde_json::{Value, json};

/// The head of the table of quarantined slots.
const COLUMNS: [&str; 6] = ["slot", "job", "left", "since", "looks", "released"];

/// Measures what this host can isolate; 69 if the profile cannot be met. A slot in quarantine is said and
/// changes no status: the others can still take jobs.
pub(crate) fn doctor(args: &DoctorArgs) -> Result<u8, Failed> {
    let profile = args.profile.as_deref().unwrap_or(run::default_profile());
    let profile = Name::parse(profile).map_err(|e| Failed::new(Code::Usage, format!("--profile: {e}")))?;
    let state = run::state_dir(&args.host)?;
    ampoule_agent::local::make_state(&state)?;
    let runner = Runner::start(&find_runner()?, &state, args.host.profiles.as_deref())?;
    let measured = runner.doctor(profile.clone())?;
    if args.json {
        show::json(&as_json(&profile, &measured));
    } else {
        data(&measured).iter().for_each(|line| show::data(line));
        verdict(&profile, &measured).iter().for_each(|line| show::line(line));
    }
    Ok(status(&measured))
}

fn status(measured: &Measurement) -> u8 {
    if measured.missing.is_empty() { Exit::Success as u8 } else { Exit::Unsupported as u8 }
}

fn as_json(profile: &Name, measured: &Measurement) -> Value {
    json!({
        "profile": profile, "met": measured.missing.is_empty(), "layers": measured.isolation.layers,
        "missing": measured.missing, "quarantined": measured.quarantined,
    })
}

/// A line for each layer; then, if there is any, the table of quarantined slots.
fn data(measured: &Measurement) -> Vec<String> {
    let layers = measured.isolation.layers.iter().map(|(layer, measured)| {
        let state = if measured.in_force { "yes" } else { "NO " };
        format!("{state}  {layer:<40} {}", measured.detail)
    });
    let mut lines: Vec<String> = layers.collect();
    if !measured.quarantined.is_empty() {
        lines.push(String::new());
        lines.extend(table(&measured.quarantined));
    }
    lines
}

fn table(quarantined: &[Quarantined]) -> Vec<String> {
    let head = COLUMNS.map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(head).chain(quarantined.iter().map(row)).collect();
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

fn row(slot: &Quarantined) -> [String; 6] {
    [
        slot.slot.to_string(),
        slot.job.as_ref().map_or("-".to_owned(), ToString::to_string),
        escape(&slot.left),
        rfc3339(slot.since),
        slot.looks.to_string(),
        slot.released.map_or("no".to_owned(), rfc3339),
    ]
}

fn verdict(profile: &Name, measured: &Measurement) -> Vec<String> {
    let mut lines: Vec<String> = measured.missing.iter().map(|reason| format!("missing: {reason}")).collect();
    let all = measured.quarantined.len();
    let held = measured.quarantined.iter().filter(|slot| slot.released.is_none()).count();
    match (held, all) {
        (0, 0) => {}
        (0, released) => {
            lines.push(format!("slots in quarantine: none; released since the last boot: {released}"))
        }
        (held, _) => lines.push(format!(
            "slots in quarantine: {held}; they take no job until nothing of what was left is found any more"
        )),
    }
    let met =
        if measured.missing.is_empty() { "can be met on this host" } else { "cannot be met on this host" };
    lines.push(format!("profile {profile} {met}"));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use ampoule_spec::{Isolation, JobId, Measured, SlotId, UnixNanos};

    const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

    fn slot(job: bool, left: &str, released: Option<u64>) -> Quarantined {
        Quarantined {
            slot: SlotId::parse(ID).unwrap(),
            job: job.then(|| JobId::parse(ID).unwrap()),
            left: left.to_owned(),
            since: UnixNanos(1_767_323_045_000_000_000),
            looks: 12,
            released: released.map(UnixNanos),
        }
    }

    fn measurement(missing: &[&str], quarantined: Vec<Quarantined>) -> Measurement {
        let layer = Measured { in_force: true, detail: "ABI 7".to_owned() };
        let isolation = Isolation { layers: [("landlock".to_owned(), layer)].into() };
        let missing = missing.iter().map(|&reason| reason.to_owned()).collect();
        Measurement { isolation, missing, quarantined }
    }

    fn hermetic() -> Name {
        Name::parse("hermetic").unwrap()
    }

    #[test]
    fn doctor_without_quarantine_says_nothing_of_it() {
        let measured = measurement(&[], Vec::new());
        assert_eq!(data(&measured).len(), 1);
        assert_eq!(verdict(&hermetic(), &measured), ["profile hermetic can be met on this host"]);
        assert_eq!(status(&measured), 0);
        assert_eq!(as_json(&hermetic(), &measured)["quarantined"], json!([]));
    }

    #[test]
    fn doctor_with_quarantine_shows_a_table_and_keeps_its_status() {
        let held = slot(true, "2 mounts, 1 control groups", None);
        let freed = slot(false, "1 mounts", Some(1_767_323_046_500_000_000));
        let measured = measurement(&[], vec![held, freed.clone()]);
        let lines = data(&measured);
        assert_eq!(lines[1], "");
        assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), COLUMNS);
        assert_eq!(
            lines[3],
            format!("{ID}  {ID}  2 mounts, 1 control groups  2026-01-02T03:04:05Z  12     no")
        );
        assert_eq!(
            lines[4],
            format!(
                "{ID}  {:<36}  1 mounts                    2026-01-02T03:04:05Z  12     2026-01-02T03:04:06.5Z",
                "-"
            )
        );
        assert_eq!(status(&measured), 0);
        assert!(verdict(&hermetic(), &measured)[0].starts_with("slots in quarantine: 1;"));
        let value = as_json(&hermetic(), &measured);
        assert_eq!((&value["met"], &value["quarantined"][0]["looks"]), (&json!(true), &json!(12)));
        assert_eq!(value["quarantined"][0]["released"], Value::Null);
        let released = measurement(&[], vec![freed]);
        let said = verdict(&hermetic(), &released);
        assert_eq!(said[0], "slots in quarantine: none; released since the last boot: 1");
    }

    #[test]
    fn doctor_of_a_profile_that_cannot_be_met_ends_with_69_and_says_both() {
        let measured = measurement(&["Landlock ABI 99"], vec![slot(false, "1 mounts", None)]);
        let said = verdict(&hermetic(), &measured);
        assert_eq!(said[0], "missing: Landlock ABI 99");
        assert!(said[1].starts_with("slots in quarantine: 1;"), "{said:?}");
        assert_eq!(said[2], "profile hermetic cannot be met on this host");
        assert_eq!(status(&measured), 69);
    }

    #[test]
    fn doctor_table_drives_no_terminal() {
        let lines = data(&measurement(&[], vec![slot(true, "1 \u{1b}[31m\nmounts\u{202e}", None)]));
        assert!(lines.iter().all(|line| line.chars().all(|c| c.is_ascii_graphic() || c == ' ')), "{lines:?}");
    }
}
