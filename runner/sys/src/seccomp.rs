//! Loading of system call filters (seccomp(2)).

use std::io;

/// `SECCOMP_SET_MODE_FILTER` (linux/seccomp.h).
const SET_MODE_FILTER: libc::c_uint = 1;
/// `BPF_MAXINSNS` (linux/bpf_common.h).
const INSTRUCTIONS_MAX: usize = 4096;

/// Loads one filter into the calling thread for good. Needs `no_new_privs` (which the caller sets).
///
/// Each instruction is `code << 48 | jt << 40 | jf << 32 | k` (struct sock_filter, linux/filter.h). The kernel
/// checks the program before it takes it; a wrong one is refused.
///
/// # Errors
/// `EINVAL` for an empty, too long or malformed program, `EACCES` without `no_new_privs`.
pub fn load(instructions: &[u64]) -> io::Result<()> {
    if instructions.is_empty() || instructions.len() > INSTRUCTIONS_MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut program: Vec<libc::sock_filter> = instructions
        .iter()
        .map(|word| {
            let [code_high, code_low, jt, jf, k3, k2, k1, k0] = word.to_be_bytes();
            libc::sock_filter {
                code: u16::from_be_bytes([code_high, code_low]),
                jt,
                jf,
                k: u32::from_be_bytes([k3, k2, k1, k0]),
            }
        })
        .collect();
    let length = u16::try_from(program.len()).unwrap_or(0);
    let request = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: `request` points to `len` instructions in `program`; both outlive the call, which reads only.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, 0_u32, &raw const request) };
    crate::check(done).map(drop)
}
