//! The links of an output: they stay inside, whatever else lies in it.
//!
//! A link's directory was reached through directories alone, so `..` at the beginning of a target goes up by exactly
//! one of them. Behind a name it may not stand: that name could be a link, and then `..` is somewhere else. So
//! every link leads from a directory inside to a name inside, and a chain of such links does too. Whether there is
//! something at the end of it does not matter.

use crate::pack::PackError;
use crate::refusal::shown;

/// Refuses a link at `path` (components joined by `/`, from the root of the output) that leads out of it or could.
///
/// # Errors
/// [`PackError::Link`].
pub(crate) fn check_link(path: &[u8], target: &[u8]) -> Result<(), PackError> {
    let refused = |reason| Err(PackError::Link { path: shown(path), target: shown(target), reason });
    if target.starts_with(b"/") {
        return refused("is absolute; make it relative, as `ln -sr` does");
    }
    // The directories above the link, the output's root not among them.
    let mut above = path.iter().filter(|byte| **byte == b'/').count();
    let mut behind_a_name = false;
    for component in target.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." if behind_a_name => {
                return refused("has '..' behind a name; write it the short way");
            }
            b".." => match above.checked_sub(1) {
                Some(left) => above = left,
                None => return refused("leads out of the directory"),
            },
            _ => behind_a_name = true,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_stay_inside_are_kept_and_all_others_are_refused() {
        for (path, target) in [
            ("a", "b"),
            ("a", "./b/c"),
            ("a", "."),
            ("a", "nowhere"),
            ("a", "b/"),
            ("d/a", ".."),
            ("d/e/a", "../../b/c"),
            ("d/e/a", "./../../b"),
            ("a", "..b/..."),
        ] {
            check_link(path.as_bytes(), target.as_bytes()).unwrap();
        }
        for (path, target, why) in [
            ("a", "/etc/passwd", "absolute"),
            ("a", "//", "absolute"),
            ("a", "..", "leads out"),
            ("d/a", "../..", "leads out"),
            ("d/a", ".././/../b", "leads out"),
            ("d/a", "b/../c", "behind a name"),
            ("d/e/a", "../b/..", "behind a name"),
            ("a", "b/../../c", "behind a name"),
        ] {
            let refused = check_link(path.as_bytes(), target.as_bytes()).unwrap_err().to_string();
            assert!(refused.contains(why), "{path} -> {target}: {refused}");
        }
    }

    /// What the rule is for: the same table, followed by the kernel in a directory with links of every kind.
    #[test]
    fn no_chain_of_links_that_are_kept_leads_out() {
        use std::os::unix::fs::symlink;
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("inside");
        std::fs::create_dir_all(root.join("d/e")).unwrap();
        std::fs::write(temp.path().join("outside"), "x").unwrap();
        std::fs::write(root.join("x"), "x").unwrap();
        let dirs = ["", "d/", "d/e/"];
        let targets = [
            "..",
            "../..",
            "d",
            "e",
            "up",
            "up/x",
            "up/outside",
            "up/up",
            "../up",
            "up/../outside",
            "../x",
            "x",
        ];
        let mut kept = 0;
        for first in targets {
            for second in targets {
                for (dir, target, name) in dirs.iter().flat_map(|d| [(d, first, "up"), (d, second, "probe")])
                {
                    let path = format!("{dir}{name}");
                    let _ = std::fs::remove_file(root.join(&path));
                    if check_link(path.as_bytes(), target.as_bytes()).is_ok() {
                        symlink(target, root.join(&path)).unwrap();
                    }
                }
                for dir in dirs {
                    let Ok(end) = std::fs::canonicalize(root.join(format!("{dir}probe"))) else { continue };
                    assert!(
                        end.starts_with(&root),
                        "{dir}probe -> {second}, up -> {first}: {}",
                        end.display()
                    );
                    kept += 1;
                }
            }
        }
        assert!(kept > 30, "{kept} links led somewhere");
    }
}
