//! A download that is in several places: which are asked in which order, and which bytes are taken.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use ampoule_agent::inputs::{FetchOptions, Fetched, Fetcher, InputError, PassedOver, scratch_file};
use ampoule_agent::sources::SourcesFile;
use ampoule_spec::{Code, Sha256};
use aws_lc_rs::digest::{SHA256, digest};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const BODY: &[u8] = b"the bytes of an input";

/// A server that gives every path the same and counts who comes.
struct Server {
    url: String,
    connections: Arc<AtomicUsize>,
}

impl Server {
    fn start(status: &str, body: &[u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let mut answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        answer.extend(body);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                let mut head = String::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap_or(0) > 0 {}
                let _ = stream.write_all(&answer);
            }
        });
        Self { url, connections }
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Rules that allow these servers, and more lines about them.
fn fetcher(servers: &[&Server], more: &str) -> Fetcher {
    let names: Vec<String> = (0..servers.len()).map(|at| format!("\"s{at}\"")).collect();
    let mut text = format!("sources = 1\n[project.default]\nallow = [{}]\n", names.join(", "));
    for (at, server) in servers.iter().enumerate() {
        text += &format!("[origin.s{at}]\nurl = \"{}\"\n", server.url);
    }
    let policy =
        SourcesFile::parse(&(text + more), "sources.toml", Path::new("")).unwrap().policy(None).unwrap();
    Fetcher::new(FetchOptions { bytes_max: 1 << 20, ..FetchOptions::default() }, policy)
}

struct Asked {
    outcome: Result<Fetched, InputError>,
    bytes: Vec<u8>,
    passed: Vec<PassedOver>,
}

fn fetch(fetcher: &Fetcher, url: &str, mirrors: &[String]) -> Asked {
    let expected = Sha256::new(digest(&SHA256, BODY).as_ref().try_into().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut file = scratch_file(dir.path()).unwrap();
    let mut passed = Vec::new();
    let outcome = runtime.block_on(fetcher.fetch_any(url, mirrors, &expected, &mut file, &mut passed));
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    Asked { outcome, bytes, passed }
}

#[test]
fn places_are_asked_in_order_until_one_has_the_bytes() {
    let missing = Server::start("404 Not Found", b"");
    let busy = Server::start("503 Busy", b"");
    let good = Server::start("200 OK", BODY);
    let never = Server::start("200 OK", BODY);
    let fetcher = fetcher(&[&missing, &busy, &good, &never], "");
    let mirrors = [busy.at("a?token=secret"), good.at("b"), never.at("c")];
    let asked = fetch(&fetcher, &missing.at("x"), &mirrors);
    assert_eq!(asked.outcome.unwrap().final_url, good.at("b"));
    assert_eq!(asked.bytes, BODY);
    let passed: Vec<_> = asked.passed.iter().map(|p| (p.url.clone(), p.code)).collect();
    assert_eq!(passed, [(missing.at("x"), Code::InputMissing), (busy.at("a"), Code::InputUnreachable)]);
    assert!(asked.passed.iter().all(|p| !p.reason.contains("secret")));
    assert_eq!(never.connections(), 0);
}

#[test]
fn wrong_bytes_are_named_and_never_taken() {
    let liar = Server::start("200 OK", b"other bytes");
    let good = Server::start("200 OK", BODY);
    let missing = Server::start("404 Not Found", b"");
    let fetcher = fetcher(&[&liar, &good, &missing], "");
    let asked = fetch(&fetcher, &liar.at("x"), &[good.at("x")]);
    assert_eq!((asked.outcome.unwrap().final_url, asked.bytes.as_slice()), (good.at("x"), BODY));
    assert_eq!((asked.passed[0].code, &asked.passed[0].url), (Code::InputDigestMismatch, &liar.at("x")));
    // Nobody has them: that some gave others counts, whatever the last one said.
    let asked = fetch(&fetcher, &liar.at("x"), &[missing.at("x")]);
    let error = asked.outcome.unwrap_err();
    assert_eq!((error.code(), asked.bytes.len()), (Code::InputDigestMismatch, 0));
    for part in [liar.at("x"), missing.at("x"), "404".to_owned()] {
        assert!(error.to_string().contains(&part), "{error}");
    }
    // One place alone says it as ever.
    let error = fetch(&fetcher, &liar.at("x"), &[]).outcome.unwrap_err();
    assert!(matches!(error, InputError::DigestMismatch { .. }), "{error}");
}

#[test]
fn denied_place_denies_the_download_before_anybody_is_asked() {
    let listed = Server::start("200 OK", BODY);
    let stranger = Server::start("200 OK", BODY);
    let fetcher = fetcher(&[&listed], "");
    for (url, mirrors) in [(listed.at("x"), vec![stranger.at("x")]), (stranger.at("x"), vec![listed.at("x")])]
    {
        let error = fetch(&fetcher, &url, &mirrors).outcome.unwrap_err();
        assert_eq!(error.code(), Code::InputSourceDenied, "{error}");
        assert!(error.to_string().contains(&stranger.at("x")), "{error}");
    }
    assert_eq!((listed.connections(), stranger.connections()), (0, 0));
    // Leading elsewhere is not hidden by a mirror either.
    let leads = Server::start(&format!("302 Found\r\nLocation: {}", stranger.at("x")), b"");
    let fetcher = self::fetcher(&[&leads, &listed], "");
    let error = fetch(&fetcher, &leads.at("x"), &[listed.at("x")]).outcome.unwrap_err();
    assert_eq!(error.code(), Code::InputSourceDenied, "{error}");
    assert_eq!((listed.connections(), stranger.connections()), (0, 0));
}

#[test]
fn operators_mirror_is_asked_first_and_instead_of_what_is_not_listed() {
    let outside = Server::start("200 OK", BODY);
    let inside = Server::start("200 OK", BODY);
    let mirror = format!("mirror_of = [\"{}pub/\"]\n", outside.url);
    // The last origin of the rules is `inside`.
    let only = fetcher(&[&inside], &mirror);
    let asked = fetch(&only, &outside.at("pub/a/b?c=d"), &[]);
    assert_eq!(asked.outcome.unwrap().final_url, inside.at("a/b"));
    let error = fetch(&only, &outside.at("other/a"), &[]).outcome.unwrap_err();
    assert_eq!(error.code(), Code::InputSourceDenied);
    let both = fetcher(&[&outside, &inside], &mirror);
    assert_eq!(fetch(&both, &outside.at("pub/a"), &[]).outcome.unwrap().final_url, inside.at("a"));
    assert_eq!((outside.connections(), inside.connections()), (0, 2));
}

#[test]
fn digest_is_that_of_the_first_place_that_has_it() {
    let (none, other) = (Server::start("404 Not Found", b""), Server::start("200 OK", BODY));
    let fetcher = fetcher(&[&none, &other], "");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ask = |url: &str, mirrors: &[String]| runtime.block_on(fetcher.digest(url, mirrors));
    let (sha256, fetched) = ask(&none.at("a"), &[none.at("b"), other.at("c")]).unwrap();
    assert_eq!(sha256.as_bytes().as_slice(), digest(&SHA256, BODY).as_ref());
    assert_eq!(fetched.final_url, other.at("c"));
    assert_eq!((none.connections(), other.connections()), (2, 1));
    // The URL's own failure is what is said.
    let error = ask(&none.at("a"), &[none.at("b")]).unwrap_err();
    assert_eq!(error.code(), Code::InputMissing);
    assert!(error.to_string().contains("/a"), "{error}");
}
