//! `--fault`, in a runner that is built for tests.

use ampoule_sandbox::fault::{self, Plan};
use std::fs::OpenOptions;

/// Reads `weak`, `unmeasured`, `by-name`, `old-tmpfs` and `ROLE:NUMBER:fail|die:FILE`, with commas between them. FILE
/// counts how often the fault has happened, in eight bytes.
pub(crate) fn install(text: &str) -> Result<(), String> {
    let mut plan = Plan::default();
    for part in text.split(',') {
        let words: Vec<&str> = part.splitn(4, ':').collect();
        match words.as_slice() {
            ["weak"] => plan.weak = true,
            ["unmeasured"] => plan.unmeasured = true,
            ["by-name"] => plan.by_name = true,
            ["old-tmpfs"] => plan.old_tmpfs = true,
            [role, number, what @ ("fail" | "die"), file] => {
                plan.role = Some((*role).to_owned());
                plan.number = number.parse().map_err(|e| format!("--fault: {number}: {e}"))?;
                plan.dies = *what == "die";
                let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(file);
                let file = file.and_then(|file| {
                    file.set_len(8)?;
                    ampoule_sys::shared::number(&file)
                });
                plan.fired = Some(file.map_err(|e| format!("--fault: {e}"))?);
            }
            _ => return Err(format!("--fault: {part:?}")),
        }
    }
    fault::install(plan);
    Ok(())
}
