//! `.gitmodules` (gitmodules(5)): where submodules lie. It came with the commit, so nothing in it is believed.

use super::object::shown;

/// The most bytes of the file.
pub(super) const MODULES_BYTES_MAX: u64 = 1 << 20;

/// A submodule as the file has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) path: Option<String>,
    pub(super) url: Option<String>,
}

/// Reads the file: sections with values, in git's configuration syntax without includes.
pub(super) fn parse(text: &[u8]) -> Result<Vec<Module>, String> {
    let text = std::str::from_utf8(text).map_err(|_| ".gitmodules is not UTF-8".to_owned())?;
    let mut modules: Vec<Module> = Vec::new();
    let mut here: Option<usize> = None;
    for line in text.lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(section) = line.strip_prefix('[') {
            here = section_name(section)?.map(|name| {
                modules.iter().position(|m| m.name == name).unwrap_or_else(|| {
                    modules.push(Module { name, ..Module::default() });
                    modules.len() - 1
                })
            });
            continue;
        }
        let (Some(module), Some((key, rest))) =
            (here.and_then(|at| modules.get_mut(at)), line.split_once('='))
        else {
            continue;
        };
        let place = match key.trim().to_ascii_lowercase().as_str() {
            "path" => &mut module.path,
            "url" => &mut module.url,
            _ => continue,
        };
        // Git takes the last one; two that differ are a trap for whoever takes the first.
        let value = value(rest.trim())?;
        if place.as_ref().is_some_and(|before| *before != value) {
            return Err(format!(".gitmodules names two values for {}", shown(key.trim().as_bytes())));
        }
        *place = Some(value);
    }
    Ok(modules)
}

/// The name in `submodule "name"]`; none for another section. A name becomes a path in git (CVE-2018-11235).
fn section_name(section: &str) -> Result<Option<String>, String> {
    let wrong = || format!(".gitmodules has a section that cannot be read: {}", shown(section.as_bytes()));
    let section = section.strip_suffix(']').ok_or_else(wrong)?;
    let Some(name) = section.strip_prefix("submodule").map(str::trim_start) else { return Ok(None) };
    let name = name.strip_prefix('"').and_then(|name| name.strip_suffix('"')).ok_or_else(wrong)?;
    let plain = !name.is_empty()
        && !name.contains(['"', '\\'])
        && !name.chars().any(char::is_control)
        && !name.starts_with('/')
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if plain { Ok(Some(name.to_owned())) } else { Err(wrong()) }
}

/// A value without quotes, escapes and comment.
fn value(text: &str) -> Result<String, String> {
    let mut out = String::new();
    let (mut quoted, mut letters) = (false, text.chars());
    while let Some(letter) = letters.next() {
        match letter {
            '"' => quoted = !quoted,
            '#' | ';' if !quoted => break,
            '\\' => match letters.next() {
                Some(c @ ('"' | '\\')) => out.push(c),
                _ => {
                    return Err(
                        ".gitmodules has a value that goes on in the next line, or an escape".to_owned()
                    );
                }
            },
            letter => out.push(letter),
        }
    }
    if quoted {
        return Err(".gitmodules has a quote without an end".to_owned());
    }
    Ok(if text.ends_with('"') { out } else { out.trim_end().to_owned() })
}

/// Where a submodule lies, seen from the repository around it: an absolute URL, or one relative to that repository's.
pub(super) fn resolve(parent: &str, url: &str) -> Result<String, String> {
    let relative = url.starts_with("./") || url.starts_with("../");
    if !relative {
        let web = ["http://", "https://"].iter().any(|scheme| url.starts_with(scheme));
        return if web {
            Ok(url.to_owned())
        } else {
            Err(format!("its URL {} is not fetched; only http and https are", shown(url.as_bytes())))
        };
    }
    let end = parent.find(['?', '#']).unwrap_or(parent.len());
    let mut base = parent.get(..end).unwrap_or_default().trim_end_matches('/');
    let mut rest = url;
    loop {
        if let Some(after) = rest.strip_prefix("./") {
            rest = after;
        } else if let Some(after) = rest.strip_prefix("../") {
            rest = after;
            let authority = base.find("://").map_or(0, |at| at + 3);
            let cut = base.rfind('/').filter(|at| *at > authority);
            base = cut.and_then(|at| base.get(..at)).ok_or("its URL leads out of the server")?;
        } else {
            return Ok(format!("{base}/{rest}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gitmodules_are_read_as_git_reads_them() {
        let text =
            b"# c\n[submodule \"lib/a\"]\n\tpath = \"lib a\" ; x\n\turl = ../a.git # y\n[core]\n\turl = no\n\
                     [submodule \"b\"]\nPath=b\n  branch = main\n  url = https://h/b\n";
        let of = |name: &str, path: &str, url: &str| Module {
            name: name.into(),
            path: Some(path.into()),
            url: Some(url.into()),
        };
        let found = parse(text).unwrap();
        assert_eq!(found, [of("lib/a", "lib a", "../a.git"), of("b", "b", "https://h/b")]);
        for bad in [
            "[submodule \"../../x\"]\n",
            "[submodule \"a/../b\"]\n",
            "[submodule \"\"]\n",
            "[submodule \"a\n",
            "[submodule a]\n",
            "[submodule \"a\"]\nurl = \"x\n",
            "[submodule \"a\"]\nurl = x\\\n",
            "[submodule \"a\"]\nurl = x\nurl = y\n",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn relative_urls_stay_on_their_server() {
        let ok = |parent: &str, url: &str| resolve(parent, url).unwrap();
        assert_eq!(ok("https://h/a/r.git", "../s.git"), "https://h/a/s.git");
        assert_eq!(ok("https://h/a/r.git/", "./../../s"), "https://h/s");
        assert_eq!(ok("https://h/a/r.git", "./s"), "https://h/a/r.git/s");
        assert_eq!(ok("https://h/a", "http://i/s"), "http://i/s");
        for bad in ["../../../s", "git@h:s", "ssh://h/s", "/etc", "file:///x", "ext::sh -c id", "-u", ""] {
            assert!(resolve("https://h/a/r.git", bad).is_err(), "{bad}");
        }
    }
}
