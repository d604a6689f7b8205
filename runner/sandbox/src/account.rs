//! On whose account the kernel puts what a sandbox uses of its per-user limits.
//!
//! Instances of inotify, signals that wait and the like are counted for the user in the namespace and, on each level
//! above, for whoever made the namespace. Made by host root, all sandboxes would share one count with the host's own
//! services: one job could use it up, and a build would fail for what its neighbours do.

use crate::error::{Stage, StageError};
use crate::identity::Authority;
use ampoule_sys::process::exit_now;
use nix::unistd::{Uid, setresuid};
use rustix::thread::{CapabilitiesSecureBits, capabilities_secure_bits, set_capabilities_secure_bits};

/// The id of the block that is the owner of the sandbox's user namespace, seen from inside. No process has it: outside
/// of the sandbox it would have every capability over the namespace.
const OWNER_ID: u32 = 65_531;
/// To leave an id as it is (setresuid(2)).
const SAME: Uid = Uid::from_raw(u32::MAX);

/// Does something as an id of the job's own, with the capabilities of host root; as an ordinary user, as that.
///
/// # Errors
/// The stage that failed. If the calling process cannot become itself again, it ends.
pub(crate) fn on_account_of<T>(authority: Authority, work: impl FnOnce() -> T) -> Result<T, StageError> {
    if !authority.is_root() {
        return Ok(work());
    }
    let stage = "init: the owner of its namespace";
    let bits = capabilities_secure_bits().stage(stage)?;
    // Else the effective capabilities would go with uid 0 (capabilities(7)).
    set_capabilities_secure_bits(bits | CapabilitiesSecureBits::NO_SETUID_FIXUP).stage(stage)?;
    let on_account = setresuid(SAME, Uid::from_raw(authority.host_id(OWNER_ID)), SAME).stage(stage);
    let done = on_account.map(|()| work());
    let itself =
        setresuid(SAME, Uid::from_raw(0), SAME).is_ok() && set_capabilities_secure_bits(bits).is_ok();
    if !itself {
        // Neither may go on: the sandbox's first process dies with this one, and the launcher reports it.
        exit_now(70);
    }
    done
}
