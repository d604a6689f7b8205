//! Asynchronous work from a thread that blocks.

use std::io;
use tokio::runtime::{Builder, Runtime};

/// Does work that needs a runtime, on this thread, which is none of a runtime's.
///
/// What the work leaves behind is not waited for: a name that is being resolved sits in a call that nobody can take
/// back, and who cancels is not held up by it.
///
/// # Errors
/// When the process has no descriptor left for a runtime.
pub(crate) fn with_runtime<T>(work: impl FnOnce(&Runtime) -> T) -> io::Result<T> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let done = work(&runtime);
    runtime.shutdown_background();
    Ok(done)
}
