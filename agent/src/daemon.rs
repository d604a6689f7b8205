//! The daemon `ampouled` as a process: its configuration, its life, and what it tells its operator.
//!
//! What it does for clients is elsewhere; here is what keeps it running and says how it does.

mod able;
pub mod args;
mod capacity;
pub mod config;
mod counted;
mod drift;
mod glue;
pub mod host;
mod http;
mod life;
mod listen;
mod logs;
pub mod metrics;
mod notify;
mod places;
mod record;
mod reload;
mod secret;
mod services;
mod vitals;

pub use life::run;
