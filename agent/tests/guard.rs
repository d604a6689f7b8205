//! The guarded client against servers on the loopback interface that count who comes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use ampoule_agent::inputs::{Guard, GuardOptions, InputError, Lookup};
use ampoule_agent::sources::{Policy, Purpose, SourcesFile};
use ampoule_spec::Code;
use futures_util::future::BoxFuture;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Method, Request, Url};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A server that answers every request in one way and remembers the heads.
struct Server {
    port: u16,
    connections: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Answers with this head; `PORT` in it is its own port.
    fn start(address: &str, head: &str) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (count, seen) = (Arc::clone(&connections), Arc::clone(&heads));
        let answer =
            format!("HTTP/1.1 {}\r\nContent-Length: 0\r\n\r\n", head.replace("PORT", &port.to_string()));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                let mut head = String::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap_or(0) > 0 {}
                seen.lock().unwrap().push(head.to_lowercase());
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Self { port, connections, heads }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// A resolver whose answers are given, one after the other; the last one stays.
#[derive(Clone, Default)]
struct Answers(Arc<Mutex<Vec<Vec<IpAddr>>>>, Arc<AtomicUsize>);

impl Answers {
    fn of(answers: &[&str]) -> Self {
        let ips = |text: &&str| text.split(' ').map(|ip| ip.parse().unwrap()).collect();
        Self(Arc::new(Mutex::new(answers.iter().map(ips).collect())), Arc::default())
    }
}

impl Lookup for Answers {
    fn lookup(&self, _host: String) -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>> {
        self.1.fetch_add(1, Ordering::SeqCst);
        let mut answers = self.0.lock().unwrap();
        let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
        Box::pin(async move { Ok(answer) })
    }
}

fn policy(text: &str) -> Policy {
    policy_in(Path::new(""), text)
}

fn policy_in(base: &Path, text: &str) -> Policy {
    SourcesFile::parse(&format!("sources = 1\n{text}"), "sources.toml", base).unwrap().policy(None).unwrap()
}

/// Asks, and says which status and URL answered.
fn get(guard: &Guard, url: &str) -> Result<(u16, String), InputError> {
    ask(guard, Request::new(Method::GET, Url::parse(url).unwrap()))
}

fn ask(guard: &Guard, request: Request) -> Result<(u16, String), InputError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (response, url) = runtime.block_on(guard.send(Purpose::Http, request))?;
    Ok((response.status().as_u16(), url.to_string()))
}

fn denied(guard: &Guard, url: &str) -> String {
    let error = get(guard, url).expect_err(url);
    assert_eq!(error.code(), Code::InputSourceDenied, "{url}: {error}");
    error.to_string()
}

#[test]
fn every_spelling_of_a_private_address_is_denied_and_nobody_is_connected_to() {
    let server = Server::start("127.0.0.1", "200 OK");
    let guard = Guard::new(Policy::built_in(), GuardOptions::default());
    for host in [
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "017700000001",
        "0177.0.0.1",
        "127.0.0.1.",
        "１２７.0.0.1",
        "127%2E0.0.1",
        "0.0.0.0",
        "0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:7f00:1::]",
        "localhost",
        "LOCALHOST",
        "169.254.169.254",
        "[fd00:ec2::254]",
        "168.63.129.16",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "[fe80::1]",
        "[fc00::1]",
        "[ff02::1]",
        "192.0.2.1",
        "[2001:db8::1]",
    ] {
        let text = denied(&guard, &format!("http://{host}:{}/x?token=secret", server.port));
        assert!(text.contains("addresses") && !text.contains("secret"), "{text}");
    }
    assert_eq!(server.connections(), 0);
}

#[test]
fn name_is_held_to_its_addresses_whatever_the_resolver_says() {
    let server = Server::start("127.0.0.1", "200 OK");
    let url = format!("http://pkg.test:{}/x", server.port);
    let listed = policy(&format!(
        "[project.default]\nallow = [\"pkg\"]\n[origin.pkg]\nurl = \"http://pkg.test:{}/\"\naddresses = [\"127.0.0.1\"]",
        server.port
    ));
    for answer in ["127.0.0.1", "10.0.0.1", "::ffff:127.0.0.1", "169.254.169.254", "::1", "127.0.0.1 8.8.8.8"]
    {
        let lookup = Answers::of(&[answer]);
        let guard = Guard::with_lookup(Policy::built_in(), GuardOptions::default(), Arc::new(lookup));
        let text = denied(&guard, &url);
        assert!(text.contains("pkg.test has the address") && text.contains("[origin.NAME]"), "{text}");
    }
    // Where addresses are listed, every other one is an impostor's.
    for answer in ["127.0.0.2", "127.0.0.1 127.0.0.2", "::ffff:127.0.0.1"] {
        let guard =
            Guard::with_lookup(listed.clone(), GuardOptions::default(), Arc::new(Answers::of(&[answer])));
        let text = denied(&guard, &url);
        assert!(text.contains("[origin.pkg] in sources.toml"), "{text}");
    }
    assert_eq!(server.connections(), 0);
    let guard = Guard::with_lookup(listed, GuardOptions::default(), Arc::new(Answers::of(&["127.0.0.1"])));
    assert_eq!(get(&guard, &url).unwrap().0, 200);
}

#[test]
fn address_that_is_connected_to_is_the_one_that_was_looked_at() {
    let good = Server::start("127.0.0.1", "200 OK");
    let rebound = TcpListener::bind(("127.0.0.2", good.port)).unwrap();
    rebound.set_nonblocking(true).unwrap();
    let listed = policy(&format!(
        "[project.default]\nallow = [\"pkg\"]\n[origin.pkg]\nurl = \"http://pkg.test:{}/\"\naddresses = [\"127.0.0.1\"]",
        good.port
    ));
    // The first answer is a good one and every later one is not.
    let answers = Answers::of(&["127.0.0.1", "127.0.0.2"]);
    let guard = Guard::with_lookup(listed, GuardOptions::default(), Arc::new(answers.clone()));
    let url = format!("http://pkg.test:{}/x", good.port);
    assert_eq!(get(&guard, &url).unwrap().0, 200);
    assert_eq!((good.connections(), answers.1.load(Ordering::SeqCst)), (1, 1), "one look for one connection");
    denied(&guard, &url);
    assert_eq!(good.connections(), 1);
    assert!(rebound.accept().is_err(), "somebody came");
}

#[test]
fn redirect_is_looked_at_like_a_first_url() {
    let inner = Server::start("127.0.0.1", "200 OK");
    let to = |to: &str| Server::start("127.0.0.1", &format!("302 Found\r\nLocation: {to}"));
    let own = format!("http://127.0.0.1:{}/y", inner.port);
    let list = |server: &Server| {
        policy(&format!(
            "[project.default]\npublic = true\nallow = [\"a\"]\n[origin.a]\nurl = \"http://127.0.0.1:{}/\"",
            server.port
        ))
    };
    for target in
        [own.as_str(), "http://localhost:1/", "http://169.254.169.254/latest/meta-data/", "http://[::1]/"]
    {
        let outer = to(target);
        let guard = Guard::new(list(&outer), GuardOptions::default());
        let text = denied(&guard, &format!("http://127.0.0.1:{}/x", outer.port));
        assert!(text.contains("a redirect to") && text.contains(&outer.port.to_string()), "{text}");
        assert_eq!(outer.connections(), 1);
    }
    assert_eq!(inner.connections(), 0);
}

#[test]
fn headers_for_one_origin_are_not_shown_to_another() {
    let second = Server::start("127.0.0.1", "200 OK");
    let first = Server::start("127.0.0.1", &format!("307 T\r\nLocation: http://127.0.0.1:{}/y", second.port));
    let same = Server::start("127.0.0.1", "301 M\r\nLocation: http://127.0.0.1:PORT/again");
    let all: String = [("a", &first), ("b", &second), ("c", &same)]
        .iter()
        .map(|(name, server)| format!("[origin.{name}]\nurl = \"http://127.0.0.1:{}/\"\n", server.port))
        .collect();
    let policy = policy(&format!("[project.default]\nallow = [\"a\", \"b\", \"c\"]\n{all}"));
    let guard = Guard::new(policy, GuardOptions::default());
    let request = |server: &Server| {
        let url = Url::parse(&format!("http://127.0.0.1:{}/x", server.port)).unwrap();
        let mut request = Request::new(Method::GET, url);
        let mut secret = HeaderValue::from_static("hush");
        request.headers_mut().insert(AUTHORIZATION, HeaderValue::from_static("Bearer hush"));
        request.headers_mut().insert("accept", HeaderValue::from_static("plain"));
        secret.set_sensitive(true);
        request.headers_mut().insert("x-token", secret);
        request
    };
    assert_eq!(ask(&guard, request(&first)).unwrap().0, 200);
    assert_eq!(first.heads.lock().unwrap()[0].matches("hush").count(), 2);
    let heads = second.heads.lock().unwrap().join("");
    assert!(heads.contains("accept: plain") && !heads.contains("hush"), "{heads}");
    let error = ask(&guard, request(&same)).unwrap_err();
    assert!(error.to_string().contains("more than 5 redirects"), "{error}");
    let heads = same.heads.lock().unwrap();
    assert_eq!((heads.len(), heads.join("").matches("hush").count()), (6, 12), "{heads:?}");
}

#[test]
fn secret_is_read_from_a_file_of_ours_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    let url = Url::parse("https://pkg.test/x").unwrap();
    let with = |auth: &str| {
        let text = format!(
            "[project.default]\nallow = [\"a\"]\n[origin.a]\nurl = \"https://pkg.test/\"\nauth = {{ {auth} }}"
        );
        Guard::new(policy_in(dir.path(), &text), GuardOptions::default()).credential(Purpose::Http, &url)
    };
    let write = |text: &str, mode| {
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    write("user:pass\n", 0o600);
    for (auth, name, value) in [
        ("basic = \"secret\"", "authorization", "Basic dXNlcjpwYXNz"),
        ("bearer = \"secret\"", "authorization", "Bearer user:pass"),
        ("header = \"Private-Token\", file = \"secret\"", "private-token", "user:pass"),
    ] {
        let (found, header) = with(auth).unwrap().unwrap();
        assert_eq!((found.as_str(), header.to_str().unwrap()), (name, value));
        assert!(header.is_sensitive());
    }
    for (text, mode) in
        [("user:pass", 0o644), ("user:pass", 0o620), ("", 0o600), ("a:b\nc", 0o600), ("ab", 0o600)]
    {
        write(text, mode);
        let error = with("basic = \"secret\"").unwrap_err();
        assert_eq!(error.code(), Code::FileUnusable, "{text:?} {mode:o}");
        assert!(error.to_string().contains("secret"), "{error}");
    }
    std::fs::remove_file(&file).unwrap();
    assert!(with("bearer = \"secret\"").is_err());
}
