//! Real repositories, and git's own `http-backend` behind a small server on the loopback interface.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Runs git without anybody's configuration, and gives what it printed.
pub fn git(dir: &Path, args: &[&str]) -> String {
    git_with(dir, args, b"")
}

/// The same with something on its standard input.
pub fn git_with(dir: &Path, args: &[&str], input: &[u8]) -> String {
    let output = git_raw(dir, args, input);
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// The same, whatever becomes of it.
pub fn git_raw(dir: &Path, args: &[&str], input: &[u8]) -> std::process::Output {
    let mut child = clean("git")
        .arg("-C")
        .arg(dir)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeding = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    let _ = feeding.join().unwrap();
    output
}

fn clean(program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", "/nonexistent")
        .env("TZ", "UTC")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_AUTHOR_NAME", "A U Thor")
        .env("GIT_AUTHOR_EMAIL", "author@example.org")
        .env("GIT_COMMITTER_NAME", "C O Mitter")
        .env("GIT_COMMITTER_EMAIL", "committer@example.org")
        .env("GIT_AUTHOR_DATE", "1600000000 +0200")
        .env("GIT_COMMITTER_DATE", "1600000100 -0500")
        // Submodules of these tests are cloned from directories, and repositories belong to whoever runs them.
        .env("GIT_CONFIG_COUNT", "2")
        .env("GIT_CONFIG_KEY_0", "protocol.file.allow")
        .env("GIT_CONFIG_VALUE_0", "always")
        .env("GIT_CONFIG_KEY_1", "safe.directory")
        .env("GIT_CONFIG_VALUE_1", "*");
    command
}

/// Makes an empty repository.
pub fn init(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    git(dir, &["init", "--quiet", "--initial-branch=main"]);
}

/// Commits everything in a repository, and gives the commit's id.
pub fn commit_all(dir: &Path) -> String {
    git(dir, &["add", "--all", "--force"]);
    git(dir, &["commit", "--quiet", "--allow-empty", "-m", "a message"]);
    git(dir, &["rev-parse", "HEAD"])
}

/// What is done to an answer before it is sent: by path of the request and its body, the answer's body.
pub type Tamper = dyn Fn(&str, Vec<u8>) -> Answer + Send + Sync;

/// An answer of the server.
pub enum Answer {
    /// As git gave it.
    Bytes(Vec<u8>),
    /// A status and header lines.
    Status(String),
    /// These bytes, and then these again and again.
    Endless(Vec<u8>, Vec<u8>),
    /// Fewer bytes than are announced.
    Cut(Vec<u8>),
}

/// A server of all repositories below a directory.
pub struct GitServer {
    address: SocketAddr,
    root: PathBuf,
    requests: Arc<Mutex<Vec<String>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl GitServer {
    pub fn start(root: &Path) -> Self {
        Self::tampering(root, Arc::new(|_, body| Answer::Bytes(body)))
    }

    pub fn tampering(root: &Path, tamper: Arc<Tamper>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (seen, flag, dir) = (Arc::clone(&requests), Arc::clone(&over), root.to_owned());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if flag.load(Ordering::SeqCst) {
                    return;
                }
                let (seen, dir, tamper) = (Arc::clone(&seen), dir.clone(), Arc::clone(&tamper));
                std::thread::spawn(move || drop(serve(stream, &dir, &seen, &*tamper)));
            }
        });
        Self { address, root: root.to_owned(), requests, over, thread: Some(thread) }
    }

    /// The URL of a repository below the root.
    pub fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.address)
    }

    /// What the server answers to somebody who wants a commit: the objects of it, without history.
    pub fn pack_of(&self, name: &str, commit: &str) -> Vec<u8> {
        let line = |text: &str| format!("{:04x}{text}\n", text.len() + 5);
        let options = ["no-progress", "ofs-delta", "deepen 1", &format!("want {commit}"), "done"].map(line);
        let body = line("command=fetch") + &line("object-format=sha1") + "0001" + &options.concat() + "0000";
        post(&self.url(&format!("{name}/git-upload-pack")), body.as_bytes())
    }

    /// The lines of all requests.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for GitServer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    mut stream: TcpStream,
    root: &Path,
    seen: &Mutex<Vec<String>>,
    tamper: &Tamper,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let (mut length, mut kind, mut protocol) = (0, String::new(), String::new());
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header == "\r\n" {
            break;
        }
        let (name, value) = header.trim_end().split_once(": ").unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "content-type" => kind = value.to_owned(),
            "git-protocol" => protocol = value.to_owned(),
            _ => {}
        }
    }
    seen.lock().unwrap().push(line.trim_end().to_owned());
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (head, answer) = backend(root, method, path, query, &kind, &protocol, &body);
    match tamper(path, answer) {
        Answer::Bytes(bytes) => {
            write!(stream, "HTTP/1.1 {head}Content-Length: {}\r\nConnection: close\r\n\r\n", bytes.len())?;
            stream.write_all(&bytes)
        }
        Answer::Status(status) => {
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        }
        Answer::Cut(bytes) => {
            write!(
                stream,
                "HTTP/1.1 {head}Content-Length: {}\r\nConnection: close\r\n\r\n",
                bytes.len() + 100
            )?;
            stream.write_all(&bytes)
        }
        Answer::Endless(first, again) => {
            write!(stream, "HTTP/1.1 {head}Connection: close\r\n\r\n")?;
            stream.write_all(&first)?;
            // Bounded all the same, should nobody hang up.
            for _ in 0..(4_u64 << 30) / again.len() as u64 {
                stream.write_all(&again)?;
            }
            Ok(())
        }
    }
}

/// Runs git's CGI program; gives the status and its headers, and the body.
fn backend(
    root: &Path,
    method: &str,
    path: &str,
    query: &str,
    kind: &str,
    protocol: &str,
    body: &[u8],
) -> (String, Vec<u8>) {
    let mut child = clean("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("CONTENT_TYPE", kind)
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("GIT_PROTOCOL", protocol)
        .env("REMOTE_ADDR", "127.0.0.1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let body = body.to_vec();
    let feeding = std::thread::spawn(move || stdin.write_all(&body));
    let output = child.wait_with_output().unwrap().stdout;
    let _ = feeding.join().unwrap();
    let end = output.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(output.len());
    let headers = String::from_utf8_lossy(&output[..end]).into_owned();
    let mut status = "200 OK".to_owned();
    let mut head = String::new();
    for line in headers.lines() {
        match line.strip_prefix("Status: ") {
            Some(other) => other.clone_into(&mut status),
            None => head += &format!("{line}\r\n"),
        }
    }
    (format!("{status}\r\n{head}"), output.get(end + 4..).unwrap_or_default().to_vec())
}

fn post(url: &str, body: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let rest = url.strip_prefix("http://").unwrap();
    let (host, path) = rest.split_once('/').unwrap();
    let mut stream = std::net::TcpStream::connect(host).unwrap();
    let head = format!(
        "POST /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/x-git-upload-pack-request\r\nGit-Protocol: version=2\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    answer[end + 4..].to_vec()
}
