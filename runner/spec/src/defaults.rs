//! What every sandbox is like unless a job says otherwise. The runner sets these, the attestation names them.

/// Variables of every step, besides `SOURCE_DATE_EPOCH`.
pub const ENV_DEFAULTS: [(&str, &str); 5] = [
    ("HOME", "/home/build"),
    ("LC_ALL", "C.UTF-8"),
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("TMPDIR", "/tmp"),
    ("TZ", "UTC"),
];

/// The host name.
pub const HOSTNAME: &str = "ampoule";

/// The file mode creation mask of every step.
pub const UMASK: u32 = 0o022;

/// The user and group id of every step, inside the sandbox.
pub const BUILD_ID: u32 = 1000;

/// The user and group id of the sandbox's process 1, inside the sandbox. No step has it, whoever its job asks
/// for, and no image has a use for it.
pub const INIT_ID: u32 = 65_532;

/// The user and group id of the log pumps, seen from inside the sandbox, which they are not in.
pub const PUMP_ID: u32 = 65_533;
