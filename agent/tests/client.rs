//! The client: uploads from a job file, following over lost connections, and evidence that is verified.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

#[path = "common/content_server.rs"]
mod content_server;
#[path = "common/fake_jobs.rs"]
mod fake_jobs;

use ampoule_agent::api::convert::job_spec;
use ampoule_agent::client::{Client, ClientError, Credentials, Fetch, Follow, Requesting, Server, Told};
use ampoule_agent::content::ContentLimits;
use ampoule_agent::jobfile;
use ampoule_agent::local::{Cancel, Watch};
use ampoule_agent::signing::FileSigner;
use ampoule_evidence::{
    Authority, Issuer, JobRecord, RunRequest, TrustedKey, Unstarted, run_attestation, seal,
};
use ampoule_proto::v1::{self as proto, input::Source, watch_job_response::Event};
use ampoule_spec::{Code, Failure, JobId, Name, UnixNanos};
use content_server::{Memory, serve, sha256};
use fake_jobs::FakeJobs;
use std::collections::BTreeMap;
use std::path::Path;

const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn request_from_a_job_file_uploads_what_lies_here_once_and_names_the_rest() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = Memory::default();
    let served = serve(state.path(), &store, ContentLimits::default()).await;
    write(dir.path(), "src/main.c", &"int main;".repeat(100_000));
    write(dir.path(), "src/sub/x.h", "x");
    write(dir.path(), "src/secret.key", "never");
    write(dir.path(), "tool", "tool");
    write(dir.path(), "local.txt", "local");
    let zeros = "0".repeat(64);
    let file = format!(
        "ampoule = 1\nname = \"j\"\nimage = \"host\"\nsource_date_epoch = 9\n\
        [[input]]\nname = \"src\"\npath = \"src\"\nexclude = [\"*.key\"]\nmount = \"/build/src\"\n\
        [[input]]\nname = \"tool\"\npath = \"tool\"\nmount = \"/build/tool\"\n\
        [[input]]\nname = \"far\"\nhttp = {{ url = \"https://a.example/f\", sha256 = \"{zeros}\" }}\nmount = \"/build/far\"\n\
        [[input]]\nname = \"near\"\nhttp = {{ url = \"file://{}/local.txt\", sha256 = \"{}\" }}\nmount = \"/build/near\"\n\
        [[step]]\nrun = [\"true\"]\n",
        dir.path().display(),
        sha256(b"local"),
    );
    write(dir.path(), "job.toml", &file);
    let base = dir.path().to_owned();
    let make = |client: Client, base: std::path::PathBuf| {
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || {
            let plan = jobfile::load(&base.join("job.toml")).unwrap().plan(&base, &BTreeMap::new()).unwrap();
            let (cancel, watch, project) = (Cancel::default(), Watch::default(), Name::parse("p").unwrap());
            let requesting =
                Requesting { client, runtime, project: &project, cancel: &cancel, watch: &watch };
            let mut said = Vec::new();
            let request = requesting.request(plan, &mut |what| said.push(what));
            (request, said)
        })
    };
    let (request, said) = make(served.client.clone(), base.clone()).await.unwrap();
    let request = request.unwrap();
    assert_eq!(said, ["input src", "input tool", "input near"]);
    let sources: Vec<_> = request.inputs.iter().map(|input| input.source.clone().unwrap()).collect();
    let Source::Directory(tree) = &sources[0] else { panic!("{sources:?}") };
    std::fs::remove_file(dir.path().join("src/secret.key")).unwrap();
    assert_eq!(tree.tree_sha256, content_server::directory(&dir.path().join("src")).1.sha256);
    let files = |bytes: &[u8]| {
        Source::File(proto::FileSource { sha256: sha256(bytes).to_string(), executable: false })
    };
    assert_eq!(sources[1], files(b"tool"));
    assert!(matches!(&sources[2], Source::Http(http) if http.url == "https://a.example/f"));
    assert_eq!(sources[3], files(b"local"));
    assert_eq!(store.0.lock().unwrap().len(), 3);
    // Nothing in it names a path here, and the project has all of it.
    assert!(!format!("{request:?}").contains(dir.path().to_str().unwrap()));
    let spec = job_spec(request.clone(), JobId::parse(ID).unwrap()).unwrap();
    assert!(served.contents.check(&Name::parse("p").unwrap(), &spec).await.unwrap().is_empty());
    assert_eq!(served.contents.check(&Name::parse("q").unwrap(), &spec).await.unwrap().len(), 3);
    let (again, said) = make(served.client.clone(), base).await.unwrap();
    assert_eq!((again.unwrap(), said), (request, vec!["input tool".to_owned()]));
}

fn log(stream: proto::LogStream, offset: u64, data: &[u8]) -> Event {
    Event::Log(proto::LogChunk { step: 0, stream: stream.into(), offset, data: data.to_vec() })
}

fn finished(outcome: proto::JobOutcome, code: &str) -> proto::Job {
    proto::Job {
        id: ID.to_owned(),
        state: proto::JobState::Finished.into(),
        outcome: outcome.into(),
        code: code.to_owned(),
        ..proto::Job::default()
    }
}

fn client(dir: &Path, jobs: &FakeJobs) -> (Client, tokio::task::JoinHandle<()>) {
    let socket = dir.join("jobs");
    let serving = jobs.serve(&socket);
    (Client::new(&Server::Unix(socket), &Credentials::default()).unwrap(), serving)
}

#[tokio::test]
async fn followed_log_loses_and_repeats_no_byte_wherever_connections_break() {
    let text: Vec<u8> = (0..200_u32).flat_map(|n| format!("{n} ").into_bytes()).collect();
    let mut events = Vec::new();
    for (at, part) in text.chunks(7).enumerate() {
        for stream in [proto::LogStream::Stdout, proto::LogStream::Stderr] {
            events.push(log(stream, at as u64 * 7, part));
        }
    }
    let job = finished(proto::JobOutcome::Succeeded, "");
    let running = proto::Job { state: proto::JobState::Running.into(), outcome: 0, ..job.clone() };
    events.push(Event::Job(job.clone()));
    let jobs = FakeJobs::default();
    {
        let mut script = jobs.0.lock().unwrap();
        script.job = running;
        script.events = events;
        // Some at once, some after a while; some tell again what was received.
        script.breaks = [(0, 0), (1, 0), (2, 0), (40, 0), (5, 3), (30, 9), (1, 2)].into();
    }
    let dir = tempfile::tempdir().unwrap();
    let (client, serving) = client(dir.path(), &jobs);
    let (mut out, mut err, mut states, mut lost) = (Vec::new(), Vec::new(), 0, 0);
    let mut follow = Follow::new(client, ID, true, true);
    let mut tell = |told| match told {
        Told::Log(chunk) => {
            let stream: &mut Vec<u8> =
                if chunk.stream == ampoule_spec::Stream::Stdout { &mut out } else { &mut err };
            assert_eq!(chunk.offset, stream.len() as u64);
            stream.extend(chunk.bytes);
        }
        Told::Job(_) => states += 1,
        Told::Lost(_) => lost += 1,
        _ => {}
    };
    let ended = follow.run(&mut tell).await.unwrap();
    assert_eq!(ended, job);
    assert!(out == text && err == text, "{}", String::from_utf8_lossy(&out));
    assert_eq!((states, lost), (2, 7));
    let script = jobs.0.lock().unwrap();
    assert!(script.watched.is_sorted() && script.watched.len() == 8, "{:?}", script.watched);
    assert!(script.cancelled.is_empty());
    serving.abort();
}

#[tokio::test]
async fn middle_of_a_log_that_was_cut_is_passed_over() {
    let jobs = FakeJobs::default();
    let job = finished(proto::JobOutcome::Succeeded, "");
    {
        let mut script = jobs.0.lock().unwrap();
        script.job = job.clone();
        let out = proto::LogStream::Stdout;
        script.events = vec![log(out, 0, b"head"), log(out, 100, b"tail"), log(out, 102, b"ilend")];
    }
    let dir = tempfile::tempdir().unwrap();
    let (client, serving) = client(dir.path(), &jobs);
    let mut chunks = Vec::new();
    let mut tell = |told| {
        if let Told::Log(chunk) = told {
            chunks.push((chunk.offset, String::from_utf8(chunk.bytes).unwrap()));
        }
    };
    Follow::new(client, ID, true, false).run(&mut tell).await.unwrap();
    let expected = [(0, "head"), (100, "tail"), (104, "end")].map(|(at, text)| (at, text.to_owned()));
    assert_eq!(chunks, expected);
    serving.abort();
}

/// The signed record of a job that failed before it had a sandbox.
fn record(dir: &Path) -> (proto::GetAttestationResponse, String) {
    let request = proto::JobRequest {
        ampoule: 1,
        attempt: 1,
        name: "j".into(),
        profile: "hermetic".into(),
        image: Some(proto::Image { kind: Some(proto::image::Kind::Host(proto::HostImage {})) }),
        steps: vec![proto::Step {
            name: "s".into(),
            run: vec!["true".into()],
            cwd: "/build".into(),
            timeout_ms: 1000,
            ..proto::Step::default()
        }],
        ..proto::JobRequest::default()
    };
    let spec = serde_json::to_vec(&job_spec(request, JobId::parse(ID).unwrap()).unwrap()).unwrap();
    let failure = Failure::new(Code::InputUnreachable, "no answer");
    let end = Unstarted { acknowledged: UnixNanos(1_000), ended: UnixNanos(2_000), failure };
    let (record, report) = JobRecord::unstarted(&spec, &end).unwrap();
    let signer = FileSigner::load_or_create(&dir.join("key.pem")).unwrap();
    let authority = Authority::parse("https://ampoule.example").unwrap();
    let issuer = Issuer { authority, development_key: true };
    let request = RunRequest {
        record: &record,
        issuer: &issuer,
        provenance_sha256: None,
        agent_claims: &BTreeMap::new(),
    };
    let sealed = seal(&run_attestation(&request).unwrap(), &signer).unwrap();
    let (public, _) = signer.public().unwrap();
    let file = |name: &str, data: &[u8]| proto::EvidenceFile {
        name: name.to_owned(),
        data: data.to_vec(),
        also: Vec::new(),
    };
    let files = vec![
        file("spec.json", &spec),
        file("report.json", &report),
        file("run.intoto.jsonl", sealed.envelope_json_line.as_bytes()),
    ];
    (proto::GetAttestationResponse { files, public_key_pem: public.clone() }, public)
}

/// Fetches what the script has.
async fn fetched(jobs: &FakeJobs, out: &Path, trusted: Option<Vec<TrustedKey>>) -> Result<u8, ClientError> {
    let dir = tempfile::tempdir().unwrap();
    let (client, serving) = client(dir.path(), jobs);
    let (job, runtime) = (jobs.0.lock().unwrap().job.clone(), tokio::runtime::Handle::current());
    let out = out.to_owned();
    let fetching = tokio::task::spawn_blocking(move || {
        let fetch = Fetch {
            client: &client,
            runtime: &runtime,
            out: &out,
            trusted: trusted.as_deref(),
            allow_dev: true,
        };
        fetch.fetch(&job).map(|fetched| fetched.exit)
    });
    let fetched = fetching.await.unwrap();
    serving.abort();
    fetched
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_is_verified_before_anything_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (good, public) = record(dir.path());
    let (other_dir, out) = (tempfile::tempdir().unwrap(), dir.path().join("out"));
    let (other, other_public) = record(other_dir.path());
    let jobs = FakeJobs::default();
    let failed = finished(proto::JobOutcome::Failed, "input.unreachable");
    let set = |evidence: &proto::GetAttestationResponse, job: &proto::Job| {
        let mut script = jobs.0.lock().unwrap();
        (script.evidence, script.job) = (evidence.clone(), job.clone());
    };
    let key = |pem: &str| vec![TrustedKey::any(ampoule_evidence::PublicKey::from_pem(pem).unwrap())];
    let tampered = |name: &str, change: &dyn Fn(&mut proto::EvidenceFile)| {
        let mut evidence = good.clone();
        evidence.files.iter_mut().filter(|file| file.name == name).for_each(change);
        evidence
    };
    let flip = |file: &mut proto::EvidenceFile| {
        let text = String::from_utf8(file.data.clone()).unwrap();
        file.data = text.replace("hermetic", "hermitic").replace("no answer", "an answer").into_bytes();
    };
    let named = |name: &'static str| move |file: &mut proto::EvidenceFile| file.name = name.to_owned();
    let elsewhere = proto::Job { id: ID.replace('7', "8"), ..failed.clone() };
    for (what, evidence, job, trusted) in [
        ("another key is believed", good.clone(), failed.clone(), Some(key(&other_public))),
        ("signed by another", other, failed.clone(), Some(key(&public))),
        ("report", tampered("report.json", &flip), failed.clone(), None),
        ("spec", tampered("spec.json", &flip), failed.clone(), None),
        ("a path", tampered("spec.json", &named("../spec.json")), failed.clone(), None),
        ("logs", tampered("spec.json", &named("logs")), failed.clone(), None),
        ("another job", good.clone(), elsewhere, None),
        ("success is said", good.clone(), finished(proto::JobOutcome::Succeeded, ""), None),
        (
            "another code is said",
            good.clone(),
            finished(proto::JobOutcome::Failed, "step.exit_nonzero"),
            None,
        ),
    ] {
        set(&evidence, &job);
        let error = fetched(&jobs, &out, trusted).await.expect_err(what);
        assert_eq!(error.code(), Code::VerifyRefused, "{what}: {error}");
        let left: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!out.exists() && left.iter().all(|name| !name.to_str().unwrap().contains("tmp")), "{left:?}");
    }
    set(&good, &failed);
    assert_eq!(fetched(&jobs, &out, Some(key(&public))).await.unwrap(), 75);
    let result = std::fs::read(out.join("evidence/result.json")).unwrap();
    let result: serde_json::Value = serde_json::from_slice(&result).unwrap();
    let expected = [
        ("job", ID),
        ("outcome", "failed"),
        ("code", "input.unreachable"),
        ("fault", "platform"),
        ("attestation", "run.intoto.jsonl"),
    ];
    for (field, value) in expected {
        assert_eq!(result[field], value);
    }
    assert_eq!((result["exit"].as_u64(), result["retryable"].as_bool()), (Some(75), Some(true)));
    assert!(out.join("evidence/run.intoto.jsonl").exists() && out.join("outputs").is_dir());
    // What is there is not replaced.
    assert_eq!(Fetch::check(&out).unwrap_err().code(), Code::FileUnusable);
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_with_several_names_is_written_under_each() {
    let dir = tempfile::tempdir().unwrap();
    let (mut good, _) = record(dir.path());
    let out = dir.path().join("out");
    let jobs = FakeJobs::default();
    let set = |evidence: &proto::GetAttestationResponse| {
        let mut script = jobs.0.lock().unwrap();
        script.evidence = evidence.clone();
        script.job = finished(proto::JobOutcome::Failed, "input.unreachable");
    };
    let run = good.files[2].data.clone();
    for bad in ["../x", "logs", ""] {
        good.files[2].also = vec!["b.intoto.jsonl".to_owned(), bad.to_owned()];
        set(&good);
        assert_eq!(fetched(&jobs, &out, None).await.unwrap_err().code(), Code::VerifyRefused, "{bad:?}");
    }
    good.files[2].also = (0..2_000).map(|number| format!("b{number}")).collect();
    set(&good);
    assert!(fetched(&jobs, &out, None).await.unwrap_err().to_string().contains("2003 files"));
    good.files[2].also = vec!["b.intoto.jsonl".to_owned(), "c.intoto.jsonl".to_owned()];
    set(&good);
    fetched(&jobs, &out, None).await.unwrap();
    for name in ["run.intoto.jsonl", "b.intoto.jsonl", "c.intoto.jsonl"] {
        assert_eq!(std::fs::read(out.join("evidence").join(name)).unwrap(), run, "{name}");
    }
}
