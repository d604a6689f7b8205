//! Import of a system call list in the form of OCI runtimes and of Docker.
//!
//! What the list says becomes a [`Policy`] that is applied beside the house's own: a call is allowed only
//! where both allow it. What has no counterpart here is refused by name, never left out, but for two things
//! that are counted: names of calls that x86_64 does not have, which runtimes ignore too, and entries under
//! a condition that never holds for a step. Nothing but the text decides what comes out.

use super::compile::numbers;
use super::source::{Action, Condition, Group, Op, Policy, User};
use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{Arch, LinuxSeccompAction, LinuxSeccompFilterFlag, LinuxSeccompOperator};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The name of this architecture in conditions of Docker's, which are libseccomp's names.
const ARCH_CONDITION: &str = "amd64";
/// No sandbox is made on an older kernel: its mounts need mount_setattr(2), which came with this one.
const KERNEL_AT_LEAST: (u32, u32) = (5, 12);

/// A list as a policy, and what was left out of it.
#[derive(Debug)]
pub(crate) struct Imported {
    pub(crate) policy: Policy,
    /// For people; one line each.
    pub(crate) notes: Vec<String>,
}

/// A runtime's configuration, of which one section counts.
#[derive(Debug, Deserialize)]
struct Configuration {
    linux: Option<Linux>,
}

#[derive(Debug, Deserialize)]
struct Linux {
    seccomp: Option<Section>,
}

/// The section, with the fields that Docker and Podman add. The types of `oci-spec` pass over fields that they
/// do not know, which would widen a list that has conditions.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Section {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    default_errno: Option<String>,
    architectures: Option<Vec<Arch>>,
    arch_map: Option<Vec<ArchMapEntry>>,
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    listener_path: Option<String>,
    listener_metadata: Option<String>,
    syscalls: Option<Vec<Entry>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ArchMapEntry {
    architecture: Arch,
    #[serde(rename = "subArchitectures")]
    _others: Option<Vec<Arch>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Entry {
    names: Vec<String>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    errno: Option<String>,
    args: Option<Vec<Arg>>,
    #[serde(rename = "comment")]
    _comment: Option<String>,
    includes: Option<Filter>,
    excludes: Option<Filter>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Arg {
    index: u8,
    value: u64,
    value_two: Option<u64>,
    op: LinuxSeccompOperator,
}

/// When an entry counts (`includes`) or does not (`excludes`).
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Filter {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// What the list says about each call: for each answer, alternatives of conditions.
type Calls = BTreeMap<String, BTreeMap<Action, Vec<Vec<Condition>>>>;

/// Reads a runtime's configuration, or its seccomp section alone.
pub(crate) fn read(text: &str) -> Result<Imported> {
    let value: Value = serde_json::from_str(text).context("not JSON")?;
    let section = if value.get("ociVersion").is_some() || value.get("linux").is_some() {
        let whole: Configuration =
            serde_json::from_str(text).context("not the configuration of an OCI runtime")?;
        let section = whole.linux.and_then(|linux| linux.seccomp);
        section.context("the configuration has no linux.seccomp, so there is nothing to import")?
    } else {
        serde_json::from_str(text).context("not a seccomp section")?
    };
    convert(&section)
}

fn convert(section: &Section) -> Result<Imported> {
    let default = default_action(section)?;
    check_rest(section)?;
    let known = numbers()?;
    let (mut calls, mut unknown, mut conditional) = (Calls::new(), BTreeSet::new(), 0usize);
    for (index, entry) in section.syscalls.iter().flatten().enumerate() {
        let first = entry.names.first().map_or("", String::as_str);
        let place = || format!("syscalls[{index}] ({first}…)");
        ensure!(!entry.names.is_empty(), "syscalls[{index}]: it names no call");
        if !counts(entry).with_context(place)? {
            conditional += 1;
            continue;
        }
        let action = answer(entry.action, entry.errno_ret, entry.errno.as_deref()).with_context(place)?;
        let all = conditions(entry.args.as_deref().unwrap_or_default()).with_context(place)?;
        for name in &entry.names {
            if known.contains_key(name.as_str()) {
                let answers = calls.entry(name.clone()).or_default();
                answers.entry(action).or_default().push(all.clone());
            } else {
                unknown.insert(name.as_str());
            }
        }
    }
    let groups = groups(calls)?;
    let policy = Policy { format: 1, arch: "x86_64".to_owned(), groups, default };
    let mut notes = Vec::new();
    if !unknown.is_empty() {
        let names = unknown.iter().copied().collect::<Vec<_>>().join(", ");
        notes.push(format!(
            "{} names are not in the list of x86_64 calls and were skipped: {names}",
            unknown.len()
        ));
    }
    if conditional > 0 {
        notes.push(format!("{conditional} entries are under conditions that no step meets and were skipped"));
    }
    Ok(Imported { policy, notes })
}

/// What a call gets that no entry names.
fn default_action(section: &Section) -> Result<Action> {
    if section.default_action == LinuxSeccompAction::ScmpActAllow {
        bail!(
            "defaultAction SCMP_ACT_ALLOW: only lists of what is allowed are imported; write SCMP_ACT_ERRNO"
        );
    }
    answer(section.default_action, section.default_errno_ret, section.default_errno.as_deref())
        .context("defaultAction")
}

/// Everything of the section that is neither the default nor an entry.
fn check_rest(section: &Section) -> Result<()> {
    if let Some(flag) = section.flags.iter().flatten().next() {
        bail!("flags: {flag} is not set for steps; leave flags out");
    }
    if section.listener_path.is_some() || section.listener_metadata.is_some() {
        bail!("listenerPath, listenerMetadata: no process answers system calls for a step; leave them out");
    }
    let mapped = section.arch_map.as_ref().map(|map| map.iter().map(|entry| entry.architecture).collect());
    let architectures: Option<Vec<Arch>> = match (&section.architectures, mapped) {
        (Some(_), Some(_)) => {
            bail!("architectures and archMap: they are two ways to say the same; leave one out")
        }
        (named, mapped) => named.clone().or(mapped),
    };
    let native = |arch: &Arch| matches!(arch, Arch::ScmpArchX86_64 | Arch::ScmpArchNative);
    if let Some(list) = architectures.filter(|list| !list.is_empty()) {
        ensure!(
            list.iter().any(native),
            "SCMP_ARCH_X86_64 is not among its architectures; this build knows no other"
        );
    }
    Ok(())
}

/// The answer that an action stands for.
fn answer(action: LinuxSeccompAction, number: Option<u32>, name: Option<&str>) -> Result<Action> {
    use LinuxSeccompAction as Act;
    let errno = errno(number, name)?;
    match action {
        Act::ScmpActErrno => Ok(errno.unwrap_or(Action::Eperm)),
        Act::ScmpActAllow if errno.is_some() => bail!("{action} takes no errno"),
        Act::ScmpActAllow => Ok(Action::Allow),
        Act::ScmpActKill | Act::ScmpActKillThread | Act::ScmpActKillProcess | Act::ScmpActTrap => bail!(
            "{action}: a refused call answers with an errno here, as ordinary programs try calls to see if they \
             are there; write SCMP_ACT_ERRNO"
        ),
        Act::ScmpActLog => bail!("{action}: nobody reads such a log; write SCMP_ACT_ALLOW or SCMP_ACT_ERRNO"),
        Act::ScmpActTrace | Act::ScmpActNotify => {
            bail!("{action}: no process decides about a step's calls; write SCMP_ACT_ALLOW or SCMP_ACT_ERRNO")
        }
    }
}

/// An errno by its number, by its name as Podman writes it, or by both.
fn errno(number: Option<u32>, name: Option<&str>) -> Result<Option<Action>> {
    let by_number = number
        .map(|number| match number {
            1 => Ok(Action::Eperm),
            38 => Ok(Action::Enosys),
            97 => Ok(Action::Eafnosupport),
            _ => {
                bail!("errnoRet {number}: the answers here are 1 (EPERM), 38 (ENOSYS) and 97 (EAFNOSUPPORT)")
            }
        })
        .transpose()?;
    let by_name = name
        .map(|name| match name {
            "EPERM" => Ok(Action::Eperm),
            "ENOSYS" => Ok(Action::Enosys),
            "EAFNOSUPPORT" => Ok(Action::Eafnosupport),
            _ => bail!("errno {name}: the answers here are EPERM, ENOSYS and EAFNOSUPPORT"),
        })
        .transpose()?;
    if let (Some(number), Some(name)) = (by_number, by_name) {
        ensure!(number == name, "errno and errnoRet name different answers");
    }
    Ok(by_number.or(by_name))
}

/// Whether an entry counts for a step, which has no capability, on x86_64.
fn counts(entry: &Entry) -> Result<bool> {
    let none = Filter::default();
    let includes = entry.includes.as_ref().unwrap_or(&none);
    let excludes = entry.excludes.as_ref().unwrap_or(&none);
    let here = |arches: &Option<Vec<String>>| {
        arches.as_ref().filter(|list| !list.is_empty()).map(|list| list.iter().any(|a| a == ARCH_CONDITION))
    };
    let demands_capability = includes.caps.as_ref().is_some_and(|caps| !caps.is_empty());
    if demands_capability || here(&includes.arches) == Some(false) || here(&excludes.arches) == Some(true) {
        return Ok(false);
    }
    if let Some(version) = &includes.min_kernel {
        holds_everywhere(version)?;
    }
    if let Some(version) = &excludes.min_kernel {
        holds_everywhere(version)?;
        return Ok(false);
    }
    Ok(true)
}

/// An error unless every kernel that makes a sandbox is this new.
fn holds_everywhere(version: &str) -> Result<()> {
    let parts = version.split_once('.');
    let parts = parts.and_then(|(kernel, major)| Some((kernel.parse().ok()?, major.parse().ok()?)));
    let wanted: (u32, u32) = parts.with_context(|| format!("minKernel {version:?}: write it as 5.12"))?;
    let (kernel, major) = KERNEL_AT_LEAST;
    ensure!(
        wanted <= KERNEL_AT_LEAST,
        "minKernel {version}: newer than {kernel}.{major}, so what the profile says would depend on the host"
    );
    Ok(())
}

/// The conditions of an entry, which must all hold. Arguments are compared whole, as libseccomp does.
fn conditions(args: &[Arg]) -> Result<Vec<Condition>> {
    let mut seen = BTreeSet::new();
    args.iter()
        .map(|arg| {
            ensure!(arg.index < 6, "index {}: a call has arguments 0 to 5", arg.index);
            ensure!(
                seen.insert(arg.index),
                "index {} twice: runtimes do not agree whether both conditions must hold or one; write one entry \
                 for each alternative",
                arg.index
            );
            condition(arg)
        })
        .collect()
}

fn condition(arg: &Arg) -> Result<Condition> {
    use LinuxSeccompOperator as Is;
    let Arg { index, value, op, .. } = *arg;
    let two = arg.value_two.unwrap_or(0);
    ensure!(op == Is::ScmpCmpMaskedEq || two == 0, "valueTwo goes with SCMP_CMP_MASKED_EQ, not with {op}");
    let (op, mask, value) = match op {
        Is::ScmpCmpEq => (Op::Eq, None, value),
        Is::ScmpCmpNe => (Op::Ne, None, value),
        Is::ScmpCmpGe => (Op::AtLeast, None, value),
        Is::ScmpCmpLt => (Op::Below, None, value),
        // One more, but for the highest number: nothing is above it, and everything is at most it.
        Is::ScmpCmpGt => value.checked_add(1).map_or((Op::Below, None, 0), |more| (Op::AtLeast, None, more)),
        Is::ScmpCmpLe => value.checked_add(1).map_or((Op::AtLeast, None, 0), |more| (Op::Below, None, more)),
        Is::ScmpCmpMaskedEq => {
            ensure!(
                two & !value == 0,
                "SCMP_CMP_MASKED_EQ: valueTwo {two} has bits outside the mask, value {value}"
            );
            (Op::MaskedEq, Some(value), two)
        }
    };
    Ok(Condition { arg: index, bits: 64, op, mask, value, means: "as imported".to_owned() })
}

/// A group for each call and answer. What would depend on how a runtime merges entries is refused.
fn groups(calls: Calls) -> Result<Vec<Group>> {
    let mut groups = Vec::new();
    for (name, answers) in calls {
        let always = |alternatives: &[Vec<Condition>]| alternatives.iter().any(Vec::is_empty);
        let refused = answers.iter().find(|(action, when)| **action != Action::Allow && always(when));
        if let (Some((action, _)), true) = (refused, answers.len() > 1) {
            bail!(
                "{name}: one entry always answers {action:?}, another something else; which of them counts depends on \
                 the runtime and on their order; leave one out, or give each its conditions"
            );
        }
        for (action, when) in answers {
            let when = if always(&when) { Vec::new() } else { when };
            let (reason, names) = ("imported".to_owned(), vec![name.clone()]);
            groups.push(Group { action, reason, names, users: User::both(), when });
        }
    }
    Ok(groups)
}
