//! Links in Markdown to files and headings of the repository lead somewhere.

use super::{Finding, Tree};
use std::collections::BTreeSet;

pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, text) in tree.with_extension("md") {
        for (line, target) in targets(text) {
            if let Err(message) = follow(tree, file, &target) {
                findings.push(Finding::new(file, line, message, "correct the link or remove it"));
            }
        }
    }
    findings
}

fn follow(tree: &Tree, file: &str, target: &str) -> Result<(), String> {
    if target.split(['/', '#', '?']).next().is_some_and(|head| head.contains(':')) {
        return Ok(()); // a scheme: not ours to follow
    }
    let (path, anchor) = target.split_once('#').map_or((target, None), |(p, a)| (p, Some(a)));
    let resolved = resolve(file, path).ok_or_else(|| format!("{target} leaves the repository"))?;
    if !tree.has(&resolved) {
        return Err(format!("{target}: no such file"));
    }
    let (Some(anchor), Some(text)) = (anchor, tree.texts.get(&resolved)) else { return Ok(()) };
    if resolved.ends_with(".md") && !anchors(text).contains(anchor) {
        return Err(format!("{target}: {resolved} has no such heading"));
    }
    Ok(())
}

/// The path that a link in `file` means, relative to the root of the repository.
fn resolve(file: &str, path: &str) -> Option<String> {
    if path.is_empty() {
        return Some(file.to_owned());
    }
    let mut parts: Vec<&str> = match path.strip_prefix('/') {
        Some(_) => Vec::new(),
        None => file.rsplit_once('/').map_or(Vec::new(), |(folder, _)| folder.split('/').collect()),
    };
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

/// Lines outside fenced blocks, with inline code blanked, and their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, String)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let mark = line.trim_start().starts_with("```");
        fenced ^= mark;
        let odd_is_code = |(i, part): (usize, &str)| if i % 2 == 0 { part.to_owned() } else { "`".into() };
        (!mark && !fenced).then(|| (index + 1, line.split('`').enumerate().map(odd_is_code).collect()))
    })
}

/// The targets of `[text](target)` and `[label]: target`.
fn targets(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        for part in line.split("](").skip(1) {
            let target = part.split([')', ' ']).next().unwrap_or_default();
            found.push((number, target.trim_matches(['<', '>']).to_owned()));
        }
        let definition = line.trim_start().strip_prefix('[').and_then(|rest| rest.split_once("]: "));
        if let Some((label, target)) = definition
            && !label.contains(']')
        {
            found.push((number, target.split(' ').next().unwrap_or_default().to_owned()));
        }
    }
    found
}

/// The anchors that a web view of the file makes of its headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut fenced = false;
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        let title = line.trim_start_matches('#');
        if fenced || title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let slug: String = title
            .trim()
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        let numbered = (1..).map(|n| format!("{slug}-{n}"));
        let free = std::iter::once(slug.clone()).chain(numbered).find(|s| !found.contains(s));
        found.extend(free);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(text: &str) -> Vec<String> {
        let other = "# One thing\n## Two: things!\n## Two: things!\n";
        let tree = Tree::of(&[("docs/a.md", text), ("docs/b.md", other), ("src/main.rs", "")]);
        check(&tree).into_iter().map(|f| f.message).collect()
    }

    #[test]
    fn links_that_lead_nowhere_are_red() {
        assert_eq!(messages("[x](c.md)").len(), 1);
        assert_eq!(messages("[x](../../c.md)").len(), 1);
        assert_eq!(messages("[x](b.md#three)").len(), 1);
        assert_eq!(messages("[x]: nowhere.md").len(), 1);
        assert_eq!(messages("# A\n[x](#b)").len(), 1);
        assert_eq!(messages("[x](b.md) and [y](c.md)").len(), 1);
    }

    #[test]
    fn links_that_lead_somewhere_are_green() {
        let text = "# A\n[x](b.md) [x](../src) [x](/src/main.rs) [x](b.md#two-things) [x](b.md#two-things-1)\n\
            [x](#a) [x](https://a.example/b) `[x](c.md)`\n```\n[x](c.md)\n```\n[x]: b.md\n";
        assert_eq!(messages(text), Vec::<String>::new());
    }
}
