//! What systemd is told (sd_notify(3)).
//!
//! `NOTIFY_SOCKET` stays in the environment, because removing a variable is unsound once there are threads. Nobody
//! inherits it: this program starts no other.

use sd_notify::NotifyState;
use std::time::Duration;

/// Tells systemd something; without systemd, nobody.
pub(super) fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd could not be told");
    }
}

/// That the configuration is read again. `READY=1` ends it.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "no monotonic clock"),
    }
}

/// How often the watchdog wants to be fed: half of what the unit allows. None: there is no watchdog.
pub(super) fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|allowed| allowed / 2)
}
