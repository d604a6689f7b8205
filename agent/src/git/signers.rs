//! An allowed-signers file (ssh-keygen(1), "ALLOWED SIGNERS"): whose signature counts.

use ssh_key::PublicKey;
use ssh_key::public::KeyData;

/// The most bytes of the file.
pub(super) const SIGNERS_BYTES_MAX: u64 = 1 << 20;

/// A line of the file.
#[derive(Debug, Clone)]
pub(super) struct Signer {
    /// The principals, as the line has them.
    pub(super) principals: String,
    /// The namespaces in which the key counts; none: in all.
    namespaces: Option<String>,
    valid_after: Option<i64>,
    valid_before: Option<i64>,
    /// The line is for keys that this one has certified, which are not believed here.
    is_authority: bool,
    pub(super) key: KeyData,
}

impl Signer {
    /// Why the line does not cover a signature in a namespace made at a time; nothing if it does.
    pub(super) fn objection(&self, namespace: &str, time: i64) -> Option<String> {
        let who = &self.principals;
        if self.is_authority {
            return Some(format!(
                "the line of {who} is a certificate authority's, and certificates are not supported"
            ));
        }
        if self.namespaces.as_ref().is_some_and(|patterns| !matches_list(patterns, namespace)) {
            return Some(format!("the key of {who} does not count in the namespace {namespace}"));
        }
        if self.valid_after.is_some_and(|after| time < after) {
            return Some(format!("the key of {who} was not yet valid then"));
        }
        if self.valid_before.is_some_and(|before| time > before) {
            return Some(format!("the key of {who} was not valid any more then"));
        }
        None
    }
}

/// Reads the file; a line that cannot be read is named.
pub(super) fn parse(text: &str) -> Result<Vec<Signer>, String> {
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines.map(|(at, text)| line(text).map_err(|reason| format!("line {at}: {reason}"))).collect()
}

fn line(text: &str) -> Result<Signer, String> {
    let (principals, rest) = word(text)?;
    if principals.is_empty() {
        return Err("there is no principal".to_owned());
    }
    let mut signer = Signer {
        principals: principals.trim_matches('"').to_owned(),
        namespaces: None,
        valid_after: None,
        valid_before: None,
        is_authority: false,
        // Replaced below.
        key: KeyData::Ed25519(ssh_key::public::Ed25519PublicKey([0; 32])),
    };
    if signer.principals.chars().any(char::is_control) {
        return Err("a principal with a control character".to_owned());
    }
    let (first, after) = word(rest)?;
    let key = if is_key_type(first) {
        rest
    } else {
        options(first, &mut signer)?;
        after
    };
    let key = PublicKey::from_openssh(key).map_err(|e| format!("the key cannot be read: {e}"))?;
    signer.key = key.key_data().clone();
    Ok(signer)
}

fn is_key_type(word: &str) -> bool {
    ["ssh-", "ecdsa-", "sk-", "webauthn-"].iter().any(|prefix| word.starts_with(prefix))
}

/// The first word, whose blanks may be in quotes, and what follows it.
fn word(text: &str) -> Result<(&str, &str), String> {
    let mut quoted = false;
    let end = text.find(|letter: char| {
        quoted ^= letter == '"';
        !quoted && matches!(letter, ' ' | '\t')
    });
    if end.is_none() && quoted {
        return Err("a quote without an end".to_owned());
    }
    let (word, rest) = text.split_at(end.unwrap_or(text.len()));
    Ok((word, rest.trim_start()))
}

fn options(text: &str, signer: &mut Signer) -> Result<(), String> {
    let mut quoted = false;
    let options = text.split(|letter: char| {
        quoted ^= letter == '"';
        !quoted && letter == ','
    });
    for option in options {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
        match name.to_ascii_lowercase().as_str() {
            "cert-authority" => signer.is_authority = true,
            "namespaces" => signer.namespaces = Some(value.to_owned()),
            "valid-after" => signer.valid_after = Some(time(value)?),
            "valid-before" => signer.valid_before = Some(time(value)?),
            _ => return Err(format!("the option {name:?} is not known")),
        }
    }
    Ok(())
}

/// `YYYYMMDD[HHMM[SS]][Z]` in seconds since 1970. Without `Z` ssh-keygen takes the host's own time zone; a job must not mean
/// another thing on another host, so here it is UTC either way.
fn time(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is not a time; write YYYYMMDDHHMMSSZ");
    let digits = text.strip_suffix(['Z', 'z']).unwrap_or(text);
    if !matches!(digits.len(), 8 | 12 | 14) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let number = |from: usize, to: usize| digits.get(from..to).map_or(Ok(0), str::parse::<i64>);
    let part = |from, to| number(from, to).map_err(|_| wrong());
    let (year, month, day) = (part(0, 4)?, part(4, 6)?, part(6, 8)?);
    let (hour, minute, second) = (part(8, 10)?, part(10, 12)?, part(12, 14)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let most = usize::try_from(month - 1).ok().and_then(|month| days.get(month)).ok_or_else(wrong)?;
    if !(1..=*most).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return Err(wrong());
    }
    // Days from the civil calendar: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    Ok(((days * 24 + hour) * 60 + minute) * 60 + second)
}

/// Whether a comma-separated list of patterns matches; one with `!` that matches decides against it (ssh_config(5)).
fn matches_list(patterns: &str, text: &str) -> bool {
    let mut found = false;
    for pattern in patterns.split(',') {
        match pattern.strip_prefix('!') {
            Some(pattern) if matches(pattern.as_bytes(), text.as_bytes()) => return false,
            None if matches(pattern.as_bytes(), text.as_bytes()) => found = true,
            _ => {}
        }
    }
    found
}

/// `*` and `?`, without recursion.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut here) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while here < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, here));
                at += 1;
            }
            Some(letter) if *letter == b'?' || Some(letter) == text.get(here) => {
                at += 1;
                here += 1;
            }
            _ => match star {
                Some((after, taken)) => {
                    star = Some((after, taken + 1));
                    (at, here) = (after + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern.get(at..).unwrap_or_default().iter().all(|letter| *letter == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA a comment";

    #[test]
    fn lines_are_read_with_their_options() {
        let text = format!(
            "# c\n\na@x,b@x {KEY}\n\"c d\" namespaces=\"file,git\",valid-after=\"20200101Z\" {KEY}\n*@y cert-authority {KEY}\n"
        );
        let signers = parse(&text).unwrap();
        assert_eq!(
            signers.iter().map(|s| s.principals.as_str()).collect::<Vec<_>>(),
            ["a@x,b@x", "c d", "*@y"]
        );
        assert_eq!(signers[0].objection("git", 0), None);
        assert!(signers[1].objection("git", 1_577_836_799).unwrap().contains("not yet valid"));
        assert_eq!(signers[1].objection("git", 1_577_836_800), None);
        assert!(signers[1].objection("email", 1_577_836_800).unwrap().contains("namespace"));
        assert!(signers[2].objection("git", 0).unwrap().contains("certificate"));
        for bad in [
            "a@x",
            "a@x ssh-ed25519 AAAA",
            &format!("a@x nonsense {KEY}"),
            &format!("a@x valid-after=\"2020\" {KEY}"),
            &format!("a@x namespaces=\"git {KEY}"),
        ] {
            assert!(parse(bad).unwrap_err().starts_with("line 1: "), "{bad}");
        }
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(time("19700101").unwrap(), 0);
        assert_eq!(time("20000229235959Z").unwrap(), 951_868_799);
        assert_eq!(time("202311142213").unwrap(), 1_699_999_980);
        for bad in ["", "2023", "20230229", "20231301", "20231100", "2023111424", "202311142460", "+2023111"]
        {
            assert!(time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn patterns_are_those_of_ssh() {
        assert!(matches_list("git", "git") && matches_list("file,g*", "git") && matches_list("?it", "git"));
        assert!(!matches_list("*,!git", "git") && !matches_list("gi", "git") && !matches_list("", "git"));
        assert!(matches(b"*a*b", b"xaxb") && !matches(b"*a*b", b"xbxa"));
    }
}
