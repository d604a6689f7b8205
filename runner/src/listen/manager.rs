//! What a service manager says to a service and hears from it: sockets that it has bound (sd_listen_fds(3)), and that
//! the service is ready and alive (sd_notify(3)).

use ampoule_sys::{environment, fd};
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The first descriptor that a manager passes on.
const LISTEN_FDS_START: i32 = 3;

/// What a manager has said. The variables are taken out of the environment.
#[derive(Debug)]
pub(crate) struct Manager {
    socket: Option<OwnedFd>,
    notify: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Manager {
    /// Reads it.
    ///
    /// # Errors
    /// For people: what was said cannot be meant for a listener.
    pub(crate) fn hear() -> Result<Self, String> {
        let [pid, count, _names] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"].map(environment::take);
        let [watchdog_pid, watchdog] = ["WATCHDOG_PID", "WATCHDOG_USEC"].map(environment::take);
        let notify = environment::take("NOTIFY_SOCKET");
        let socket = match (is_ours(pid.as_deref()), count.as_deref()) {
            (true, Some("1")) => {
                let socket = fd::duplicate_inherited(LISTEN_FDS_START);
                Some(socket.map_err(|e| format!("LISTEN_FDS is 1, and descriptor 3 cannot be used: {e}"))?)
            }
            (true, Some(count)) if count != "0" => {
                return Err(format!("LISTEN_FDS is {count}: the unit has to pass one socket on"));
            }
            _ => None,
        };
        let micros = watchdog.filter(|_| watchdog_pid.is_none() || is_ours(watchdog_pid.as_deref()));
        let micros = micros.and_then(|text| text.parse().ok()).filter(|micros| *micros > 0);
        Ok(Self {
            socket,
            notify: notify.as_deref().and_then(|name| notify_socket(name).ok()),
            watchdog: micros.map(Duration::from_micros),
        })
    }

    /// The socket that it has bound, if it has.
    pub(crate) fn take_socket(&mut self) -> Option<OwnedFd> {
        self.socket.take()
    }

    /// How often it wants to hear that the service is alive: half of what it waits.
    pub(crate) fn watchdog_every(&self) -> Option<Duration> {
        self.watchdog.filter(|_| self.notify.is_some()).map(|limit| limit / 2)
    }

    /// Says something, if somebody wants to hear it. A manager that does not read is not waited for.
    pub(crate) fn say(&self, state: &str) {
        if let Some((socket, manager)) = &self.notify {
            let _ = socket.send_to_addr(state.as_bytes(), manager);
        }
    }
}

fn is_ours(pid: Option<&str>) -> bool {
    pid.and_then(|pid| pid.parse().ok()) == Some(std::process::id())
}

fn notify_socket(name: &str) -> io::Result<(UnixDatagram, SocketAddr)> {
    let manager = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, manager))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notice_reaches_a_path_and_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("ampoule-test-{}", std::process::id());
        let by_path = (path.to_str().unwrap().to_owned(), UnixDatagram::bind(&path).unwrap());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = (format!("@{name}"), UnixDatagram::bind_addr(&address).unwrap());
        for (name, heard) in [by_path, by_name] {
            let notify = Some(notify_socket(&name).unwrap());
            let manager = Manager { socket: None, notify, watchdog: Some(Duration::from_secs(8)) };
            manager.say("READY=1");
            let mut bytes = [0; 32];
            let count = heard.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..count], b"READY=1");
            assert_eq!(manager.watchdog_every(), Some(Duration::from_secs(4)));
        }
    }

    #[test]
    fn variables_for_another_process_are_none_of_ours() {
        assert!(!is_ours(None) && !is_ours(Some("x")) && !is_ours(Some("1")));
        assert!(is_ours(Some(&std::process::id().to_string())));
    }
}
