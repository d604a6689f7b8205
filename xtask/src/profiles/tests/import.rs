//! Lists of OCI runtimes and of Docker: what they say, what the house keeps, and what is refused.

use super::super::import;
use super::super::source::Action;
use super::equivalence::{Numbers, said, values};
use super::*;

/// Written by hand: each thing that an import can say, once.
const LIST: &str = include_str!("../testdata/list.json");

/// A repository with the house's policy, a list, and a profile that imports it.
fn repository(seccomp: &str, list: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (theirs, ours) =
        (dir.path().join("sandbox-profiles"), crate::root().unwrap().join("sandbox-profiles"));
    fs::create_dir_all(theirs.join("seccomp")).unwrap();
    fs::copy(ours.join(HOUSE), theirs.join(HOUSE)).unwrap();
    fs::write(theirs.join("seccomp/list.json"), list).unwrap();
    let profile = fs::read_to_string(ours.join("hermetic.toml")).unwrap();
    let changed = profile
        .replace("name    = \"hermetic\"", "name    = \"listed\"")
        .replace("seccomp = \"seccomp/x86_64.json\"", &format!("seccomp = {seccomp}"));
    fs::write(theirs.join("listed.toml"), changed).unwrap();
    dir
}

fn compiled(list: &str) -> Compiled {
    let dir = repository(r#"{ oci = "seccomp/list.json" }"#, list);
    let mut all = compile_all(dir.path()).unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

fn filters(list: &str) -> Filters {
    let profile = serde_json::from_str(&compiled(list).text).unwrap();
    Filters { profile, numbers: compile::numbers().unwrap() }
}

fn section(default: &str, syscalls: Value) -> String {
    json!({ "defaultAction": default, "syscalls": syscalls }).to_string()
}

fn entry(name: &str, action: &str, args: &[Value]) -> Value {
    json!({ "names": [name], "action": action, "args": args })
}

/// Holds the one program against two in a row, as the kernel combines them, and against the rules as they read.
fn assert_intersection(list: &str, rounds: usize) {
    let (house, numbers) = (policy(), compile::numbers().unwrap());
    let imported = import::read(list).unwrap().policy;
    let names: BTreeMap<u32, &str> = numbers.iter().map(|(name, nr)| (*nr, *name)).collect();
    let mut random = Numbers(0x9e37_79b9_7f4a_7c15);
    for user in User::ALL {
        let one = compile::programs(&house, Some(&imported), user).unwrap();
        // The house's last: of two errnos the kernel takes that of the filter loaded last.
        let two = [
            compile::programs(&imported, None, user).unwrap(),
            compile::programs(&house, None, user).unwrap(),
        ];
        let two = two.concat();
        assert_eq!((one.len(), two.len()), (1, 2));
        for nr in
            (0..=512).chain((0..=512).map(|nr| nr | X32_BIT)).chain([0x7fff_ffff, 0x8000_0000, u32::MAX])
        {
            let name = names.get(&nr).copied().unwrap_or_default();
            let near = [values(&house, name), values(&imported, name)].concat();
            for round in 0..if near.len() > 4 { rounds } else { 20 } {
                let args = [(); 6].map(|()| random.argument(&near));
                let arch = if round % 16 == 15 { random.of(&[I386, AARCH64, u32::MAX]) } else { NATIVE };
                let call = Call { nr, arch, args };
                let got = answer(&one, &call);
                assert_eq!(got, answer(&two, &call), "{user:?} {name} {nr:#x} {arch:#x} {args:#x?}");
                if arch == NATIVE {
                    let want = match said(&house, user, name, &args) {
                        Allow => said(&imported, user, name, &args),
                        refused => refused,
                    };
                    assert_eq!(got, want, "{user:?} {name} {args:#x?}");
                }
            }
        }
    }
}

#[test]
fn imported_list_allows_what_both_allow() {
    assert_intersection(LIST, 3_000);
    let filters = filters(LIST);
    for name in
        "read write close openat fstat mmap munmap brk execve wait4 exit_group seccomp getpid".split(' ')
    {
        filters.expect(name, &[], Allow);
    }
    // What the house allows and the list does not name gets the list's default.
    for name in "rename fork vfork kill connect getdents64 getppid gettid getuid getgid".split(' ') {
        filters.expect(name, &[], PERM);
    }
    filters.expect("memfd_create", &[], NOSYS);
    filters.expect("socketpair", &[1, 1], NOFAMILY);
}

#[test]
fn imported_arguments_are_compared_whole() {
    let filters = filters(LIST);
    for (families, want) in [(0..3, [NOFAMILY, Allow, Allow]), (9..12, [NOFAMILY, Allow, NOFAMILY])] {
        for (family, want) in families.zip(want) {
            filters.expect("socket", &[family, 1, 0], want);
        }
    }
    // The house looks at 32 bits of a family and allows it; the list looks at 64, above 37, and does so too.
    filters.expect("socket", &[HIGH | 1, 1, 0], Allow);
    filters.expect("socket", &[16, 3, 0], PERM);
    for (args, want) in [
        ([3, 0, 0], Allow),
        ([2, 0, 0], PERM),
        ([HIGH, 0, 0], Allow),
        ([3, 0, 2], PERM),
        ([3, 0, HIGH | 2], Allow),
        ([u64::MAX, u64::MAX, 1], Allow),
    ] {
        filters.expect("lseek", &args, want);
    }
    filters.expect("prctl", &[22], NOSYS);
    filters.expect("prctl", &[HIGH | 22], Allow);
    filters.expect("prctl", &[23], Allow);
}

#[test]
fn imported_list_cannot_open_what_the_house_refuses() {
    let filters = filters(LIST);
    let eperm = "mount umount2 pivot_root chroot setns bpf ptrace keyctl add_key open_by_handle_at kexec_load \
        init_module userfaultfd";
    for name in eperm.split_whitespace() {
        filters.expect(name, &[], PERM);
    }
    for name in ["clone3", "openat2", "io_uring_setup"] {
        filters.expect(name, &[], NOSYS);
    }
    // The list's mask has one of the flags.
    for flag in [7, 17, 25, 26, 27, 28, 29, 30].map(|bit| 1 << bit) {
        filters.expect("clone", &[flag], PERM);
        filters.expect("unshare", &[flag], PERM);
    }
    filters.expect("clone", &[0x0120_0011], Allow);
    for family in [38, 40, 17, 44] {
        filters.expect("socket", &[family, 1, 0], NOFAMILY);
    }
    for (persona, want) in [(0, Allow), (1, PERM), (0xffff_ffff, PERM), (131_072, PERM)] {
        filters.expect("personality", &[persona], want);
    }
    filters.expect("ioctl", &[0, 0x5412], PERM);
    filters.expect("ioctl", &[0, 0x5401], Allow);
    filters.expect_each("chmod", &[0, 0o4755], PERM, Allow);
    for nr in [0, 59, 1024] {
        assert_eq!(filters.answers(&Call { nr, arch: I386, args: [0; 6] }), [Kill; 2]);
        assert_eq!(filters.answers(&Call { nr: nr | X32_BIT, arch: NATIVE, args: [0; 6] }), [NOSYS; 2]);
    }
}

#[test]
fn list_that_allows_everything_gives_the_houses_own_program() {
    let names: Vec<&str> = compile::numbers().unwrap().into_keys().collect();
    let all = json!([{ "names": names, "action": "SCMP_ACT_ALLOW" }]);
    let (listed, own) = (filters(&section("SCMP_ACT_ERRNO", all)), Filters::compiled());
    for user in User::ALL {
        assert_eq!(listed.programs(user)[0].instructions, own.programs(user)[0].instructions, "{user:?}");
    }
    let none = filters(&section("SCMP_ACT_ERRNO", json!([])));
    for nr in 0..512 {
        assert!(!none.answers(&Call { nr, arch: NATIVE, args: [0; 6] }).contains(&Allow), "{nr}");
    }
}

#[test]
fn kernel_remembers_what_house_and_list_allow_whatever_the_arguments() {
    let (listed, own) = (filters(LIST), Filters::compiled());
    let list = import::read(LIST).unwrap().policy;
    let mut both = 0;
    for (name, nr) in &listed.numbers {
        let mut groups = list.groups.iter().filter(|g| g.names.iter().any(|n| n == name)).peekable();
        let always =
            groups.peek().is_some() && groups.all(|g| g.action == Action::Allow && g.when.is_empty());
        for user in User::ALL {
            let remembers = |filters: &Filters| remembered(&filters.programs(user)[0].instructions, *nr);
            assert_eq!(remembers(&listed), always && remembers(&own), "{user:?} {name}");
            both += usize::from(remembers(&listed));
        }
    }
    assert!(both >= 20, "{both}");
}

/// What a section says to a native call, read from its JSON: nothing of the import is used.
fn section_says(section: &Value, name: &str, args: &[u64; 6]) -> Answer {
    let holds = |arg: &Value| {
        let seen = args[arg["index"].as_u64().unwrap() as usize];
        let value = arg["value"].as_u64().unwrap();
        match arg["op"].as_str().unwrap() {
            "SCMP_CMP_EQ" => seen == value,
            "SCMP_CMP_NE" => seen != value,
            "SCMP_CMP_LT" => seen < value,
            "SCMP_CMP_LE" => seen <= value,
            "SCMP_CMP_GT" => seen > value,
            "SCMP_CMP_GE" => seen >= value,
            "SCMP_CMP_MASKED_EQ" => seen & value == arg["valueTwo"].as_u64().unwrap_or(0),
            other => panic!("{other}"),
        }
    };
    let answers = section["syscalls"].as_array().unwrap().iter().filter(|entry| {
        let named = entry["names"].as_array().unwrap().iter().any(|n| n == name);
        named && entry["args"].as_array().is_none_or(|args| args.iter().all(holds))
    });
    let number = |errno: &Value| errno.as_u64().unwrap_or(1) as u32;
    let answers: BTreeSet<Option<u32>> =
        answers.map(|e| (e["action"] == "SCMP_ACT_ERRNO").then(|| number(&e["errnoRet"]))).collect();
    // The strictest: an address family before a permission before a call that is not there.
    match [97, 1, 38].into_iter().find(|errno| answers.contains(&Some(*errno))) {
        Some(errno) => Errno(errno),
        None if answers.contains(&None) => Allow,
        None => Errno(number(&section["defaultErrnoRet"])),
    }
}

fn random_section(random: &mut Numbers, names: &[&str]) -> Value {
    let arg = |random: &mut Numbers, index: u64| {
        let value = random.of(&[0, 1, 2, 16, HIGH, HIGH | 1, 0x7e02_0000, u64::MAX - 1, u64::MAX]);
        let ops = ["EQ", "NE", "LT", "LE", "GT", "GE", "MASKED_EQ"];
        let op = format!("SCMP_CMP_{}", random.of(&ops));
        let two = if op.ends_with("MASKED_EQ") { value & random.next() } else { 0 };
        json!({ "index": index, "value": value, "valueTwo": two, "op": op })
    };
    let mut entries = Vec::new();
    for name in names {
        let refused = random.below(4) == 0;
        for _ in 0..random.below(4) {
            let first = random.below(3);
            let args: Vec<Value> = (first..first + random.below(3)).map(|index| arg(random, index)).collect();
            // What is refused always may not be answered otherwise.
            let errno = random.of(&[1, 38, 97]);
            let entry = if refused && !args.is_empty() {
                json!({ "names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": errno, "args": args })
            } else {
                json!({ "names": [name, "no_such_call"], "action": "SCMP_ACT_ALLOW", "args": args })
            };
            entries.push(entry);
        }
    }
    json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": random.of(&[1, 38, 97]), "syscalls": entries })
}

#[test]
fn any_list_answers_as_it_says_below_the_house() {
    let (house, numbers) = (policy(), compile::numbers().unwrap());
    let names: Vec<&str> = numbers.keys().copied().collect();
    let mut random = Numbers(0x2545_f491_4f6c_dd1d);
    let near: Vec<u64> = vec![0, 1, 2, 3, 16, 17, HIGH, HIGH | 1, 0x7e02_0000, u64::MAX - 1, u64::MAX];
    let mut allowed = 0;
    for _ in 0..6 {
        let checked: Vec<&str> = names.iter().copied().filter(|_| random.below(6) == 0).collect();
        let list = random_section(&mut random, &checked);
        let imported = import::read(&list.to_string()).unwrap();
        for user in User::ALL {
            let program = compile::programs(&house, Some(&imported.policy), user).unwrap();
            for name in &checked {
                let near = [near.clone(), values(&house, name)].concat();
                for _ in 0..150 {
                    let args = [(); 6].map(|()| random.argument(&near));
                    let want = match said(&house, user, name, &args) {
                        Allow => section_says(&list, name, &args),
                        refused => refused,
                    };
                    let got = answer(&program, &Call { nr: numbers[name], arch: NATIVE, args });
                    assert_eq!(got, want, "{user:?} {name} {args:#x?}");
                    allowed += usize::from(got == Allow);
                }
            }
        }
        assert_intersection(&list.to_string(), 40);
    }
    assert!(allowed > 1_000, "{allowed}");
}

#[test]
fn whole_configuration_is_read_by_its_section() {
    let section: Value = serde_json::from_str(LIST).unwrap();
    let whole = json!({
        "ociVersion": "1.2.0",
        "process": { "cwd": "/", "args": ["sh"] },
        "linux": { "namespaces": [{ "type": "pid" }], "seccomp": section },
    });
    assert_eq!(compiled(&whole.to_string()).text, compiled(LIST).text);
    for without in [json!({ "ociVersion": "1.2.0" }), json!({ "ociVersion": "1.2.0", "linux": {} })] {
        let error = import::read(&without.to_string()).unwrap_err();
        assert!(format!("{error:#}").contains("no linux.seccomp"), "{error:#}");
    }
}

#[test]
fn compiled_list_depends_on_what_it_says_alone() {
    let first = compiled(LIST);
    assert_eq!(first.text, compiled(LIST).text);
    let [names, entries] = first.notes.as_slice() else { panic!("{:?}", first.notes) };
    assert!(names.ends_with(
        "3 names are not in the list of x86_64 calls and were skipped: mmap2, socketcall, waitpid"
    ));
    assert!(
        entries.ends_with("4 entries are under conditions that no step meets and were skipped"),
        "{entries}"
    );
    // Comments, names of other machines and entries that never count leave no trace.
    let mut changed: Value = serde_json::from_str(LIST).unwrap();
    let syscalls = changed["syscalls"].as_array_mut().unwrap();
    syscalls[0]["comment"] = json!("otherwise");
    syscalls.push(json!({ "names": ["riscv_flush_icache", "raed"], "action": "SCMP_ACT_ALLOW" }));
    syscalls
        .push(json!({ "names": ["rename"], "action": "SCMP_ACT_ALLOW", "includes": { "arches": ["arm"] } }));
    let again = compiled(&changed.to_string());
    assert_eq!(again.text, first.text);
    assert_ne!(again.notes, first.notes);
    syscalls_allow(&mut changed, "rename");
    assert_ne!(compiled(&changed.to_string()).text, first.text);
}

fn syscalls_allow(section: &mut Value, name: &str) {
    section["syscalls"].as_array_mut().unwrap().push(entry(name, "SCMP_ACT_ALLOW", &[]));
}

/// A small section with one thing changed.
fn with(change: impl Fn(&mut Value)) -> String {
    let args = [json!({ "index": 0, "value": 3, "op": "SCMP_CMP_EQ" })];
    let mut section = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [entry("read", "SCMP_ACT_ALLOW", &args)],
    });
    change(&mut section);
    section.to_string()
}

fn assert_refused(what: &str, list: &str, says: &[&str]) {
    let error = format!("{:#}", import::read(list).map(|_| ()).unwrap_err());
    assert!(says.iter().all(|text| error.contains(text)), "{what}: {error}");
}

#[test]
fn unsupported_actions_are_refused_by_name() {
    import::read(&with(|_| ())).unwrap();
    let kills = ["SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"];
    let others = ["SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_NOTIFY"];
    for action in kills.into_iter().chain(others) {
        let why =
            if kills.contains(&action) { "answers with an errno here" } else { "write SCMP_ACT_ALLOW or" };
        assert_refused(
            action,
            &with(|s| s["defaultAction"] = json!(action)),
            &["defaultAction", action, why],
        );
        let entry = with(|s| s["syscalls"][0]["action"] = json!(action));
        assert_refused(action, &entry, &["syscalls[0] (read…)", action, why]);
    }
    for (what, list, says) in [
        (
            "allow by default",
            with(|s| s["defaultAction"] = json!("SCMP_ACT_ALLOW")),
            ["defaultAction SCMP_ACT_ALLOW", "lists of what is allowed"],
        ),
        (
            "no such action",
            with(|s| s["defaultAction"] = json!("SCMP_ACT_ASK")),
            ["SCMP_ACT_ASK", "unknown variant"],
        ),
        ("other errno", with(|s| s["defaultErrnoRet"] = json!(13)), ["defaultAction", "errnoRet 13"]),
        (
            "other errno by name",
            with(|s| s["defaultErrno"] = json!("EINVAL")),
            ["defaultAction", "errno EINVAL"],
        ),
        (
            "two errnos",
            with(|s| {
                s["defaultErrno"] = json!("EPERM");
                s["defaultErrnoRet"] = json!(38);
            }),
            ["errno and errnoRet", "different"],
        ),
        (
            "errno of an allowance",
            with(|s| s["syscalls"][0]["errnoRet"] = json!(1)),
            ["SCMP_ACT_ALLOW", "takes no errno"],
        ),
    ] {
        assert_refused(what, &list, &says);
    }
}

#[test]
fn unsupported_fields_and_conditions_are_refused_by_name() {
    let arg =
        |field: &'static str, value: Value| with(move |s| s["syscalls"][0]["args"][0][field] = value.clone());
    let top = |field: &'static str, value: Value| with(move |s| s[field] = value.clone());
    let of = |field: &'static str, value: Value| with(move |s| s["syscalls"][0][field] = value.clone());
    let x86 = json!([{ "architecture": "SCMP_ARCH_AARCH64" }]);
    let both = with(|s| {
        s["architectures"] = json!(["SCMP_ARCH_X86_64"]);
        s["archMap"] = json!([{ "architecture": "SCMP_ARCH_X86_64" }]);
    });
    let twice = with(|s| {
        let first = s["syscalls"][0]["args"][0].clone();
        s["syscalls"][0]["args"].as_array_mut().unwrap().push(first);
    });
    for (what, list, says) in [
        ("flags", top("flags", json!(["SECCOMP_FILTER_FLAG_SPEC_ALLOW"])), "SECCOMP_FILTER_FLAG_SPEC_ALLOW"),
        ("listener", top("listenerPath", json!("/run/agent")), "listenerPath"),
        ("field", top("deny", json!([])), "unknown field `deny`"),
        (
            "architectures",
            top("architectures", json!(["SCMP_ARCH_AARCH64"])),
            "SCMP_ARCH_X86_64 is not among",
        ),
        ("archMap", top("archMap", x86), "SCMP_ARCH_X86_64 is not among"),
        ("both", both, "architectures and archMap"),
        ("names", of("names", json!([])), "syscalls[0]: it names no call"),
        ("old name", of("name", json!("read")), "unknown field `name`"),
        ("includes", of("includes", json!({ "distro": "x" })), "unknown field `distro`"),
        ("kernel", of("includes", json!({ "minKernel": "5.13" })), "minKernel 5.13: newer than 5.12"),
        ("kernel", of("excludes", json!({ "minKernel": "7.0" })), "minKernel 7.0: newer than 5.12"),
        ("kernel", of("includes", json!({ "minKernel": "new" })), "minKernel \"new\""),
        ("index", arg("index", json!(6)), "index 6: a call has arguments 0 to 5"),
        ("twice", twice, "index 0 twice"),
        ("operator", arg("op", json!("SCMP_CMP_IN")), "SCMP_CMP_IN"),
        (
            "two values",
            arg("valueTwo", json!(7)),
            "valueTwo goes with SCMP_CMP_MASKED_EQ, not with SCMP_CMP_EQ",
        ),
        (
            "mask",
            with(|s| {
                s["syscalls"][0]["args"][0] =
                    json!({ "index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": 3, "valueTwo": 4 })
            }),
            "bits outside the mask",
        ),
        ("argument", arg("bits", json!(32)), "unknown field `bits`"),
    ] {
        assert_refused(what, &list, &[says]);
    }
}

#[test]
fn entries_that_runtimes_would_merge_away_are_refused() {
    let when = [json!({ "index": 0, "value": 3, "op": "SCMP_CMP_EQ" })];
    let errno = |errno: u32, args: &[Value]| json!({ "names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno, "args": args });
    let list = |entries: &[Value]| section("SCMP_ACT_ERRNO", json!(entries));
    for entries in [
        [errno(1, &[]), entry("read", "SCMP_ACT_ALLOW", &[])],
        [errno(38, &[]), entry("read", "SCMP_ACT_ALLOW", &when)],
        [errno(38, &[]), errno(1, &when)],
        [errno(38, &[]), errno(1, &[])],
    ] {
        assert_refused("always refused", &list(&entries), &["read: one entry always answers"]);
    }
    for entries in [
        [errno(38, &when), entry("read", "SCMP_ACT_ALLOW", &[])],
        [errno(38, &when), errno(97, &when)],
        [errno(38, &[]), errno(38, &when)],
    ] {
        import::read(&list(&entries)).unwrap();
    }
}

#[test]
fn profile_names_a_policy_or_a_list_below_its_folder() {
    let error = |seccomp: &str| {
        let dir = repository(seccomp, LIST);
        compile_all(dir.path()).map(|_| ()).map_err(|e| format!("{e:#}"))
    };
    error(r#""seccomp/x86_64.json""#).unwrap();
    error(r#"{ oci = "seccomp/list.json" }"#).unwrap();
    for (seccomp, says) in [
        (r#""../x.json""#, "write a path below"),
        (r#"{ oci = "../x.json" }"#, "write a path below"),
        (r#"{ oci = "/x.json" }"#, "write a path below"),
        (r#"{ oci = "seccomp/none.json" }"#, "seccomp/none.json"),
        (r#"{ oci = "seccomp/list.json", allow = [] }"#, "seccomp is the path of a policy, or"),
        (r#"{}"#, "seccomp is the path of a policy, or"),
        ("1", "seccomp is the path of a policy, or"),
        // A list is no policy, nor the other way round.
        (r#""seccomp/list.json""#, "not a seccomp policy"),
        (r#"{ oci = "seccomp/x86_64.json" }"#, "not a seccomp section"),
    ] {
        let found = error(seccomp).unwrap_err();
        assert!(found.contains(says), "{seccomp}: {found}");
    }
}
