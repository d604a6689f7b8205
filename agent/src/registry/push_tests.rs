use super::super::testing::{Answer, Asked, Server, access, wait};
use super::super::{Purpose, Session};
use super::*;
use crate::inputs::sha256_of;
use ampoule_spec::Code;
use aws_lc_rs::digest::{SHA256, digest};
use std::io::Write;

fn sha256(bytes: &[u8]) -> Sha256 {
    sha256_of(digest(&SHA256, bytes).as_ref()).unwrap()
}

fn piece(bytes: &[u8]) -> Piece {
    Piece { sha256: sha256(bytes), bytes: bytes.len() as u64, source: Source::Memory(bytes.to_vec()) }
}

fn push(server: &Server, piece: &Piece) -> Result<bool> {
    let (access, reference) = (access(&[server.host()], None), server.reference("out/put"));
    wait(async { Session::new(&access, &reference, Purpose::Push)?.push_blob(piece).await })
}

/// A registry that lacks every blob and takes what comes; with what it says to the bytes.
fn taking(last: fn(&Asked) -> Answer) -> Server {
    Server::start(move |asked| match asked.method.as_str() {
        "HEAD" => Answer::new("404 No", ""),
        "POST" => Answer::new("202 Go on\r\nlocation: /v2/out/put/blobs/uploads/1?state=x%2Fy", ""),
        _ => last(asked),
    })
}

#[test]
fn blob_is_asked_for_and_sent_in_one_piece_with_its_digest() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..150_000_u32).flat_map(u32::to_le_bytes).collect();
    file.write_all(&bytes).unwrap();
    let from_file = Piece { source: Source::File(file.path().to_owned()), ..piece(&bytes) };
    for piece in [piece(&bytes), from_file] {
        let server = taking(|_| Answer::new("201 Created", ""));
        assert!(push(&server, &piece).unwrap());
        let asked = server.asked();
        let steps: Vec<(&str, &str)> = asked.iter().map(|a| (a.method.as_str(), a.path.as_str())).collect();
        let blob = format!("/v2/out/put/blobs/sha256:{}", piece.sha256);
        let put = format!("/v2/out/put/blobs/uploads/1?state=x%2Fy&digest=sha256%3A{}", piece.sha256);
        assert_eq!(steps, [("HEAD", blob.as_str()), ("POST", "/v2/out/put/blobs/uploads/"), ("PUT", &put)]);
        assert!(asked[2].body == bytes && asked[2].header("content-length") == bytes.len().to_string());
    }
}

#[test]
fn blob_that_is_there_is_not_sent() {
    let server = Server::start(|_| Answer::new("200 OK", ""));
    assert!(!push(&server, &piece(b"x")).unwrap());
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn registries_that_refuse_or_lie_about_an_upload_are_said_to() {
    type Script = fn(&Asked) -> Answer;
    let table: [(Script, Code, &str); 5] = [
        (
            |_| Answer::new("400 No", r#"{"errors":[{"code":"DIGEST_INVALID"}]}"#),
            Code::InputRefused,
            "DIGEST_INVALID",
        ),
        (|_| Answer::new("403 No", ""), Code::InputSourceDenied, "may not do this"),
        (|_| Answer::new("413 No", ""), Code::InputRefused, "413"),
        (|_| Answer::new("500 No", ""), Code::InputUnreachable, "try again later"),
        (
            |_| {
                let zeros = "0".repeat(64);
                Answer::new(format!("201 Created\r\ndocker-content-digest: sha256:{zeros}"), "")
            },
            Code::InputDigestMismatch,
            "expected sha256:",
        ),
    ];
    for (script, code, says) in table {
        let server = taking(script);
        let error = push(&server, &piece(b"x")).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        assert!(error.to_string().contains(&format!("docker://{}/out/put", server.host())), "{error}");
    }
    let server = Server::start(|asked| match asked.method.as_str() {
        "HEAD" => Answer::new("404 No", ""),
        _ => Answer::new("202 Go on", ""),
    });
    assert_eq!(push(&server, &piece(b"x")).unwrap_err().code(), Code::InputRefused);
}

#[test]
fn manifest_that_is_known_as_a_referrer_is_said_to_be() {
    for (head, known) in [("201 Created\r\noci-subject: sha256:x", true), ("201 Created", false)] {
        let server = Server::start(move |_| Answer::new(head, ""));
        let (access, reference) = (access(&[server.host()], None), server.reference("out/put"));
        let bytes = b"{}";
        let said = wait(async {
            let mut session = Session::new(&access, &reference, Purpose::Push)?;
            session.push_manifest(Called::Tag("v1"), &sha256(bytes), "application/x", bytes).await
        });
        assert_eq!(said.unwrap(), known);
        let asked = &server.asked()[0];
        assert_eq!(
            (asked.path.as_str(), asked.header("content-type")),
            ("/v2/out/put/manifests/v1", "application/x")
        );
    }
}
