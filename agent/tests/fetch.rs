//! Downloads from a small server on the loopback interface that misbehaves in every way named here.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use ampoule_agent::inputs::{FetchOptions, Fetched, Fetcher, InputError, scratch_file};
use ampoule_agent::sources::{Policy, SourcesFile};
use ampoule_spec::{Code, Sha256};
use aws_lc_rs::digest::{SHA256, digest};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const BODY: &[u8] = b"the bytes of an input";

fn sha256(bytes: &[u8]) -> Sha256 {
    Sha256::new(digest(&SHA256, bytes).as_ref().try_into().unwrap())
}

/// A server that answers by path and remembers the heads of its requests.
struct Server {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = Arc::clone(&seen);
                std::thread::spawn(move || answer(stream, port, &seen));
            }
        });
        Self { port, heads }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

fn answer(mut stream: TcpStream, port: u16, seen: &Mutex<Vec<String>>) {
    let mut head = String::new();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
    }
    seen.lock().unwrap().push(head.clone());
    let target = head.split(' ').nth(1).unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default();
    let _ = write_answer(&mut stream, path, port);
}

fn write_answer(stream: &mut TcpStream, path: &str, port: u16) -> std::io::Result<()> {
    let ok = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", BODY.len());
    match path {
        "/ok" => {
            stream.write_all(ok.as_bytes())?;
            stream.write_all(BODY)
        }
        "/short" => {
            stream.write_all(ok.as_bytes())?;
            stream.write_all(&BODY[..5])
        }
        "/no-length" => {
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n")?;
            stream.write_all(BODY)
        }
        "/chunked" | "/chunked-short" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            for part in BODY.chunks(4) {
                write!(stream, "{:x}\r\n", part.len())?;
                stream.write_all(part)?;
                stream.write_all(b"\r\n")?;
            }
            if path == "/chunked" { stream.write_all(b"0\r\n\r\n") } else { Ok(()) }
        }
        "/endless" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            let chunk = [b'x'; 4096];
            loop {
                stream.write_all(b"1000\r\n")?;
                stream.write_all(&chunk)?;
                stream.write_all(b"\r\n")?;
            }
        }
        "/claims-much" => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"),
        "/silent" => {
            std::thread::sleep(Duration::from_secs(20));
            Ok(())
        }
        "/stalls" => {
            stream.write_all(ok.as_bytes())?;
            stream.write_all(&BODY[..5])?;
            std::thread::sleep(Duration::from_secs(20));
            Ok(())
        }
        "/drips" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")?;
            loop {
                stream.write_all(b"x")?;
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        _ => stream.write_all(short_answer(path, port).as_bytes()),
    }
}

/// The answer without a body for every other path.
fn short_answer(path: &str, port: u16) -> String {
    let redirect = |to: &str| format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
    let status = |line: &str| format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n");
    match path {
        "/redirect" => redirect("/ok?token=secret"),
        "/redirect-absolute" => redirect(&format!("http://localhost:{port}/redirect")),
        "/loop" => redirect("/loop"),
        "/redirect-ftp" => redirect("ftp://127.0.0.1/x"),
        "/redirect-file" => redirect("file:///etc/passwd"),
        "/redirect-user" => redirect(&format!("http://u:p@127.0.0.1:{port}/ok")),
        "/redirect-nowhere" => status("302 Found"),
        "/gone" => status("410 Gone"),
        "/busy" => status("503 Service Unavailable"),
        "/slow-down" => status("429 Too Many Requests"),
        "/partial" => status("206 Partial Content"),
        "/garbage" => "\0\u{1} not http\r\n\r\n".to_owned(),
        _ => match path.strip_prefix("/hop/").and_then(|left| left.parse::<u32>().ok()) {
            Some(0) => redirect("/ok"),
            Some(left) => redirect(&format!("/hop/{}", left - 1)),
            None => status("404 Not Found"),
        },
    }
}

fn options() -> FetchOptions {
    FetchOptions {
        bytes_max: 1 << 20,
        connect_timeout: Duration::from_secs(20),
        read_timeout: Duration::from_secs(20),
        total_timeout: Duration::from_secs(60),
    }
}

/// A policy that lists the server of a URL, by address and by name.
fn listing(url: &str) -> Policy {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let port = rest.split(['/', '?']).next().unwrap().rsplit_once(':').map_or("80", |(_, port)| port);
    let text = format!(
        "sources = 1\n[project.default]\nallow = [\"plain\", \"tls\", \"name\"]\n\
         [origin.plain]\nurl = \"http://127.0.0.1:{port}/\"\n[origin.tls]\nurl = \"https://127.0.0.1:{port}/\"\n\
         [origin.name]\nurl = \"http://localhost:{port}/\"\naddresses = [\"127.0.0.1\", \"::1\"]\n"
    );
    SourcesFile::parse(&text, "sources.toml", Path::new("")).unwrap().policy(None).unwrap()
}

fn fetch_with(options: FetchOptions, url: &str, expected: &Sha256) -> (Result<Fetched, InputError>, Vec<u8>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut file = scratch_file(dir.path()).unwrap();
    file.write_all(b"left over").unwrap();
    let policy =
        if url.starts_with("http") && !url.contains("u:p@") { listing(url) } else { Policy::built_in() };
    let fetcher = Fetcher::new(options, policy);
    let fetched = runtime.block_on(fetcher.fetch(url, expected, &mut file));
    assert_eq!(file.stream_position().unwrap(), 0);
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    (fetched, bytes)
}

fn fetch(url: &str) -> (Result<Fetched, InputError>, Vec<u8>) {
    fetch_with(options(), url, &sha256(BODY))
}

/// Fetches what must fail; whatever came must not be left in the file.
fn refused(url: &str) -> InputError {
    let (fetched, bytes) = fetch(url);
    assert_eq!(bytes, b"", "{url}");
    fetched.expect_err(url)
}

#[test]
fn good_answers_are_written_and_counted() {
    let server = Server::start();
    for path in ["/ok", "/chunked", "/no-length", "/redirect", "/redirect-absolute", "/hop/4"] {
        let (fetched, bytes) = fetch(&server.url(path));
        let fetched = fetched.unwrap_or_else(|e| panic!("{path}: {e}: {e:?}"));
        assert_eq!((fetched.bytes, bytes.as_slice()), (21, BODY), "{path}");
        assert!(!fetched.final_url.contains("secret"), "{}", fetched.final_url);
    }
    assert!(fetch(&server.url("/redirect")).0.unwrap().final_url.ends_with("/ok"));
}

#[test]
fn wrong_bytes_name_both_digests_and_the_url() {
    let server = Server::start();
    let expected = sha256(b"something else");
    let (fetched, bytes) = fetch_with(options(), &server.url("/redirect?x=secret"), &expected);
    let error = fetched.unwrap_err();
    assert_eq!((error.code(), bytes.as_slice()), (Code::InputDigestMismatch, b"".as_slice()));
    let text = error.to_string();
    assert!(text.contains(&expected.to_string()) && text.contains(&sha256(BODY).to_string()), "{text}");
    assert!(text.contains("/redirect:") && !text.contains("secret"), "{text}");
}

#[test]
fn answers_without_the_bytes_have_a_code_each() {
    let server = Server::start();
    let missing = Code::InputMissing;
    let unreachable = Code::InputUnreachable;
    for (path, code) in [
        ("/none", missing),
        ("/gone", missing),
        ("/busy", unreachable),
        ("/slow-down", unreachable),
        ("/partial", unreachable),
        ("/garbage", unreachable),
        ("/short", unreachable),
        ("/chunked-short", unreachable),
        ("/loop", unreachable),
        ("/hop/5", unreachable),
        ("/claims-much", Code::InputRefused),
        ("/endless", Code::InputRefused),
        ("/redirect-ftp", Code::InputSourceDenied),
        ("/redirect-file", Code::InputSourceDenied),
        ("/redirect-user", Code::InputSourceDenied),
        ("/redirect-nowhere", Code::InputSourceDenied),
    ] {
        let error = refused(&server.url(path));
        assert_eq!(error.code(), code, "{path}: {error}");
        assert!(error.to_string().contains(path), "{error}");
    }
    assert!(refused(&server.url("/loop")).to_string().contains("more than 5 redirects"));
    assert!(refused(&server.url("/none")).to_string().contains("404"));
}

#[test]
fn silence_stalls_and_drips_end_in_time() {
    let server = Server::start();
    let impatient = FetchOptions {
        read_timeout: Duration::from_millis(400),
        total_timeout: Duration::from_secs(2),
        ..options()
    };
    for path in ["/silent", "/stalls", "/drips"] {
        let start = Instant::now();
        let (fetched, bytes) = fetch_with(impatient, &server.url(path), &sha256(BODY));
        let error = fetched.unwrap_err();
        assert_eq!(
            (error.code(), bytes.as_slice()),
            (Code::InputUnreachable, b"".as_slice()),
            "{path}: {error}"
        );
        assert!(start.elapsed() < Duration::from_secs(15), "{path}");
    }
}

#[test]
fn nobody_listening_is_unreachable() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = refused(&format!("http://127.0.0.1:{port}/x"));
    assert_eq!(error.code(), Code::InputUnreachable);
    // Nobody there speaks TLS: the handshake fails, and not for want of a provider.
    let server = Server::start();
    let error = refused(&server.url("/ok").replace("http:", "https:"));
    let no_authorities = matches!(error, InputError::Client { .. });
    assert!(no_authorities || error.code() == Code::InputUnreachable, "{error:?}");
}

#[test]
fn urls_that_are_not_fetched() {
    for url in ["ftp://127.0.0.1/x", "http://u:p@127.0.0.1/x", "127.0.0.1/x", "http://127.0.0.1/a b"] {
        assert_eq!(refused(url).code(), Code::JobInvalid, "{url}");
    }
}

#[test]
fn requests_carry_nothing_of_ours() {
    let server = Server::start();
    fetch(&server.url("/redirect-absolute")).0.unwrap();
    let heads = server.heads.lock().unwrap().join("\n").to_lowercase();
    assert!(heads.contains("user-agent: ampoule/"), "{heads}");
    for word in ["cookie", "authorization", "referer", "accept-encoding"] {
        assert!(!heads.contains(word), "{heads}");
    }
}

#[test]
fn files_are_read_here_and_only_regular_ones() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a b");
    std::fs::write(&path, BODY).unwrap();
    let url = |name: &str| format!("file://{}/{name}", dir.path().display());
    let (fetched, bytes) = fetch(&url("a%20b"));
    assert_eq!((fetched.unwrap().bytes, bytes.as_slice()), (21, BODY));

    assert_eq!(refused(&url("none")).code(), Code::InputMissing);
    assert_eq!(refused(&url("a%20b/x")).code(), Code::InputMissing);
    assert_eq!(refused(&url("")).code(), Code::InputRefused);
    assert_eq!(refused("file:///dev/zero").code(), Code::InputRefused);
    let socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    assert_eq!(refused(&url("socket")).code(), Code::InputRefused);
    drop(socket);
    std::fs::write(&path, b"other").unwrap();
    assert_eq!(refused(&url("a%20b")).code(), Code::InputDigestMismatch);
    File::create(&path).unwrap().set_len(options().bytes_max + 1).unwrap();
    assert_eq!(refused(&url("a%20b")).code(), Code::InputRefused);
    let at_cap = usize::try_from(options().bytes_max).unwrap();
    File::create(&path).unwrap().set_len(options().bytes_max).unwrap();
    assert!(fetch_with(options(), &url("a%20b"), &sha256(&vec![0; at_cap])).0.is_ok());
}

#[test]
fn scratch_file_leaves_no_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = scratch_file(dir.path()).unwrap();
    file.write_all(b"x").unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
