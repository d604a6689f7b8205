//! Variables that are read once and not left lying about.

/// Takes a variable out of the process's environment. None: it was not there, is no text, or another thread might be
/// reading the environment.
pub fn take(name: &str) -> Option<String> {
    let value = std::env::var(name).ok();
    if !crate::process::is_single_threaded().unwrap_or(false) {
        return None;
    }
    // SAFETY: the process has one thread, so nobody reads the environment meanwhile (environ(7)).
    unsafe { std::env::remove_var(name) };
    value
}
