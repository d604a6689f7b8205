//! A server on the loopback interface that answers one thing.

use anyhow::Result;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// In how many pieces a slow answer comes.
const PIECES: u32 = 50;

/// A running server; it ends when it is dropped.
pub(crate) struct Server {
    address: SocketAddr,
    requests: Arc<AtomicU32>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers every request with this status (and header lines behind it) and body.
    pub(crate) fn start(status: &str, body: Vec<u8>) -> Result<Self> {
        Self::start_slowly(status, body, Duration::ZERO)
    }

    /// The same, but the body takes so long.
    pub(crate) fn start_slowly(status: &str, body: Vec<u8>, lasts: Duration) -> Result<Self> {
        let status = status.to_owned();
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let (requests, over) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, flag) = (Arc::clone(&requests), Arc::clone(&over));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if flag.load(Ordering::SeqCst) {
                    return;
                }
                counter.fetch_add(1, Ordering::SeqCst);
                let _ = answer(stream, &status, &body, lasts);
            }
        });
        Ok(Self { address, requests, over, thread: Some(thread) })
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// How many connections there were.
    pub(crate) fn requests(&self) -> u32 {
        self.requests.load(Ordering::SeqCst)
    }
}

fn answer(mut stream: TcpStream, status: &str, body: &[u8], lasts: Duration) -> std::io::Result<()> {
    let mut request: Vec<u8> = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => request.extend(buffer.iter().take(count)),
        }
    }
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len())?;
    if lasts.is_zero() {
        return stream.write_all(body);
    }
    for piece in body.chunks(body.len().div_ceil(PIECES as usize).max(1)) {
        stream.write_all(piece)?;
        std::thread::sleep(lasts / PIECES);
    }
    Ok(())
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
