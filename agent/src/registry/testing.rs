//! A registry that says exactly what a test wants, over plain http on the loopback interface.

use super::{Access, AuthFile, Reference};
use crate::sources::SourcesFile;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) method: String,
    pub(super) path: String,
    /// Names in lower case.
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Asked {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// What is answered: status with header lines behind it, and the body; `cut` of it is really sent.
pub(super) struct Answer {
    head: String,
    body: Vec<u8>,
    cut: usize,
}

impl Answer {
    pub(super) fn new(head: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self { head: head.into(), cut: body.len(), body }
    }

    /// Breaks off after so many bytes of the body.
    pub(super) fn cut(mut self, at: usize) -> Self {
        self.cut = at;
        self
    }
}

type Script = dyn Fn(&Asked) -> Answer + Send + Sync;

/// A running server; it ends when it is dropped.
pub(super) struct Server {
    address: SocketAddr,
    host: String,
    log: Arc<Mutex<Vec<Asked>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (log, over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (asked, flag) = (Arc::clone(&log), Arc::clone(&over));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if flag.load(Ordering::SeqCst) {
                    return;
                }
                let _ = answer(stream, &script, &asked);
            }
        });
        Self { address, host: address.to_string(), log, over, thread: Some(thread) }
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// The reference `REST` on this server.
    pub(super) fn reference(&self, rest: &str) -> Reference {
        Reference::parse(&format!("docker://{}/{rest}", self.address)).unwrap().0
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.log.lock().unwrap().clone()
    }
}

fn answer(mut stream: TcpStream, script: &Script, log: &Mutex<Vec<Asked>>) -> std::io::Result<()> {
    let mut bytes: Vec<u8> = Vec::new();
    let mut buffer = [0; 4096];
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let mut lines = head.lines();
    let mut words = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let pairs = lines.filter_map(|line| line.split_once(": "));
    let headers: BTreeMap<String, String> =
        pairs.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
    let length: usize = headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut body = bytes.split_off(head_end);
    while body.len() < length {
        match stream.read(&mut buffer)? {
            0 => break,
            count => body.extend_from_slice(&buffer[..count]),
        }
    }
    let asked = Asked { method, path, headers, body };
    log.lock().unwrap().push(asked.clone());
    let answer = script(&asked);
    // A head that says how the body ends, or none: then its length is said.
    let length = if answer.head.to_ascii_lowercase().contains("transfer-encoding") {
        String::new()
    } else {
        format!("content-length: {}\r\n", answer.body.len())
    };
    write!(stream, "HTTP/1.1 {}\r\n{length}connection: close\r\n\r\n", answer.head)?;
    if asked.method != "HEAD" {
        stream.write_all(&answer.body[..answer.cut])?;
    }
    stream.flush()
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // One more connection, so that the thread sees the flag.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The way to these hosts and to public places, with these credentials: the first is a registry, the others are where it
/// may send its clients.
pub(super) fn access(hosts: &[&str], auth: Option<AuthFile>) -> Access {
    let names: Vec<String> = (0..hosts.len()).map(|at| format!("\"o{at}\"")).collect();
    let mut text = format!("sources = 1\n[project.default]\npublic = true\nallow = [{}]\n", names.join(", "));
    for (at, host) in hosts.iter().enumerate() {
        let kind = if at == 0 { "registry" } else { "url" };
        text.push_str(&format!("[origin.o{at}]\n{kind} = \"http://{host}/\"\n"));
    }
    let file = SourcesFile::parse(&text, "sources.toml", std::path::Path::new("")).unwrap();
    Access::new(file.policy(None).unwrap(), auth)
}

/// Runs a future to its end.
pub(super) fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
