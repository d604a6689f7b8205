//! Runs the compiled program on a table of calls, as the kernel would.

mod equivalence;
mod import;

use super::*;
use Answer::{Allow, Errno, Kill};
use ampoule_spec::{Network, SeccompProgram};
use std::collections::BTreeSet;

const NATIVE: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const AARCH64: u32 = 0xc000_00b7;
const X32_BIT: u32 = 0x4000_0000;
const PERM: Answer = Errno(1);
const NOSYS: Answer = Errno(38);
const NOFAMILY: Answer = Errno(97);

/// A bit above the 32 that the kernel reads of an int.
const HIGH: u64 = 1 << 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Allow,
    Errno(u32),
    Kill,
}

struct Call {
    nr: u32,
    arch: u32,
    args: [u64; 6],
}

impl Call {
    /// `struct seccomp_data` as the program sees it, little endian.
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.nr,
            4 => self.arch,
            8 | 12 => 0,
            16..64 if offset.is_multiple_of(4) => {
                let arg = self.args[(offset as usize - 16) / 8];
                if offset.is_multiple_of(8) { arg as u32 } else { (arg >> 32) as u32 }
            }
            _ => panic!("load at {offset}"),
        }
    }
}

/// Interprets one program; panics on an instruction that the kernel would refuse too.
fn interpret(program: &[u64], call: &Call) -> u32 {
    let (mut pc, mut acc) = (0usize, 0u32);
    loop {
        let raw = program[pc];
        let (code, jt, jf, k) = ((raw >> 48) as u16, (raw >> 40) as u8, (raw >> 32) as u8, raw as u32);
        pc += 1;
        let mut jump = |holds: bool| pc += usize::from(if holds { jt } else { jf });
        match code {
            0x20 => acc = call.word(k),
            0x05 => pc += k as usize,
            0x15 => jump(acc == k),
            0x25 => jump(acc > k),
            0x35 => jump(acc >= k),
            0x45 => jump(acc & k != 0),
            0x54 => acc &= k,
            0x06 => return k,
            _ => panic!("instruction {code:#x} at {}", pc - 1),
        }
    }
}

/// seccomp_run_filters() of kernel/seccomp.c: newest first, a strictly lower action replaces.
fn answer(programs: &[SeccompProgram], call: &Call) -> Answer {
    let mut result = 0x7fff_0000u32;
    for program in programs.iter().rev() {
        let value = interpret(&program.instructions, call);
        // Actions compare as signed numbers: KILL_PROCESS is 0x80000000, the lowest.
        if ((value & 0xffff_0000) as i32) < ((result & 0xffff_0000) as i32) {
            result = value;
        }
    }
    match result & 0xffff_0000 {
        0x7fff_0000 => Allow,
        0x0005_0000 => Errno(result & 0xffff),
        0x8000_0000 => Kill,
        other => panic!("action {other:#x}"),
    }
}

/// seccomp_is_const_allow() of kernel/seccomp.c: whether the kernel sees without arguments that a call is
/// allowed, remembers it and never runs the program for it.
fn remembered(program: &[u64], nr: u32) -> bool {
    let (mut pc, mut acc) = (0usize, 0u32);
    loop {
        let raw = program[pc];
        let (code, jt, jf, k) = ((raw >> 48) as u16, (raw >> 40) as u8, (raw >> 32) as u8, raw as u32);
        pc += 1;
        let mut jump = |holds: bool| pc += usize::from(if holds { jt } else { jf });
        match code {
            0x20 if k == 0 => acc = nr,
            0x20 if k == 4 => acc = NATIVE,
            0x05 => pc += k as usize,
            0x15 => jump(acc == k),
            0x25 => jump(acc > k),
            0x35 => jump(acc >= k),
            0x45 => jump(acc & k != 0),
            0x54 => acc &= k,
            0x06 => return k == 0x7fff_0000,
            _ => return false,
        }
    }
}

/// The programs of both users, of which most tests ask that they answer alike.
struct Filters {
    profile: Profile,
    numbers: BTreeMap<&'static str, u32>,
}

impl Filters {
    fn compiled() -> Self {
        let root = &crate::root().unwrap();
        let compiled = compile_all(root).unwrap();
        let hermetic = compiled.iter().find(|c| c.path.ends_with("hermetic.json")).unwrap();
        Self { profile: serde_json::from_str(&hermetic.text).unwrap(), numbers: compile::numbers().unwrap() }
    }

    fn programs(&self, user: User) -> &[SeccompProgram] {
        match user {
            User::Build => &self.profile.seccomp.build,
            User::Root => &self.profile.seccomp.root,
        }
    }

    fn answers(&self, call: &Call) -> [Answer; 2] {
        User::ALL.map(|user| answer(self.programs(user), call))
    }

    fn of(&self, name: &str, args: &[u64]) -> [Answer; 2] {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        let nr = *self.numbers.get(name).unwrap_or_else(|| panic!("{name} is not in the table"));
        self.answers(&Call { nr, arch: NATIVE, args: all })
    }

    fn expect(&self, name: &str, args: &[u64], want: Answer) {
        self.expect_each(name, args, want, want);
    }

    fn expect_each(&self, name: &str, args: &[u64], build: Answer, root: Answer) {
        assert_eq!(self.of(name, args), [build, root], "{name} {args:#x?}");
    }
}

fn policy() -> Policy {
    let root = &crate::root().unwrap();
    Policy::parse(&fs::read_to_string(root.join("sandbox-profiles/seccomp/x86_64.json")).unwrap()).unwrap()
}

#[test]
fn policy_names_every_call_that_has_a_name() {
    let policy = policy();
    let named: BTreeSet<&str> = policy.groups.iter().flat_map(|g| &g.names).map(String::as_str).collect();
    let all: BTreeSet<&str> = compile::numbers().unwrap().into_keys().collect();
    assert_eq!(all.difference(&named).collect::<Vec<_>>(), Vec::<&&str>::new());
    assert!(all.len() >= 360, "{}", all.len());
}

#[test]
fn every_call_answers_as_its_group_says() {
    let (filters, policy) = (Filters::compiled(), policy());
    let mut checked = 0;
    for group in policy.groups.iter().filter(|g| g.when.is_empty()) {
        for name in &group.names {
            let want = match group.action {
                source::Action::Allow => Allow,
                source::Action::Eperm => PERM,
                source::Action::Eafnosupport => NOFAMILY,
                source::Action::Enosys => NOSYS,
            };
            filters.expect(name, &[], want);
            // Arguments change nothing for these, unless another group looks at them.
            let conditional = policy.groups.iter().any(|g| !g.when.is_empty() && g.names.contains(name));
            if !conditional {
                filters.expect(name, &[u64::MAX; 6], want);
            }
            checked += 1;
        }
    }
    assert!(checked >= 350, "{checked}");
}

#[test]
fn denied_calls_answer_as_the_design_says() {
    let filters = Filters::compiled();
    // Written out, so that a change of the policy alone cannot pass.
    let eperm = "mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick move_mount open_tree mount_setattr \
        setns ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp bpf perf_event_open userfaultfd \
        fanotify_init add_key request_key keyctl kexec_load kexec_file_load init_module finit_module \
        delete_module reboot iopl ioperm swapon swapoff acct quotactl syslog settimeofday clock_settime \
        clock_adjtime adjtimex open_by_handle_at mbind move_pages migrate_pages";
    for name in eperm.split_whitespace() {
        filters.expect(name, &[], PERM);
    }
    for name in "clone3 openat2 io_uring_setup io_uring_enter io_uring_register modify_ldt".split(' ') {
        filters.expect(name, &[], NOSYS);
    }
    let ordinary = "read write openat execve execveat fork vfork futex mmap mprotect statx rename linkat prctl seccomp \
        landlock_restrict_self memfd_create getrandom rseq epoll_wait inotify_add_watch copy_file_range splice \
        set_robust_list sched_setaffinity prlimit64 io_submit shmget mq_open setxattr bind connect rt_sigreturn";
    for name in ordinary.split_whitespace() {
        filters.expect(name, &[], Allow);
    }
}

#[test]
fn numbers_without_a_name_answer_enosys() {
    let filters = Filters::compiled();
    let known: BTreeSet<u32> = filters.numbers.values().copied().collect();
    let unknown = (0..1024).filter(|nr| !known.contains(nr)).chain([0x7fff_ffff, u32::MAX, 0x8000_0000]);
    for nr in unknown {
        assert_eq!(filters.answers(&Call { nr, arch: NATIVE, args: [0; 6] }), [NOSYS; 2], "{nr}");
    }
}

#[test]
fn x32_numbers_answer_enosys() {
    let filters = Filters::compiled();
    for nr in (0..600).map(|nr| nr | X32_BIT) {
        assert_eq!(filters.answers(&Call { nr, arch: NATIVE, args: [0; 6] }), [NOSYS; 2], "{nr:#x}");
    }
}

#[test]
fn foreign_architectures_are_killed() {
    let filters = Filters::compiled();
    for arch in [I386, AARCH64, 0, u32::MAX] {
        for nr in 0..512 {
            assert_eq!(filters.answers(&Call { nr, arch, args: [0; 6] }), [Kill; 2], "{arch:#x} {nr}");
        }
    }
}

#[test]
fn clone_each_namespace_flag_is_denied_alone_and_together() {
    let filters = Filters::compiled();
    let flags = [7, 17, 25, 26, 27, 28, 29, 30].map(|bit| 1u64 << bit);
    for name in ["clone", "unshare"] {
        for bit in 0..32 {
            let want = if flags.contains(&(1 << bit)) { PERM } else { Allow };
            filters.expect(name, &[1 << bit], want);
            filters.expect(name, &[1 << bit | HIGH], want);
        }
        for first in flags {
            for second in flags {
                filters.expect(name, &[first | second | 0x11], PERM);
            }
        }
        filters.expect(name, &[0x7e02_0080], PERM);
        filters.expect(name, &[0], Allow);
    }
    // What glibc passes for fork, for a thread and for posix_spawn.
    for flags in [0x0120_0011, 0x003d_0f00, 0x4111] {
        filters.expect("clone", &[flags], Allow);
    }
}

#[test]
fn ioctl_terminal_requests_are_denied_on_their_low_half() {
    let filters = Filters::compiled();
    for request in [0x5412, 0x541c, 0x541d, 0x5423] {
        for high in [0, HIGH, 1 << 63, 0xffff_ffff_0000_0000] {
            filters.expect("ioctl", &[0, request | high], PERM);
        }
    }
    // TCGETS, TIOCGWINSZ, FIONREAD, FICLONE, FS_IOC_GETFLAGS
    for request in [0x5401, 0x5413, 0x541b, 0x4004_9409, 0x8008_6601] {
        filters.expect("ioctl", &[0, request], Allow);
    }
    filters.expect("ioctl", &[0x5412, 0x5401, 0x5412], Allow);
}

#[test]
fn socket_families_outside_the_list_answer_eafnosupport() {
    let filters = Filters::compiled();
    for name in ["socket", "socketpair"] {
        for family in 0..=255u64 {
            let want = if matches!(family, 1 | 2 | 10 | 16) { Allow } else { NOFAMILY };
            filters.expect(name, &[family, 1, 0], want);
            filters.expect(name, &[family | HIGH, 1, 0], want);
        }
        for protocol in 1..=64u64 {
            filters.expect(name, &[16, 3, protocol], NOFAMILY);
        }
        // Of the internet families only what every kernel has built in: MPTCP is 262, SCTP 132, L2TP 115.
        for protocol in (0..=300u64).chain([HIGH | 6, HIGH | 262]) {
            let known = matches!(protocol as u32, 0 | 1 | 6 | 17 | 58);
            for family in [2, 10] {
                filters.expect(name, &[family, 1, protocol], if known { Allow } else { NOFAMILY });
            }
        }
        filters.expect(name, &[16, 3, HIGH], Allow);
    }
    // SOCK_PACKET, also with SOCK_CLOEXEC and SOCK_NONBLOCK, would become AF_PACKET.
    for kind in [10, 10 | 0o2_000_000, 10 | 0o4000] {
        filters.expect("socket", &[2, kind, 0], NOFAMILY);
    }
    for kind in [1, 2, 3, 5, 1 | 0o2_000_000] {
        filters.expect("socket", &[2, kind, 0], Allow);
    }
}

#[test]
fn limits_of_other_processes_can_be_read_but_not_set() {
    let filters = Filters::compiled();
    filters.expect("prlimit64", &[0, 7, 0x1000, 0], Allow);
    filters.expect("prlimit64", &[1, 7, 0, 0x1000], Allow);
    filters.expect("prlimit64", &[1, 7, 0x1000, 0], PERM);
    filters.expect("prlimit64", &[HIGH, 7, 0x1000, 0], Allow);
    filters.expect("prlimit64", &[1, 7, HIGH, 0], PERM);
}

#[test]
fn set_id_modes_are_denied_to_the_build_user_alone_however_a_file_is_made() {
    let filters = Filters::compiled();
    let cases: [(&str, usize); 5] =
        [("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("fchmodat2", 2), ("creat", 1)];
    for (name, index) in cases {
        for mode in 0..=0o7777u64 {
            let mut args = [0; 6];
            args[index] = mode;
            let build = if mode & 0o6000 != 0 { PERM } else { Allow };
            filters.expect_each(name, &args, build, Allow);
            args[index] = mode | HIGH;
            filters.expect_each(name, &args, build, Allow);
        }
    }
    for (name, index) in [("open", 1), ("openat", 2)] {
        for (flags, makes) in [(0, false), (0o100, true), (0o20_200_000, true), (0o1_000_000, false)] {
            for (mode, set_id) in
                [(0o755, false), (0o4755, true), (0o2755, true), (0o6000, true), (0o1777, false)]
            {
                let mut args = [0; 6];
                args[index] = flags;
                args[index + 1] = mode;
                filters.expect_each(name, &args, if makes && set_id { PERM } else { Allow }, Allow);
            }
        }
    }
}

#[test]
fn mknod_makes_files_fifos_and_sockets_only() {
    let filters = Filters::compiled();
    for (name, index) in [("mknod", 1), ("mknodat", 2)] {
        for kind in 0..16u64 {
            let mut args = [0; 6];
            args[index] = kind << 12 | 0o644;
            let want = match kind {
                0 | 0o10 | 0o1 | 0o14 => Allow,
                0o2 | 0o6 | 0o4 | 0o12 => PERM,
                _ => NOSYS,
            };
            filters.expect(name, &args, want);
            args[index] |= 0o4000;
            filters.expect_each(name, &args, PERM, want);
        }
    }
}

#[test]
fn personality_only_asks_or_stays_native() {
    let filters = Filters::compiled();
    for persona in [0, 0xffff_ffff, HIGH, u64::MAX] {
        filters.expect("personality", &[persona], Allow);
    }
    for persona in [8, 0x0040_0000, 0x0002_0000, 0x0800_0000, 1, 0xffff_fffe] {
        filters.expect("personality", &[persona], PERM);
    }
}

#[test]
fn far_jumps_arrive_where_near_ones_do() {
    for between in 240..270 {
        let mut program = bpf::Program::default();
        let [yes, no] = [1, 2].map(|value| {
            let end = program.answer(value);
            program.and(0xff, end)
        });
        (0..between).fold(no, |next, _| program.load(16, next));
        let choice = program.if_equal(5, yes, no);
        let start = program.load(4, choice);
        let program = program.finish(start).unwrap();
        for (arch, want) in [(5, 1), (6, 2)] {
            assert_eq!(interpret(&program, &Call { nr: 0, arch, args: [0; 6] }), want, "{between}");
        }
    }
}

#[test]
fn kernel_remembers_every_call_that_is_allowed_whatever_its_arguments() {
    let (filters, policy) = (Filters::compiled(), policy());
    let mut allowed = [0; 2];
    for (user, allowed) in User::ALL.into_iter().zip(&mut allowed) {
        let [program] = filters.programs(user) else { panic!("not one program") };
        for (name, nr) in &filters.numbers {
            let mut groups = policy.groups_of(user).filter(|g| g.names.iter().any(|n| n == name));
            let always = groups.all(|g| g.action == source::Action::Allow && g.when.is_empty());
            assert_eq!(remembered(&program.instructions, *nr), always, "{user:?} {name}");
            *allowed += usize::from(always);
        }
    }
    // The modes of chmod, fchmod, fchmodat, fchmodat2, creat, open and openat are looked at for one user alone.
    assert!(allowed[0] >= 240 && allowed[1] == allowed[0] + 7, "{allowed:?}");
}

#[test]
fn profiles_differ_in_demands_not_in_filters() {
    let root = &crate::root().unwrap();
    let profiles: Vec<Profile> =
        compile_all(root).unwrap().iter().map(|c| serde_json::from_str(&c.text).unwrap()).collect();
    let [dev, fetch, hermetic] = profiles.as_slice() else { panic!("{}", profiles.len()) };
    assert_eq!([dev, fetch, hermetic].map(|p| p.name.as_str()), ["dev", "fetch", "hermetic"]);
    assert_eq!([dev, fetch, hermetic].map(|p| p.network), [Network::None, Network::Proxy, Network::None]);
    let sealed = Profile { network: Network::None, ..fetch.clone() };
    assert_eq!(
        Profile { name: hermetic.name.clone(), summary: hermetic.summary.clone(), ..sealed },
        *hermetic
    );
    assert_eq!((&dev.seccomp, &dev.landlock), (&hermetic.seccomp, &hermetic.landlock));
    assert_eq!(hermetic.requires.landlock_abi, 2);
    assert!(hermetic.requires.cgroup_limits && hermetic.requires.dedicated_uid);
    assert!(!dev.requires.cgroup_limits && !dev.requires.dedicated_uid);
    for programs in [&hermetic.seccomp.build, &hermetic.seccomp.root] {
        let [program] = programs.as_slice() else { panic!("{}", programs.len()) };
        // Loading is paid by every step: what grows the program to many times this needs another look.
        assert!(program.instructions.len() < 320, "{}", program.instructions.len());
    }
}

#[test]
fn compiled_files_match_their_sources() {
    let root = &crate::root().unwrap();
    assert!(run(root, true).unwrap(), "run `cargo xtask profiles`");
}
