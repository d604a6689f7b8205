//! Every promise of SPECIFICATION.md names the test that proves it, or says `pending`.
//!
//! A promise is a list item or a table row. A test is named in backquotes, as `crate::path::test_name`
//! (a function of that name in that crate) or as `suite/test` (a test of ampoule-integration, or a function of a shell
//! script below `integration/vm/suite/`). Other pages may name tests too: one that they name exists.

use super::{Finding, Tree};

const FILE: &str = "SPECIFICATION.md";

pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let Some(text) = tree.texts.get(FILE) else {
        return vec![Finding::new(FILE, 1, "missing", "add it: one line per promise, naming its test")];
    };
    let mut findings = Vec::new();
    for (line, promise) in promises(text) {
        let names: Vec<&str> = promise.split('`').skip(1).step_by(2).filter(|n| is_test_name(n)).collect();
        if names.is_empty() && !says_pending(&promise) {
            let start: String = promise.chars().take(60).collect();
            findings.push(Finding::new(
                FILE,
                line,
                format!("no test proves {start:?}"),
                "name it as `crate::test_name` or `suite/test`, or write pending",
            ));
        }
        for name in names.iter().filter(|name| !exists(tree, name)) {
            findings.push(missing(FILE, line, name));
        }
    }
    for (file, text) in tree.with_extension("md").filter(|(file, _)| *file != FILE) {
        for (line, text) in (1..).zip(text.lines()) {
            let names = text.split('`').skip(1).step_by(2).filter(|name| is_ours(tree, name));
            findings.extend(names.filter(|name| !exists(tree, name)).map(|name| missing(file, line, name)));
        }
    }
    findings
}

fn missing(file: &str, line: usize, name: &str) -> Finding {
    Finding::new(file, line, format!("there is no test {name}"), "correct the name, or write pending")
}

/// Whether what looks like the name of a test is hardly that of anything else: a test's is a sentence.
fn is_ours(tree: &Tree, name: &str) -> bool {
    is_test_name(name)
        && match name.split_once('/') {
            Some((suite, _)) => {
                tree.has(&format!("integration/src/suites/{suite}.rs"))
                    || scripts(tree, suite).next().is_some()
            }
            None => {
                let is_sentence = name.rsplit("::").next().is_some_and(|last| last.matches('_').count() >= 3);
                is_sentence && name.split("::").next().is_some_and(|krate| folder_of(tree, krate).is_some())
            }
        }
}

/// List items with their continuation lines, and table rows, each with the number of its first line.
fn promises(text: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    let mut fenced = false;
    let lines: Vec<&str> = text.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        fenced ^= line.trim_start().starts_with("```");
        let header = lines.get(index + 1).is_some_and(|next| is_rule(next));
        let row = line.starts_with('|') && !is_rule(line) && !header;
        if fenced || line.trim().is_empty() || line.starts_with('#') {
            open = false;
        } else if is_item(line) || row {
            found.push((index + 1, line.trim().to_owned()));
            open = !row;
        } else if let (true, Some((_, promise))) = (open && line.starts_with(' '), found.last_mut()) {
            promise.push(' ');
            promise.push_str(line.trim());
        } else {
            open = false;
        }
    }
    found
}

fn is_rule(line: &str) -> bool {
    line.starts_with('|') && line.contains('-') && line.chars().all(|c| matches!(c, '|' | '-' | ':' | ' '))
}

fn is_item(line: &str) -> bool {
    let line = line.trim_start();
    let digits = line.trim_start_matches(|c: char| c.is_ascii_digit());
    line.starts_with("- ")
        || line.starts_with("* ")
        || (digits.len() < line.len() && digits.starts_with(". "))
}

fn says_pending(promise: &str) -> bool {
    super::rust::has_word(&promise.to_lowercase(), "pending")
}

fn is_test_name(text: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c))
    };
    let path: Vec<&str> = text.split("::").collect();
    let suite: Vec<&str> = text.split('/').collect();
    (path.len() > 1 && path.iter().all(|p| plain(p))) || (suite.len() == 2 && suite.iter().all(|p| plain(p)))
}

fn exists(tree: &Tree, name: &str) -> bool {
    match name.split_once('/') {
        Some((suite, test)) => {
            let call = format!("{test}() {{");
            let in_script = |text: &str| text.lines().any(|line| line.starts_with(&call));
            scripts(tree, suite).any(in_script)
                || tree.with_extension("rs").any(|(file, text)| {
                    let of_suite = file.starts_with("integration/")
                        && file.split('/').any(|part| part == suite || part == format!("{suite}.rs"));
                    file.starts_with("integration/") && text.contains(&format!("\"{name}\""))
                        || of_suite
                            && (text.contains(&format!("fn {test}("))
                                || text.contains(&format!("\"{test}\"")))
                })
        }
        None => {
            let (krate, test) = (name.split("::").next(), name.split("::").last());
            let (Some(krate), Some(test)) = (krate, test) else { return false };
            let Some(folder) = folder_of(tree, krate) else { return false };
            let call = format!("fn {test}(");
            tree.with_extension("rs").any(|(file, text)| file.starts_with(&folder) && text.contains(&call))
        }
    }
}

/// What a suite is that runs in the virtual machine alone.
fn scripts<'t>(tree: &'t Tree, suite: &str) -> impl Iterator<Item = &'t str> {
    let folder = format!("integration/vm/{suite}/");
    tree.with_extension("sh").filter(move |(file, _)| file.starts_with(&folder)).map(|(_, text)| text)
}

/// The folder of the crate of this name, with a slash at its end.
fn folder_of(tree: &Tree, krate: &str) -> Option<String> {
    let wanted = format!("name = \"{}\"", krate.replace('_', "-"));
    tree.texts
        .iter()
        .filter_map(|(file, text)| Some((file.strip_suffix("Cargo.toml")?, text)))
        .find(|(_, text)| text.lines().any(|line| line.trim() == wanted))
        .map(|(folder, _)| folder.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(specification: &str) -> Vec<String> {
        let tree = Tree::of(&[
            (FILE, specification),
            ("runner/spec/Cargo.toml", "[package]\nname = \"ampoule-spec\"\n"),
            ("runner/spec/src/a.rs", "#[test]\nfn thing_works() {}\n"),
            ("integration/src/isolation.rs", "case(\"no-network\");\nfn no_files() {}\n"),
            ("integration/src/main.rs", "case(\"crash/kill-9\");\n"),
            ("integration/vm/package/life.sh", "LIFE=\"job_lives\"\njob_lives() { true; }\n"),
        ]);
        check(&tree).into_iter().map(|f| format!("{}: {}", f.line, f.message)).collect()
    }

    #[test]
    fn spec_tests_that_other_pages_name_exist() {
        let page = |text: &str| {
            let tree = Tree::of(&[
                (FILE, ""),
                ("docs/a.md", text),
                ("integration/src/suites/run.rs", "Test::both(\"thing_works\", thing)"),
            ]);
            check(&tree).len()
        };
        assert_eq!(page("As `run/thing_works` shows, `runner/sys` and `a::b`."), 0);
        assert_eq!(page("As `run/thing_broken` shows."), 1);
    }

    #[test]
    fn spec_promises_without_a_test_are_red() {
        assert_eq!(messages("# S\n\n- It is safe.\n"), ["3: no test proves \"- It is safe.\""]);
        assert_eq!(messages("| p | t |\n|---|---|\n| safe | soon |\n").len(), 1);
        assert_eq!(messages("1. Safe: `ampoule_spec::a::thing_broken`.").len(), 1);
        assert_eq!(messages("- Safe: `isolation/nothing`.").len(), 1);
        assert_eq!(messages("- Safe: `package/job_dies`, `package/job_lives`.").len(), 1);
        assert_eq!(messages("- Safe: `nocrate::thing_works`, pending.").len(), 1);
        assert_eq!(check(&Tree::of(&[])).len(), 1);
    }

    #[test]
    fn spec_promises_with_a_test_or_pending_are_green() {
        let text = "Prose without a test.\n\n- Safe: `ampoule_spec::a::thing_works`.\n- Safe, on\n  two lines: \
            `isolation/no-network`, `isolation/no_files`, `crash/kill-9`, `package/job_lives`.\n- Later (pending).\n\n\
            | promise | test |\n|---|---|\n| safe | `ampoule-spec::thing_works` |\n";
        assert_eq!(messages(text), Vec::<String>::new());
    }
}
