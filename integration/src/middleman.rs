//! Stands between a daemon and its server, sees each request, and kills the daemon at one.
//!
//! It speaks TLS to both, with a certificate of the server's own authority: so a request is known by its path, whatever the packets are. One
//! request a connection; HTTP/1.1, because it offers nothing else.

use crate::procs;
use crate::vault::{LOOPBACK, Rig};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long either side may say nothing.
const SILENCE: Duration = Duration::from_secs(60);
/// How long nobody is let in after a connection that could not be taken.
const ERROR_PAUSE: Duration = Duration::from_millis(10);
/// The largest request or answer.
const BYTES_MAX: usize = 1 << 20;

/// When the daemon is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// Before the server gets the request.
    Asked,
    /// When the server has answered, before the daemon gets that.
    Done,
    /// So long after the daemon got the answer.
    After(Duration),
}

#[derive(Debug, Clone, Copy)]
struct Trap {
    pid: i32,
    path: &'static str,
    when: When,
}

struct Shared {
    server: u16,
    to_daemon: Arc<ServerConfig>,
    to_server: Arc<ClientConfig>,
    trap: Mutex<Option<Trap>>,
    over: AtomicBool,
}

/// The man in the middle; he goes when he is dropped.
pub(crate) struct Middleman {
    port: u16,
    shared: Arc<Shared>,
}

impl Middleman {
    /// Stands before a server.
    pub(crate) fn before(rig: &Rig) -> Result<Self> {
        let pair = rig.authority().server(LOOPBACK, &rig.path("middleman"))?;
        let chain = vec![CertificateDer::from_pem_file(&pair.certificate)?];
        let key = PrivateKeyDer::from_pem_file(&pair.key)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let to_daemon = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(rig.ca())?)?;
        let to_server = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let listener = TcpListener::bind((LOOPBACK, 0))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            server: rig.port(),
            to_daemon: Arc::new(to_daemon),
            to_server: Arc::new(to_server),
            trap: Mutex::new(None),
            over: AtomicBool::new(false),
        });
        let of_all = shared.clone();
        std::thread::spawn(move || {
            for daemon in listener.incoming() {
                if of_all.over.load(Ordering::SeqCst) {
                    break;
                }
                // Whoever was killed before anybody took the connection is an error of accept(2), and not the last one to come.
                let Ok(daemon) = daemon else {
                    std::thread::sleep(ERROR_PAUSE);
                    continue;
                };
                let shared = of_all.clone();
                // Whoever was killed breaks off; that is no failure.
                std::thread::spawn(move || drop(shared.pass(daemon)));
            }
        });
        Ok(Self { port, shared })
    }

    /// The address for a configuration.
    pub(crate) fn address(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Kills a process at the next request to a path below `/v1/`.
    pub(crate) fn trap(&self, pid: i32, path: &'static str, when: When) {
        *self.shared.trap() = Some(Trap { pid, path, when });
    }

    /// Waits until it has.
    pub(crate) fn sprung(&self, within: Duration) -> Result<()> {
        procs::eventually(within, "the daemon came by", || self.shared.trap().is_none())
    }
}

impl Drop for Middleman {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect((LOOPBACK, self.port));
    }
}

impl Shared {
    fn trap(&self) -> MutexGuard<'_, Option<Trap>> {
        self.trap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the trap if it is of this request.
    fn springs(&self, path: &str, when: fn(When) -> bool) -> Option<Trap> {
        let mut trap = self.trap();
        let springs = trap.filter(|trap| path.starts_with(trap.path) && when(trap.when));
        if springs.is_some() {
            *trap = None;
        }
        springs
    }

    fn pass(&self, daemon: TcpStream) -> Result<()> {
        daemon.set_read_timeout(Some(SILENCE))?;
        let mut daemon = StreamOwned::new(ServerConnection::new(self.to_daemon.clone())?, daemon);
        let (path, request) = request(&mut daemon)?;
        if let Some(trap) = self.springs(&path, |when| when == When::Asked) {
            return procs::signal(trap.pid, Signal::KILL);
        }
        let answer = self.ask(&request)?;
        if let Some(trap) = self.springs(&path, |when| when == When::Done) {
            return procs::signal(trap.pid, Signal::KILL);
        }
        daemon.write_all(&answer)?;
        daemon.flush()?;
        daemon.conn.send_close_notify();
        daemon.flush()?;
        if let Some(Trap { pid, when: When::After(pause), .. }) =
            self.springs(&path, |when| matches!(when, When::After(_)))
        {
            std::thread::sleep(pause);
            procs::signal(pid, Signal::KILL)?;
        }
        Ok(())
    }

    fn ask(&self, request: &[u8]) -> Result<Vec<u8>> {
        let server = TcpStream::connect((LOOPBACK, self.server))?;
        server.set_read_timeout(Some(SILENCE))?;
        let name = ServerName::IpAddress(LOOPBACK.into());
        let mut server = StreamOwned::new(ClientConnection::new(self.to_server.clone(), name)?, server);
        server.write_all(request)?;
        server.flush()?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer)?;
        Ok(answer)
    }
}

/// Reads a request, and has it be the last one of its connection.
fn request(from: &mut impl Read) -> Result<(String, Vec<u8>)> {
    let (mut bytes, mut some) = (Vec::new(), [0; 4096]);
    let end = loop {
        let read = from.read(&mut some)?;
        ensure!(read > 0 && bytes.len() < BYTES_MAX, "a request was cut short");
        bytes.extend_from_slice(some.get(..read).unwrap_or_default());
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
    };
    let head = String::from_utf8(bytes.get(..end).unwrap_or_default().to_vec())?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let whole = end + length.unwrap_or(0);
    while bytes.len() < whole {
        let read = from.read(&mut some)?;
        ensure!(read > 0, "a request was cut short");
        bytes.extend_from_slice(some.get(..read).unwrap_or_default());
    }
    let path = head.split(' ').nth(1).context("no path")?;
    let path = path.strip_prefix("/v1/").unwrap_or(path).to_owned();
    let (first, rest) = head.split_once("\r\n").context("no head")?;
    let mut last = format!("{first}\r\nConnection: close\r\n{rest}").into_bytes();
    last.extend_from_slice(bytes.get(end..).unwrap_or_default());
    Ok((path, last))
}
