//! The reviewed source of a system call policy: `sandbox-profiles/seccomp/<arch>.json`.

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Deserializer, de};
use std::collections::BTreeMap;

/// A policy for one architecture: groups of calls with the reason for what happens to them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Policy {
    pub(crate) format: u32,
    pub(crate) arch: String,
    pub(crate) groups: Vec<Group>,
    /// What a call gets that no group names. A list that is imported may have another.
    #[serde(skip, default = "Action::unnamed")]
    pub(crate) default: Action,
}

/// Calls that share an answer and a reason.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Group {
    pub(crate) action: Action,
    pub(crate) reason: String,
    pub(crate) names: Vec<String>,
    /// For steps of which users the group holds; both if the source says nothing.
    #[serde(default = "User::both")]
    pub(crate) users: Vec<User>,
    /// Alternatives, each a list of conditions that must all hold; empty = always.
    #[serde(default)]
    pub(crate) when: Vec<Vec<Condition>>,
}

/// Who a step is in the sandbox. Each has a program of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum User {
    /// The ordinary build user.
    Build,
    /// Uid 0 of the sandbox, which is nobody outside.
    Root,
}

impl User {
    pub(crate) const ALL: [Self; 2] = [Self::Build, Self::Root];

    /// What a group that names nobody is for.
    pub(crate) fn both() -> Vec<Self> {
        Self::ALL.into()
    }
}

/// The answer to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Action {
    Allow,
    Eperm,
    Eafnosupport,
    /// What an unnamed call gets too; naming it records the reason.
    Enosys,
}

impl Action {
    fn unnamed() -> Self {
        Self::Enosys
    }
}

/// One comparison of one argument.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Condition {
    pub(crate) arg: u8,
    /// 32 where the kernel takes an int or reads only the low half, else 64.
    pub(crate) bits: u8,
    pub(crate) op: Op,
    #[serde(default, deserialize_with = "optional_number")]
    pub(crate) mask: Option<u64>,
    #[serde(deserialize_with = "number")]
    pub(crate) value: u64,
    /// The value's name in the kernel's headers.
    pub(crate) means: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Op {
    Eq,
    Ne,
    MaskedEq,
    /// Compared without a sign.
    AtLeast,
    Below,
}

impl Policy {
    /// Reads a policy and checks what its types cannot say.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let policy: Self = serde_json::from_str(text).context("not a seccomp policy")?;
        ensure!(policy.format == 1, "format {} is not known; this build knows 1", policy.format);
        for group in &policy.groups {
            group.check().with_context(|| format!("group {:?}", group.reason))?;
        }
        for user in User::ALL {
            policy.check_names(user).with_context(|| format!("for the user {user:?}"))?;
        }
        Ok(policy)
    }

    /// The groups that hold for steps of this user.
    pub(crate) fn groups_of(&self, user: User) -> impl Iterator<Item = &Group> {
        self.groups.iter().filter(move |group| group.users.contains(&user))
    }

    /// Refuses policies whose answer would depend on how the compiler and the kernel merge rules.
    fn check_names(&self, user: User) -> Result<()> {
        let mut seen: BTreeMap<(&str, Action), Vec<&Group>> = BTreeMap::new();
        for group in self.groups_of(user) {
            for name in &group.names {
                seen.entry((name, group.action)).or_default().push(group);
            }
        }
        for ((name, action), groups) in &seen {
            let always = groups.iter().any(|g| g.when.is_empty());
            if groups.len() > 1 && (always || *action == Action::Allow) {
                bail!("{name}: more than one {action:?} group names it, of which one always holds");
            }
            let allowed = seen.contains_key(&(*name, Action::Allow));
            match action {
                Action::Allow => {}
                _ if always && allowed => {
                    bail!("{name}: allowed by one group and always {action:?} by another")
                }
                Action::Enosys if !always => bail!("{name}: ENOSYS is the default; it takes no condition"),
                _ if !always && !allowed => {
                    bail!("{name}: {action:?} on condition, but no group allows the rest")
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Group {
    fn check(&self) -> Result<()> {
        ensure!(self.reason.len() >= 10, "it needs a reason");
        ensure!(!self.names.is_empty(), "it names no call");
        ensure!(
            !self.users.is_empty() && self.users.is_sorted_by(|a, b| a < b),
            "users names build, root or both, in this order; without it the group is for both"
        );
        for condition in self.when.iter().flatten() {
            ensure!(condition.arg < 6, "a call has arguments 0 to 5");
            ensure!(matches!(condition.bits, 32 | 64), "bits is 32 or 64");
            ensure!(!condition.means.is_empty(), "say what the value means");
            let limit = if condition.bits == 32 { u64::from(u32::MAX) } else { u64::MAX };
            ensure!(condition.value <= limit, "{} does not fit {} bits", condition.means, condition.bits);
            match (condition.op, condition.mask) {
                (Op::MaskedEq, Some(mask)) => {
                    ensure!(condition.value & !mask == 0, "{}: value outside its mask", condition.means);
                    ensure!(mask <= limit, "{}: mask does not fit", condition.means);
                }
                (Op::MaskedEq, None) => bail!("{}: masked_eq needs a mask", condition.means),
                (_, Some(_)) => bail!("{}: a mask goes with masked_eq", condition.means),
                (_, None) => {}
            }
        }
        ensure!(self.when.iter().all(|all| !all.is_empty()), "an empty alternative always holds");
        Ok(())
    }
}

/// Reads `0x…`, `0o…` or decimal digits: JSON has no other way to write a mask readably.
fn parse_number(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x") {
        u64::from_str_radix(hex, 16).ok()
    } else if let Some(octal) = text.strip_prefix("0o") {
        u64::from_str_radix(octal, 8).ok()
    } else {
        text.parse().ok()
    }
}

fn number<'de, D: Deserializer<'de>>(input: D) -> Result<u64, D::Error> {
    let text = String::deserialize(input)?;
    parse_number(&text).ok_or_else(|| de::Error::custom(format!("{text:?} is not a number")))
}

fn optional_number<'de, D: Deserializer<'de>>(input: D) -> Result<Option<u64>, D::Error> {
    number(input).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(groups: &str) -> Result<Policy> {
        Policy::parse(&format!(r#"{{"format":1,"arch":"x86_64","groups":[{groups}]}}"#))
    }

    fn group(action: &str, name: &str, when: &str) -> String {
        format!(r#"{{"action":"{action}","reason":"for the test","names":["{name}"],"when":[{when}]}}"#)
    }

    const WHEN: &str = r#"[{"arg":0,"bits":32,"op":"eq","value":"0x1","means":"one"}]"#;

    #[test]
    fn policy_two_groups_of_which_one_is_unconditional_is_refused() {
        assert!(policy(&[group("allow", "read", ""), group("allow", "read", WHEN)].join(",")).is_err());
        assert!(policy(&[group("allow", "read", ""), group("eperm", "read", "")].join(",")).is_err());
        assert!(policy(&[group("allow", "read", ""), group("eperm", "read", WHEN)].join(",")).is_ok());
    }

    #[test]
    fn policy_conditional_denial_without_allowance_is_refused() {
        assert!(policy(&group("eperm", "read", WHEN)).is_err());
        assert!(policy(&group("enosys", "read", WHEN)).is_err());
        assert!(policy(&group("eperm", "read", "")).is_ok());
    }

    #[test]
    fn policy_groups_hold_for_the_users_that_they_name() {
        let of = |action: &str, when: &str, users: &str| {
            let group = group(action, "read", when);
            if users.is_empty() { group } else { group.replacen('{', &format!(r#"{{"users":{users},"#), 1) }
        };
        let parsed = policy(&[of("allow", "", ""), of("eperm", WHEN, r#"["build"]"#)].join(",")).unwrap();
        assert_eq!(User::ALL.map(|user| parsed.groups_of(user).count()), [2, 1]);
        for users in ["[]", r#"["root","root"]"#, r#"["root","build"]"#, r#"["nobody"]"#, r#""build""#] {
            assert!(policy(&of("allow", "", users)).is_err(), "{users}");
        }
        // Each user's groups must be a policy by themselves.
        let half = [of("allow", "", r#"["build"]"#), of("eperm", WHEN, r#"["root"]"#)].join(",");
        assert!(format!("{:#}", policy(&half).unwrap_err()).contains("Root"));
        let apart = [of("allow", "", r#"["build"]"#), of("eperm", "", r#"["root"]"#)].join(",");
        assert!(policy(&apart).is_ok());
    }

    #[test]
    fn policy_value_outside_mask_is_refused() {
        let wide = r#"[{"arg":0,"bits":32,"op":"masked_eq","mask":"0x1","value":"0x2","means":"two"}]"#;
        assert!(policy(&group("allow", "read", wide)).is_err());
        let plain = r#"[{"arg":0,"bits":32,"op":"masked_eq","value":"0x2","means":"two"}]"#;
        assert!(policy(&group("allow", "read", plain)).is_err());
    }

    #[test]
    fn number_forms_are_read() {
        assert_eq!(["0x10", "0o10", "10", "x"].map(parse_number), [Some(16), Some(8), Some(10), None]);
    }
}
