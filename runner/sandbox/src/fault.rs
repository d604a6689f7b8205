//! Faults that a test asks for: a stage that fails, a process that dies, a profile below the floor.
//!
//! A runner that is built without the feature `faults`, as every runner that is installed, has none of this: the
//! functions are constants in it, and it takes no option that would ask for a fault.

#[cfg(feature = "faults")]
pub use imp::{Plan, install};
pub(crate) use imp::{overlays_are_made_by_name, user_attributes_are_lost};
pub use imp::{point, role, unmeasured_layers_are_allowed, weak_profiles_are_allowed};

#[cfg(not(feature = "faults"))]
mod imp {
    use crate::error::StageError;

    /// A place at which a test can have something fail. Nothing fails here.
    ///
    /// # Errors
    /// None.
    #[inline]
    pub fn point(_stage: &str) -> Result<(), StageError> {
        Ok(())
    }

    /// Says what the calling process is, from here on.
    #[inline]
    pub fn role(_name: &'static str) {}

    /// No.
    #[inline]
    pub(crate) fn overlays_are_made_by_name() -> bool {
        false
    }

    /// No.
    #[inline]
    pub(crate) fn user_attributes_are_lost() -> bool {
        false
    }

    /// No.
    #[inline]
    pub fn weak_profiles_are_allowed() -> bool {
        false
    }

    /// No.
    #[inline]
    pub fn unmeasured_layers_are_allowed() -> bool {
        false
    }
}

#[cfg(feature = "faults")]
mod imp {
    use crate::error::StageError;
    use rustix::process::{Signal, getpid, kill_process};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Mutex, OnceLock, PoisonError};

    /// What a test asks for.
    #[derive(Debug, Clone, Default)]
    pub struct Plan {
        /// Which process, by its role; none: no fault.
        pub role: Option<String>,
        /// At which of its points, from 1.
        pub number: u64,
        /// Whether it dies there, or the point fails.
        pub dies: bool,
        /// How often the fault has happened: shared with every process below.
        pub fired: Option<&'static AtomicU64>,
        /// Profiles may be below the floor.
        pub weak: bool,
        /// A layer that is demanded may be measured as absent.
        pub unmeasured: bool,
        /// Overlays are made as on kernels before 6.15.
        pub by_name: bool,
        /// A tmpfs keeps no extended attributes of users, as before 6.6.
        pub old_tmpfs: bool,
    }

    struct Place {
        role: &'static str,
        count: u64,
    }

    static PLAN: OnceLock<Plan> = OnceLock::new();
    static PLACE: Mutex<Place> = Mutex::new(Place { role: "launcher", count: 0 });

    /// Takes a plan, once.
    pub fn install(plan: Plan) {
        let _ = PLAN.set(plan);
    }

    /// Says what the calling process is, from here on; its points are counted anew.
    pub fn role(name: &'static str) {
        *PLACE.lock().unwrap_or_else(PoisonError::into_inner) = Place { role: name, count: 0 };
    }

    /// A place at which a test can have something fail.
    ///
    /// # Errors
    /// EIO, if this is the place.
    pub fn point(stage: &str) -> Result<(), StageError> {
        let Some(plan) = PLAN.get().filter(|plan| plan.role.is_some()) else { return Ok(()) };
        let hit = {
            let mut place = PLACE.lock().unwrap_or_else(PoisonError::into_inner);
            place.count += 1;
            plan.role.as_deref() == Some(place.role) && place.count == plan.number
        };
        if !hit {
            return Ok(());
        }
        if let Some(fired) = plan.fired {
            fired.fetch_add(1, Ordering::SeqCst);
        }
        if plan.dies {
            let _ = kill_process(getpid(), Signal::KILL);
        }
        Err(StageError { stage: stage.to_owned(), errno: 5, unsupported: None })
    }

    /// Whether overlays are made as on kernels before 6.15.
    pub(crate) fn overlays_are_made_by_name() -> bool {
        PLAN.get().is_some_and(|plan| plan.by_name)
    }

    /// Whether a tmpfs is treated as if it kept no extended attributes of users.
    pub(crate) fn user_attributes_are_lost() -> bool {
        PLAN.get().is_some_and(|plan| plan.old_tmpfs)
    }

    /// Whether profiles may be below the floor.
    pub fn weak_profiles_are_allowed() -> bool {
        PLAN.get().is_some_and(|plan| plan.weak)
    }

    /// Whether a job runs although a layer that its profile demands was measured to be absent.
    pub fn unmeasured_layers_are_allowed() -> bool {
        PLAN.get().is_some_and(|plan| plan.unmeasured)
    }
}
