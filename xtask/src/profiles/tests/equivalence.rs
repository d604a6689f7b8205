//! The compiler against two others: `seccompiler`, with one program for each kind of answer, which is how
//! profiles were compiled before; and the rules read out of the policy, call by call.

use super::super::source::{Action, Condition, Group, Op};
use super::*;
use seccompiler::{TargetArch, compile_from_json};

/// The programs in the order in which they were loaded: what a call gets that is listed, and any other.
const REFERENCE: [(Action, u32, u32); 3] =
    [(Action::Allow, 0, 38), (Action::Eperm, 1, 0), (Action::Eafnosupport, 97, 0)];

fn reference(policy: &Policy, user: User) -> Vec<SeccompProgram> {
    let answer = |errno: u32| if errno == 0 { json!("allow") } else { json!({ "errno": errno }) };
    let program = |(action, listed, other): (Action, u32, u32)| {
        let groups = policy.groups_of(user).filter(|g| g.action == action);
        let rules: Vec<Value> = groups.flat_map(reference_rules).collect();
        let filter =
            json!({ "mismatch_action": answer(other), "match_action": answer(listed), "filter": rules });
        let text = json!({ "program": filter }).to_string();
        let compiled = compile_from_json(text.as_bytes(), TargetArch::x86_64).unwrap();
        let words = compiled["program"].iter().map(|i| {
            u64::from(i.code) << 48 | u64::from(i.jt) << 40 | u64::from(i.jf) << 32 | u64::from(i.k)
        });
        SeccompProgram { name: format!("{action:?}"), instructions: words.collect() }
    };
    REFERENCE.map(program).into()
}

fn reference_rules(group: &Group) -> Vec<Value> {
    let rule = |name: &String| {
        match group.when.as_slice() {
        [] => vec![json!({ "syscall": name })],
        alternatives => alternatives
            .iter()
            .map(|all| json!({ "syscall": name, "args": all.iter().map(reference_condition).collect::<Vec<_>>() }))
            .collect(),
    }
    };
    group.names.iter().flat_map(rule).collect()
}

fn reference_condition(c: &Condition) -> Value {
    let op = match (c.op, c.mask) {
        (Op::MaskedEq, mask) => json!({ "masked_eq": mask }),
        (Op::Eq, _) => json!("eq"),
        (Op::Ne, _) => json!("ne"),
        (Op::AtLeast, _) => json!("ge"),
        (Op::Below, _) => json!("lt"),
    };
    let length = if c.bits == 32 { "dword" } else { "qword" };
    json!({ "index": c.arg, "type": length, "op": op, "val": c.value })
}

/// The answer as docs/profiles.md says it, for a native call of that name.
pub(super) fn said(policy: &Policy, user: User, name: &str, args: &[u64; 6]) -> Answer {
    let holds = |c: &Condition| {
        let seen = args[usize::from(c.arg)] & if c.bits == 32 { u64::from(u32::MAX) } else { u64::MAX };
        match c.op {
            Op::Eq | Op::MaskedEq => seen & c.mask.unwrap_or(u64::MAX) == c.value,
            Op::Ne => seen != c.value,
            Op::AtLeast => seen >= c.value,
            Op::Below => seen < c.value,
        }
    };
    let named = |action: Action| policy.groups_of(user).filter(move |g| g.action == action);
    let any = |action: Action| {
        named(action)
            .filter(|g| g.names.iter().any(|n| n == name))
            .any(|g| g.when.is_empty() || g.when.iter().any(|all| all.iter().all(holds)))
    };
    match () {
        () if any(Action::Eafnosupport) => NOFAMILY,
        () if any(Action::Eperm) => PERM,
        () if any(Action::Enosys) => NOSYS,
        () if any(Action::Allow) => Allow,
        () => match policy.default {
            Action::Allow => Allow,
            Action::Eperm => PERM,
            Action::Eafnosupport => NOFAMILY,
            Action::Enosys => NOSYS,
        },
    }
}

/// A sequence of numbers that is the same in every run (xorshift64).
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }

    pub(super) fn of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }

    /// An argument near what the policy compares it with, or any.
    pub(super) fn argument(&mut self, near: &[u64]) -> u64 {
        let base = match self.below(8) {
            0 => 0,
            1 => self.next(),
            _ => self.of(near),
        };
        let low = match self.below(8) {
            0 => base ^ 1 << self.below(32),
            1 => base | self.of(near),
            2 => base.wrapping_add(1),
            3 => base.wrapping_sub(1),
            4 => base & self.next(),
            _ => base,
        };
        match self.below(4) {
            0 => low ^ 1 << self.below(64),
            1 => low ^ HIGH,
            _ => low,
        }
    }
}

/// The values with which the policy compares arguments of the call, and the masks.
pub(super) fn values(policy: &Policy, name: &str) -> Vec<u64> {
    let groups = policy.groups.iter().filter(|g| g.names.iter().any(|n| n == name));
    let conditions = groups.flat_map(|g| g.when.iter().flatten());
    conditions.flat_map(|c| [c.value, c.mask.unwrap_or(c.value)]).chain([0, u64::MAX]).collect()
}

#[test]
fn one_program_answers_as_three_did() {
    let (policy, numbers) = (policy(), compile::numbers().unwrap());
    let names: BTreeMap<u32, &str> = numbers.iter().map(|(name, nr)| (*nr, *name)).collect();
    let old = User::ALL.map(|user| reference(&policy, user));
    let new = User::ALL.map(|user| compile::programs(&policy, None, user).unwrap());
    assert!(old.iter().all(|o| o.len() == 3) && new.iter().all(|n| n.len() == 1));
    let mut random = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut cases = 0;
    for nr in (0..=1024).chain((0..=1024).map(|nr| nr | X32_BIT)).chain([0x7fff_ffff, 0x8000_0000, u32::MAX])
    {
        let name = names.get(&nr).copied().unwrap_or_default();
        let near = values(&policy, name);
        let checked = near.len() > 2;
        for round in 0..if checked { 8_000 } else { 40 } {
            let args = [(); 6].map(|()| random.argument(&near));
            let arch = if round % 32 == 31 { random.of(&[I386, AARCH64, 0, u32::MAX]) } else { NATIVE };
            let call = Call { nr, arch, args };
            for (user, (old, new)) in User::ALL.into_iter().zip(old.iter().zip(&new)) {
                let want = answer(old, &call);
                assert_eq!(answer(new, &call), want, "{user:?} {name} {nr:#x} {arch:#x} {args:#x?}");
                if arch == NATIVE {
                    assert_eq!(said(&policy, user, name, &args), want, "{user:?} {name} {args:#x?}");
                }
            }
            cases += 1;
        }
    }
    assert!(cases >= 200_000, "{cases}");
}

/// Whether a call would make a file with a set-id bit, or set one: written out here, not read from the policy.
fn sets_an_id_bit(name: &str, args: &[u64; 6]) -> bool {
    let set_id = |mode: usize| args[mode] & 0o6000 != 0;
    // O_CREAT, or O_TMPFILE without O_DIRECTORY.
    let makes = |flags: usize| args[flags] & 0o20_000_100 != 0;
    match name {
        "chmod" | "fchmod" | "creat" | "mknod" => set_id(1),
        "fchmodat" | "fchmodat2" | "mknodat" => set_id(2),
        "open" => makes(1) && set_id(2),
        "openat" => makes(2) && set_id(3),
        _ => false,
    }
}

#[test]
fn root_of_the_sandbox_differs_in_set_id_modes_and_nothing_else() {
    let (policy, filters) = (policy(), Filters::compiled());
    let mut random = Numbers(0xd1b5_4a32_d192_ed03);
    let mut differing = BTreeSet::new();
    for (name, nr) in &filters.numbers {
        let near = values(&policy, name);
        for _ in 0..if near.len() > 2 { 8_000 } else { 100 } {
            let args = [(); 6].map(|()| random.argument(&near));
            let [build, root] = filters.answers(&Call { nr: *nr, arch: NATIVE, args });
            if sets_an_id_bit(name, &args) {
                // Root gets what it would get for the same mode without these bits.
                let args = args.map(|arg| arg & !0o6000);
                let plain = filters.answers(&Call { nr: *nr, arch: NATIVE, args });
                assert_eq!((build, [root; 2]), (PERM, plain), "{name} {args:#x?}");
            } else {
                assert_eq!(build, root, "{name} {args:#x?}");
            }
            if build != root {
                differing.insert(*name);
            }
        }
    }
    let set_id = ["chmod", "creat", "fchmod", "fchmodat", "fchmodat2", "mknod", "mknodat", "open", "openat"];
    assert_eq!(differing, set_id.into());
}

/// A group on one call, with conditions of all kinds on few values, so that they meet.
fn random_group(random: &mut Numbers, action: Action, name: &str, conditional: bool) -> Group {
    let condition = |random: &mut Numbers| {
        let bits = random.of(&[32u8, 64]);
        let limit = if bits == 32 { u64::from(u32::MAX) } else { u64::MAX };
        let op = random.of(&[Op::Eq, Op::Ne, Op::MaskedEq, Op::MaskedEq, Op::AtLeast, Op::Below]);
        let mask = random.of(&[1, 2, 6, 0xf0, HIGH, 3 << 32, HIGH | 1, u64::MAX]) & limit;
        let value = random.of(&[0, 1, 2, 6, 0x10, HIGH, HIGH | 1, u64::MAX]) & limit;
        let (mask, value) = if op == Op::MaskedEq { (Some(mask), value & mask) } else { (None, value) };
        let arg = random.of(&[0u8, 1, 5]);
        Condition { arg, bits, op, mask, value, means: "for the test".to_owned() }
    };
    let all = |random: &mut Numbers| (0..=random.below(3)).map(|_| condition(random)).collect();
    let when = if conditional { (0..=random.below(4)).map(|_| all(random)).collect() } else { Vec::new() };
    // Never for the build user alone: what is allowed by one group must be so wherever another denies it.
    let users = if action == Action::Allow || random.below(4) > 0 { User::both() } else { vec![User::Root] };
    Group { action, reason: "for the test".to_owned(), names: vec![name.to_owned()], users, when }
}

/// A policy in which the calls that do not answer always the same are `checked` of a thousand.
fn random_policy(random: &mut Numbers, checked: u64) -> Policy {
    let mut groups = Vec::new();
    for name in compile::numbers().unwrap().into_keys() {
        if random.below(1000) < checked {
            let conditional = random.below(2) == 0;
            groups.push(random_group(random, Action::Allow, name, conditional));
            for action in [Action::Eperm, Action::Eperm, Action::Eafnosupport] {
                if random.below(2) == 0 {
                    groups.push(random_group(random, action, name, true));
                }
            }
        } else if random.below(3) > 0 {
            let action = random.of(&[Action::Allow, Action::Eperm, Action::Eafnosupport, Action::Enosys]);
            groups.push(random_group(random, action, name, false));
        }
    }
    Policy { format: 1, arch: "x86_64".to_owned(), groups, default: Action::Enosys }
}

#[test]
fn any_policy_answers_as_it_says() {
    let numbers = compile::numbers().unwrap();
    let mut random = Numbers(0x2545_f491_4f6c_dd1d);
    let (mut longest, mut far) = (0, 0);
    for checked in [0, 5, 20, 60, 60, 100, 150] {
        let policy = random_policy(&mut random, checked);
        for user in User::ALL {
            let new = compile::programs(&policy, None, user).unwrap();
            let old = (checked <= 100).then(|| reference(&policy, user));
            longest = longest.max(new[0].instructions.len());
            far += new[0].instructions.iter().filter(|i| *i >> 48 == 0x05 && (**i as u32) > 255).count();
            for (name, nr) in &numbers {
                let near = values(&policy, name);
                for _ in 0..if near.len() > 2 { 300 } else { 2 } {
                    let args = [(); 6].map(|()| random.argument(&near));
                    let call = Call { nr: *nr, arch: NATIVE, args };
                    let want = said(&policy, user, name, &args);
                    assert_eq!(answer(&new, &call), want, "{name} {args:#x?}");
                    if let Some(old) = &old {
                        assert_eq!(answer(old, &call), want, "the reference: {name} {args:#x?}");
                    }
                }
            }
        }
    }
    assert!(longest > 512 && far > 0, "{longest} instructions, {far} far jumps");
}

#[test]
fn policy_that_cannot_be_compiled_is_refused() {
    let mut random = Numbers(1);
    let of = |arch: &str, group: Group| Policy {
        format: 1,
        arch: arch.to_owned(),
        groups: vec![group],
        default: Action::Enosys,
    };
    let read = random_group(&mut random, Action::Enosys, "read", false);
    assert!(compile::programs(&of("x86_64", read), None, User::Build).is_ok());
    let typo = random_group(&mut random, Action::Enosys, "raed", false);
    assert!(compile::programs(&of("x86_64", typo), None, User::Build).is_err());
    let read = random_group(&mut random, Action::Enosys, "read", false);
    assert!(compile::programs(&of("aarch64", read), None, User::Build).is_err());
    assert!(compile::programs(&random_policy(&mut random, 1000), None, User::Build).is_err());
}
