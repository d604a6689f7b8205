//! A job's control groups, on version 2 and on hosts where controllers sit in version 1 hierarchies.
//!
//! No process of a job is ever moved: init is made inside its version 2 group (`CLONE_INTO_CGROUP`), and joins
//! version 1 groups by writing `0` to their `tasks` files, which it inherits open. A thread that moves itself
//! does not take the lock that costs an RCU grace period (about 10 ms after idle) when another process is
//! moved through `cgroup.procs`.

mod above;
mod files;
mod group;
mod hierarchies;
mod limits;

pub use group::{Counts, JobCgroup, OomWatch, remove_dirs};
pub use hierarchies::Hierarchies;

/// The controllers that limits need.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];
