//! Content by project: what is missing, uploads that are cut short, and what is refused.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cloned_ref_to_slice_refs,
    reason = "a test"
)]

#[path = "common/content_server.rs"]
mod content_server;

use ampoule_agent::content::{ContentLimits, content};
use ampoule_proto::v1 as proto;
use ampoule_spec::{Code, Name};
use content_server::*;
use std::time::Duration;
use tonic::{Code as Grpc, Status};
use tonic_types::StatusExt;

fn code(status: &Status) -> Option<Code> {
    Code::parse(&status.get_error_details().error_info().unwrap().reason)
}

#[track_caller]
fn refused(answer: Result<bool, Status>, grpc: Grpc, expected: Code) -> String {
    let status = answer.unwrap_err();
    assert_eq!((status.code(), code(&status)), (grpc, Some(expected)), "{status}");
    status.message().to_owned()
}

#[tokio::test]
async fn what_another_project_has_is_missing_until_its_bytes_came_from_this_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = Memory::default();
    let served = serve(dir.path(), &store, ContentLimits::default()).await;
    let tree = tempfile::tempdir().unwrap();
    std::fs::write(tree.path().join("a"), "a").unwrap();
    let (archive, directory) = directory(tree.path());
    let file = file_ref(b"theirs");
    for (content, bytes) in [(&file, &b"theirs"[..]), (&directory, &archive)] {
        assert!(!served.upload("a", content, bytes, 0).await.unwrap());
        assert!(served.missing("a", std::slice::from_ref(content)).await.is_empty());
        assert_eq!(served.offset("a", content).await, (true, 0));
        // The store has it, and the other project hears nothing of that.
        assert_eq!(served.missing("b", std::slice::from_ref(content)).await, [content.clone()]);
        assert_eq!(served.offset("b", content).await, (false, 0));
        // Who knows the digest alone does not get the bytes for others.
        let guess = b"guess".repeat(300);
        let answer = served.upload("b", content, &guess, 0).await;
        let expected = match content.kind() {
            proto::ContentKind::Directory => Code::InputRefused,
            _ => Code::InputDigestMismatch,
        };
        refused(answer, Grpc::InvalidArgument, expected);
        assert_eq!(served.missing("b", std::slice::from_ref(content)).await, [content.clone()]);
        assert_eq!(served.offset("b", content).await, (false, 0));
        assert!(!served.upload("b", content, bytes, 0).await.unwrap());
        assert!(served.missing("b", std::slice::from_ref(content)).await.is_empty());
        assert!(served.upload("b", content, bytes, 0).await.unwrap());
    }
    // A whole tree, but another one.
    std::fs::write(tree.path().join("b"), "b").unwrap();
    let (other, _) = content_server::directory(tree.path());
    let answer = served.upload("c", &directory, &other, 0).await;
    refused(answer, Grpc::InvalidArgument, Code::InputDigestMismatch);
    assert_eq!(served.missing("c", std::slice::from_ref(&directory)).await, [directory]);
}

#[tokio::test]
async fn records_outlive_the_agent_and_what_the_store_lost_is_missing_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Memory::default();
    let file = file_ref(b"bytes");
    let served = serve(dir.path(), &store, ContentLimits::default()).await;
    served.upload("a", &file, b"bytes", 0).await.unwrap();
    drop(served);
    let served = serve(dir.path(), &store, ContentLimits::default()).await;
    assert!(served.missing("a", std::slice::from_ref(&file)).await.is_empty());
    // The same bytes with another time are another content of the store.
    let later = proto::ContentRef { epoch: 8, ..file.clone() };
    assert_eq!(served.missing("a", std::slice::from_ref(&later)).await, [later]);
    store.0.lock().unwrap().clear();
    assert_eq!(served.missing("a", std::slice::from_ref(&file)).await, [file.clone()]);
    assert!(!served.upload("a", &file, b"bytes", 0).await.unwrap());
    assert!(served.missing("a", &[file]).await.is_empty());
}

#[tokio::test]
async fn upload_that_was_cut_short_goes_on_where_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let store = Memory::default();
    let bytes = (0..100_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>();
    let file = file_ref(&bytes);
    let served = serve(dir.path(), &store, ContentLimits::default()).await;
    let head = [header("a", &file, bytes.len(), 0), data(&bytes[..1000]), data(&bytes[1000..3000])];
    let open = served.begin(head.to_vec()).await;
    served.until("a", &file, 3000).await;
    open.cut();
    // Nobody else sees it, and it outlives the agent.
    assert_eq!(served.offset("b", &file).await, (false, 0));
    drop(served);
    let served = serve(dir.path(), &store, ContentLimits::default()).await;
    assert_eq!(served.offset("a", &file).await, (false, 3000));
    let wrong = served.upload("a", &file, &bytes, 4000).await;
    let text = refused(wrong, Grpc::OutOfRange, Code::JobInvalid);
    assert!(text.contains("3000 of 400000 bytes are there"), "{text}");
    // A stream that ends too early keeps what came.
    let short = vec![header("a", &file, bytes.len(), 3000), data(&bytes[3000..5000])];
    let text = refused(served.send(short).await, Grpc::InvalidArgument, Code::JobInvalid);
    assert!(text.contains("5000 of 400000 bytes; they are kept"), "{text}");
    assert_eq!(served.offset("a", &file).await, (false, 5000));
    served.upload("a", &file, &bytes, 5000).await.unwrap();
    assert_eq!(served.offset("a", &file).await, (true, 0));
    assert_eq!(spooled(dir.path()), 0);
}

/// How many uploads lie in the spool.
fn spooled(dir: &std::path::Path) -> usize {
    let projects = std::fs::read_dir(dir.join("content/spool")).unwrap();
    projects.map(|project| std::fs::read_dir(project.unwrap().path()).unwrap().count()).sum()
}

#[tokio::test]
async fn limits_of_uploads_hold_before_bytes_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let limits = ContentLimits {
        upload_bytes: 5000,
        project_uploads: 2,
        project_bytes: 6000,
        uploads: 3,
        bytes: 9000,
        window: 1000,
        silence: Duration::from_secs(3),
        ..ContentLimits::default()
    };
    let served = serve(dir.path(), &Memory::default(), limits).await;
    let large = file_ref(b"large");
    let text = refused(
        served.send(vec![header("a", &large, 5001, 0)]).await,
        Grpc::InvalidArgument,
        Code::JobInvalid,
    );
    assert!(text.contains("at most 5000"), "{text}");
    // More than was announced, or a message that is too large: everything is dropped.
    let file = file_ref(b"abc");
    let more = vec![header("a", &file, 2, 0), data(b"abc")];
    refused(served.send(more).await, Grpc::InvalidArgument, Code::JobInvalid);
    assert_eq!(served.offset("a", &file).await, (false, 0));
    // As many as there may be, whatever they say will come.
    let first = served.begin(vec![header("a", &file, 5000, 0), data(b"abc")]).await;
    served.until("a", &file, 3).await;
    let again = served.send(vec![header("a", &file, 4000, 0)]).await;
    let text = refused(again, Grpc::ResourceExhausted, Code::AdmissionBusy);
    assert!(text.contains("by somebody else"), "{text}");
    let more = served.begin(vec![header("a", &large, 5000, 0), data(b"x")]).await;
    served.until("a", &large, 1).await;
    let busy = served.send(vec![header("a", &file_ref(b"third one"), 1, 0)]).await;
    assert!(busy.as_ref().unwrap_err().get_error_details().retry_info().unwrap().retry_delay.is_some());
    refused(busy, Grpc::ResourceExhausted, Code::AdmissionBusy);
    // Another project has room of its own, as far as there is any.
    let second = served.begin(vec![header("b", &large, 5000, 0), data(b"x")]).await;
    served.until("b", &large, 1).await;
    refused(served.send(vec![header("c", &file, 1, 0)]).await, Grpc::ResourceExhausted, Code::AdmissionBusy);
    // Silence ends a stream, and what came is kept.
    let silent = first.call.await.unwrap().unwrap_err();
    assert_eq!(silent.code(), Grpc::DeadlineExceeded);
    assert_eq!(served.offset("a", &file).await, (false, 3));
    drop((more, second));
}

/// Of a project 6000 bytes, of all 9000; an upload counts with 1000 more than came.
fn narrow() -> ContentLimits {
    ContentLimits { project_bytes: 6000, bytes: 9000, window: 1000, ..ContentLimits::default() }
}

#[tokio::test]
async fn upload_counts_with_what_came_and_not_with_what_it_says() {
    let dir = tempfile::tempdir().unwrap();
    let served = serve(dir.path(), &Memory::default(), narrow()).await;
    let bytes = |of: u8, count: usize| vec![of; count];
    let parts = |content: &proto::ContentRef, all: &[u8], from: usize, to: usize| {
        let mut parts = vec![header("a", content, all.len(), from)];
        parts.extend(all[from..to].chunks(500).map(data));
        parts
    };
    // Each says that it fills the project, and has sent next to nothing.
    let said = (0..5).map(|of| (file_ref(&[of]), of)).collect::<Vec<_>>();
    let mut open = Vec::new();
    for (content, of) in &said {
        open.push(served.begin(vec![header("a", content, 6000, 0), data(&[*of])]).await);
        served.until("a", content, 1).await;
    }
    let (one, two) = (bytes(b'1', 5000), bytes(b'2', 4000));
    let (first, second) = (file_ref(&one), file_ref(&two));
    served.upload("a", &first, &one[..], 0).await.unwrap_err();
    // They have the windows of five, so there is one left.
    let kept = served.offset("a", &first).await.1;
    assert!(kept <= 1000, "{kept}");
    open.into_iter().for_each(Cut::cut);
    for (content, _) in &said {
        served.until_left("a", content).await;
    }
    served.upload("a", &first, &one, kept as usize).await.unwrap();
    // What comes passes no bound: a second one is refused where the project would have more than it may, and is kept as far.
    let third = file_ref(b"third");
    let large = bytes(b'3', 5000);
    let held = served.begin(parts(&third, &large, 0, 4500)).await;
    served.until("a", &third, 4500).await;
    let text = refused(
        served.send(parts(&second, &two, 0, 4000)).await,
        Grpc::ResourceExhausted,
        Code::AdmissionBusy,
    );
    assert!(text.contains("too large"), "{text}");
    assert_eq!(served.offset("a", &second).await, (false, 1000));
    held.cut();
    served.until_left("a", &third).await;
    // It goes on where it was, when what was left has made room.
    served.upload("a", &second, &two, 1000).await.unwrap();
    assert_eq!(served.offset("a", &third).await, (false, 0), "it was left, and there was no room for both");
}

#[tokio::test]
async fn what_was_left_makes_room_and_not_for_one_who_has_more() {
    let dir = tempfile::tempdir().unwrap();
    let served = serve(dir.path(), &Memory::default(), narrow()).await;
    let left = |project: &'static str, count: usize| {
        let bytes = vec![b'l'; count];
        let content = file_ref(&[project.as_bytes(), &bytes].concat());
        let mut parts = vec![header(project, &content, 6000, 0)];
        parts.extend(bytes.chunks(500).map(data));
        (content, parts)
    };
    let (of_b, parts) = left("b", 2000);
    served.send(parts).await.unwrap_err();
    // Ages are in whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let (of_a, parts) = left("a", 5000);
    served.send(parts).await.unwrap_err();
    assert_eq!((served.offset("a", &of_a).await.1, served.offset("b", &of_b).await.1), (5000, 2000));
    // Of all there are 2000 left; more is taken of who has more than the one who comes, and nothing of the other, who left
    // his sooner.
    let bytes = vec![b'c'; 5000];
    served.upload("c", &file_ref(&bytes), &bytes, 0).await.unwrap();
    assert_eq!((served.offset("a", &of_a).await.1, served.offset("b", &of_b).await.1), (0, 2000));
    // As many as may be unfinished are no reason to refuse another one, as long as nobody is at them.
    let limits = ContentLimits { project_uploads: 2, ..narrow() };
    drop(served);
    let served = serve(dir.path(), &Memory::default(), limits).await;
    // Ages are in whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for number in 0..3_u8 {
        served.send(vec![header("b", &file_ref(&[number]), 10, 0), data(b"x")]).await.unwrap_err();
    }
    assert_eq!(spooled(dir.path()), 2);
    assert_eq!(served.offset("b", &of_b).await.1, 0, "the oldest");
}

#[tokio::test]
async fn upload_that_was_left_is_swept_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let limits = ContentLimits { age: Duration::ZERO, ..ContentLimits::default() };
    let store = Memory::default();
    let served = serve(dir.path(), &store, limits).await;
    let (left, open, done) = (file_ref(b"left"), file_ref(b"open"), file_ref(b"done"));
    served.upload("a", &done, b"done", 0).await.unwrap();
    let cut = served.begin(vec![header("a", &left, 4, 0), data(b"le")]).await;
    let busy = served.begin(vec![header("a", &open, 4, 0), data(b"op")]).await;
    served.until("a", &left, 2).await;
    served.until("a", &open, 2).await;
    cut.cut();
    // Ages are in whole seconds.
    tokio::time::sleep(Duration::from_millis(2100)).await;
    served.contents.sweep();
    assert_eq!(served.offset("a", &left).await, (false, 0));
    assert_eq!(spooled(dir.path()), 1);
    assert_eq!(served.offset("a", &open).await, (false, 2));
    busy.cut();
    assert!(served.missing("a", &[done.clone()]).await.is_empty());
    // A record that nobody used goes too.
    let limits = ContentLimits { known_age: Duration::ZERO, ..limits };
    let served = serve(dir.path(), &store, limits).await;
    served.contents.sweep();
    assert_eq!(served.missing("a", &[done.clone()]).await, [done]);
}

#[tokio::test]
async fn manifest_of_an_image_needs_the_projects_own_layers() {
    let dir = tempfile::tempdir().unwrap();
    let served = serve(dir.path(), &Memory::default(), ContentLimits::default()).await;
    let (layer, config) = (b"layer".as_slice(), b"{}".as_slice());
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json", "size": config.len(),
            "digest": format!("sha256:{}", sha256(config)),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "size": layer.len(),
            "digest": format!("sha256:{}", sha256(layer)),
        }],
    });
    let manifest = serde_json::to_vec(&manifest).unwrap();
    use proto::ContentKind as Kind;
    let parts = [(Kind::OciLayer, layer), (Kind::OciConfig, config), (Kind::OciManifest, &manifest)];
    for (kind, bytes) in parts {
        served.upload("a", &reference(kind, sha256(bytes), 0), bytes, 0).await.unwrap();
    }
    // The store has all of it. The manifest of another project is not taken for that.
    let whole = reference(Kind::OciManifest, sha256(&manifest), 0);
    for (kind, bytes) in &parts[..2] {
        let text =
            refused(served.upload("b", &whole, &manifest, 0).await, Grpc::NotFound, Code::InputMissing);
        assert!(text.contains("upload configuration and layers before"), "{text}");
        served.upload("b", &reference(*kind, sha256(bytes), 0), bytes, 0).await.unwrap();
    }
    // It came whole and was kept.
    served.upload("b", &whole, &manifest, manifest.len()).await.unwrap();
    assert!(served.missing("b", &[whole]).await.is_empty());
}

#[tokio::test]
async fn gate_is_asked_before_anything_is_told_or_taken() {
    let dir = tempfile::tempdir().unwrap();
    let served = serve(dir.path(), &Memory::default(), ContentLimits::default()).await;
    let file = file_ref(b"x");
    let mut contents = served.client.contents();
    let project = || "secret".to_owned();
    let find = proto::FindMissingRequest { project: project(), contents: vec![file.clone()] };
    let get = proto::GetUploadRequest { project: project(), content: Some(file.clone()) };
    for (status, call) in [
        (contents.find_missing(find).await.unwrap_err(), "FindMissing"),
        (contents.get_upload(get).await.unwrap_err(), "GetUpload"),
        (served.upload("secret", &file, b"x", 0).await.unwrap_err(), "Upload"),
    ] {
        assert_eq!(
            (status.code(), status.message()),
            (Grpc::PermissionDenied, format!("{call} is not for you").as_str())
        );
    }
    assert_eq!(spooled(dir.path()), 0);
}

#[tokio::test]
async fn what_is_fetched_for_a_project_can_be_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let store = Memory::default();
    let served = serve(dir.path(), &store, ContentLimits::default()).await;
    let file = file_ref(b"fetched");
    let content = content("c", &file).unwrap();
    let project = Name::parse("a").unwrap();
    store.0.lock().unwrap().insert(content.clone());
    assert!(!served.contents.is_known(&project, &content));
    served.contents.record(&project, &content).unwrap();
    assert!(served.contents.is_known(&project, &content));
    assert!(served.missing("a", std::slice::from_ref(&file)).await.is_empty());
    assert_eq!(served.missing("b", &[file.clone()]).await, [file]);
}
