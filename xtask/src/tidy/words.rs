//! Words that must not stand in the tree: places of one machine, registry hosts, unfinished work.

use super::rust::{code_of, has_word};
use super::{Finding, Tree};

/// Paths that exist on a developer's machine only. Put together so that this file is clean.
const MACHINE_PATHS: [&str; 3] = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/fa", "rm")];

/// Cargo, pip, apt and npm know their hosts; naming them here would break behind a mirror.
const HOSTS: [&str; 6] = [
    concat!("index.", "crates.io"),
    concat!("static.", "crates.io"),
    concat!("py", "pi.org"),
    concat!("files.python", "hosted.org"),
    concat!("deb.", "debian.org"),
    concat!("registry.", "npmjs.org"),
];

const UNFINISHED: &str = concat!("FIX", "ME");
const UNFINISHED_MACROS: [&str; 2] = ["todo", "unimplemented"];

pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, text) in tree.texts.iter().filter(|(name, _)| !name.ends_with("Cargo.lock")) {
        for (index, line) in text.lines().enumerate() {
            if let Some(path) = MACHINE_PATHS.iter().find(|path| names_path(line, path)) {
                let message = format!("names the machine path {path}");
                findings.push(Finding::new(file, index + 1, message, "derive it, or take it as a parameter"));
            }
            if let Some(host) = HOSTS.iter().find(|host| line.contains(**host)) {
                let message = format!("names the registry host {host}");
                let remedy = "leave the host to the registry's ordinary client";
                findings.push(Finding::new(file, index + 1, message, remedy));
            }
            if has_word(line, UNFINISHED) {
                findings.push(Finding::new(file, index + 1, UNFINISHED, "do it, or open an issue"));
            }
        }
    }
    for (file, text) in tree.with_extension("rs") {
        for (index, line) in code_of(text).lines().enumerate() {
            if let Some(name) =
                UNFINISHED_MACROS.iter().find(|name| has_word(line, name) && calls(line, name))
            {
                findings.push(Finding::new(file, index + 1, format!("{name}!"), "write what is missing"));
            }
        }
    }
    findings
}

fn calls(line: &str, name: &str) -> bool {
    line.contains(&format!("{name}!"))
}

/// Whether the path begins here, rather than going on from a name or a variable before it.
fn names_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line.get(..at).and_then(|s| s.chars().next_back());
        let ends = path.ends_with('/')
            || !line.get(at + path.len()..).is_some_and(|s| s.starts_with(|c: char| c.is_alphanumeric()));
        ends && !before
            .is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '}' | ')' | '*' | '/'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(file: &str, text: &str) -> usize {
        check(&Tree::of(&[(file, text)])).len()
    }

    #[test]
    fn words_machine_paths_and_hosts_are_red() {
        for path in MACHINE_PATHS {
            assert_eq!(count("a.md", &format!("see {path} x")), 1, "{path}");
            assert_eq!(count("a.md", &format!("see $HOME{path} x")), 0, "{path}");
        }
        for host in HOSTS {
            assert_eq!(count("a.toml", &format!("url = \"https://{host}/x\"")), 1, "{host}");
            assert_eq!(count("Cargo.lock", host), 0);
        }
        assert_eq!(count("a.rs", "let x = \"{dir}/work/upper\";"), 0);
        assert_eq!(count("a.rs", &format!("x(\"{}er\")", MACHINE_PATHS[2])), 0);
    }

    #[test]
    fn words_unfinished_work_is_red() {
        assert_eq!(count("a.sh", &format!("# {UNFINISHED}: later")), 1);
        assert_eq!(count("a.rs", &format!("fn a() {{ {}!() }}", UNFINISHED_MACROS[0])), 1);
        assert_eq!(count("a.rs", &format!("fn a() {{ {}!(\"b\") }}", UNFINISHED_MACROS[1])), 1);
        assert_eq!(count("a.rs", "// todo!()\nlet todo = 1;"), 0);
    }
}
