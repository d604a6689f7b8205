//! How the daemon is doing: what its health is asked for, in one place.

use super::metrics::Metrics;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

/// How the daemon is doing.
#[derive(Debug, Default)]
pub(super) struct Vitals {
    pub(super) metrics: Metrics,
    launcher: AtomicBool,
    accepting: AtomicBool,
    drift: AtomicBool,
    ending: AtomicBool,
    jwks: RwLock<Option<String>>,
}

impl Vitals {
    /// Whether the launcher answers. True if that is new.
    pub(super) fn set_launcher(&self, up: bool) -> bool {
        let is_new = self.launcher.swap(up, Ordering::Relaxed) != up;
        if is_new {
            tracing::info!(up, "the launcher");
        }
        self.metrics.launcher_up.set(i64::from(up));
        is_new
    }

    /// Whether jobs are taken.
    pub(super) fn set_accepting(&self, accepting: bool) {
        self.accepting.store(accepting, Ordering::Relaxed);
        self.metrics.accepting.set(i64::from(accepting));
    }

    /// How many facts of the host have drifted, and whether that ends the intake.
    pub(super) fn set_drift(&self, facts: usize, refuse: bool) {
        self.drift.store(facts > 0 && refuse, Ordering::Relaxed);
        self.metrics.host_drift.set(i64::try_from(facts).unwrap_or(i64::MAX));
    }

    /// By which keys the tokens of steps verify.
    pub(super) fn set_jwks(&self, jwks: String) {
        *self.jwks.write().unwrap_or_else(PoisonError::into_inner) = Some(jwks);
    }

    /// The same; none: not known yet.
    pub(super) fn jwks(&self) -> Option<String> {
        self.jwks.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The daemon ends.
    pub(super) fn set_ending(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    /// Why no job should be sent here now; empty: one may.
    pub(super) fn not_ready(&self) -> Vec<&'static str> {
        let is = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        let reasons = [
            (is(&self.ending), "the daemon ends"),
            (!is(&self.launcher), "the launcher does not answer"),
            (!is(&self.accepting), "no jobs are taken"),
            (is(&self.drift), "the host is not what its baseline says"),
        ];
        reasons.into_iter().filter(|(holds, _)| *holds).map(|(_, reason)| reason).collect()
    }
}
