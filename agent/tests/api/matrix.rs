//! The authorisation matrix: every call of every service × every state of credentials × whose job it is about.
//!
//! What is expected is a table; a call that is in the schema and not in the table fails, and so does one that is in the table
//! alone.

use crate::fake::{MINE, NONE, THEIRS};
use crate::fixture::{CI, Ca, IDLE, Issuer, Running, Wish, start};
use crate::raw::{call, is_transport};
use ampoule_proto::v1 as wire;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use std::collections::BTreeSet;
use tonic::Code;
use tonic::transport::Channel;
use tonic_types::StatusExt;

/// Whose a job or project is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Mine,
    Theirs,
    Nobodys,
}

/// What a call is about, and so what it gives to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    /// A new job or content of a project.
    Project,
    /// A job that is there or not.
    Job,
    /// A list, out of which falls what may not be read.
    List,
    /// The host.
    Host,
    /// Open to all who can connect.
    Health,
    /// For local peers with a role.
    Schema,
}

struct Row {
    path: &'static str,
    about: About,
    message: fn(Whose) -> Vec<u8>,
}

fn project(whose: Whose) -> String {
    if whose == Whose::Theirs { "theirs" } else { "mine" }.to_owned()
}

fn job_id(whose: Whose) -> String {
    match whose {
        Whose::Mine => MINE,
        Whose::Theirs => THEIRS,
        Whose::Nobodys => NONE,
    }
    .to_owned()
}

pub(crate) fn submit(project: &str, key: &str) -> wire::SubmitJobRequest {
    let step = wire::Step {
        name: "a".into(),
        run: vec!["true".into()],
        cwd: "/build".into(),
        timeout_ms: 1000,
        ..Default::default()
    };
    let job = wire::JobRequest {
        ampoule: 1,
        attempt: 1,
        name: "build".into(),
        profile: "hermetic".into(),
        image: Some(wire::Image { kind: Some(wire::image::Kind::Host(wire::HostImage {})) }),
        steps: vec![step],
        ..Default::default()
    };
    wire::SubmitJobRequest {
        idempotency_key: key.into(),
        project: project.into(),
        job: Some(job),
        ..Default::default()
    }
}

pub(crate) fn revoke(job: &str) -> wire::RevokeLeasesRequest {
    wire::RevokeLeasesRequest { of: Some(wire::revoke_leases_request::Of::JobId(job.to_owned())) }
}

/// An empty file.
fn content() -> wire::ContentRef {
    let sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".to_owned();
    wire::ContentRef { kind: wire::ContentKind::File.into(), sha256, ..Default::default() }
}

/// The table.
const ROWS: &[Row] = &[
    Row {
        path: "ampoule.v1.JobService/SubmitJob",
        about: About::Project,
        message: |whose| submit(&project(whose), "k").encode_to_vec(),
    },
    Row {
        path: "ampoule.v1.JobService/GetJob",
        about: About::Job,
        message: |whose| wire::GetJobRequest { job_id: job_id(whose) }.encode_to_vec(),
    },
    Row {
        path: "ampoule.v1.JobService/ListJobs",
        about: About::List,
        message: |whose| {
            wire::ListJobsRequest { project: project(whose), ..Default::default() }.encode_to_vec()
        },
    },
    Row {
        path: "ampoule.v1.JobService/WatchJob",
        about: About::Job,
        message: |whose| {
            wire::WatchJobRequest { job_id: job_id(whose), ..Default::default() }.encode_to_vec()
        },
    },
    Row {
        path: "ampoule.v1.JobService/CancelJob",
        about: About::Job,
        message: |whose| {
            wire::CancelJobRequest { job_id: job_id(whose), ..Default::default() }.encode_to_vec()
        },
    },
    Row {
        path: "ampoule.v1.JobService/GetAttestation",
        about: About::Job,
        message: |whose| wire::GetAttestationRequest { job_id: job_id(whose) }.encode_to_vec(),
    },
    Row {
        path: "ampoule.v1.JobService/DownloadOutput",
        about: About::Job,
        message: |whose| {
            wire::DownloadOutputRequest { job_id: job_id(whose), output: "a".into(), offset: 0 }
                .encode_to_vec()
        },
    },
    Row { path: "ampoule.v1.HostService/GetCapabilities", about: About::Host, message: |_| Vec::new() },
    Row { path: "ampoule.v1.HostService/Drain", about: About::Host, message: |_| Vec::new() },
    // What all projects have is the host's business: who has a role in one of them alone learns nothing of it.
    Row {
        path: "ampoule.v1.HostService/ListLeases",
        about: About::Host,
        message: |whose| {
            wire::ListLeasesRequest { project: project(whose), ..Default::default() }.encode_to_vec()
        },
    },
    Row {
        path: "ampoule.v1.HostService/RevokeLeases",
        about: About::Host,
        message: |whose| revoke(&job_id(whose)).encode_to_vec(),
    },
    Row {
        path: "ampoule.v1.HostService/CheckSecrets",
        about: About::Host,
        message: |whose| wire::CheckSecretsRequest { project: project(whose) }.encode_to_vec(),
    },
    Row {
        path: "ampoule.v1.ContentService/FindMissing",
        about: About::Project,
        message: |whose| {
            wire::FindMissingRequest { project: project(whose), ..Default::default() }.encode_to_vec()
        },
    },
    Row {
        path: "ampoule.v1.ContentService/GetUpload",
        about: About::Project,
        message: |whose| {
            wire::GetUploadRequest { project: project(whose), content: Some(content()) }.encode_to_vec()
        },
    },
    Row {
        path: "ampoule.v1.ContentService/Upload",
        about: About::Project,
        message: |whose| {
            let header = wire::UploadHeader {
                project: project(whose),
                content: Some(content()),
                ..Default::default()
            };
            wire::UploadRequest { part: Some(wire::upload_request::Part::Header(header)) }.encode_to_vec()
        },
    },
    Row { path: "grpc.health.v1.Health/Check", about: About::Health, message: |_| Vec::new() },
    Row {
        path: "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        about: About::Schema,
        message: |_| vec![0x3a, 0],
    },
    Row {
        path: "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        about: About::Schema,
        message: |_| vec![0x3a, 0],
    },
];

/// Calls of the schema that end only with the connection; they are judged like the row of the same service.
const ENDLESS: &[&str] = &["grpc.health.v1.Health/Watch"];

/// How far a caller gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gets {
    /// No connection.
    Nowhere,
    /// Not known.
    Unknown,
    /// Known, without a role.
    Known,
    /// With the right role.
    Role,
}

/// What a call has to end with: a code of gRPC, or none for no connection. [`Code::Ok`] with a number of messages' bytes where
/// that matters.
fn expected(about: About, gets: Gets, local: bool, whose: Whose) -> Option<Code> {
    use About::{Health, Host, Job, List, Project, Schema};
    let code = match (gets, about, whose) {
        (Gets::Nowhere, ..) => return None,
        (_, Health, _) => Code::Ok,
        (Gets::Unknown, ..) => Code::Unauthenticated,
        (_, Schema, _) if !local => Code::Unimplemented,
        (_, List, _) => Code::Ok,
        (Gets::Known, Job, _) => Code::NotFound,
        (Gets::Known, ..) => Code::PermissionDenied,
        (Gets::Role, Schema | Host, _) => Code::Ok,
        (Gets::Role, Job, Whose::Mine) => Code::Ok,
        (Gets::Role, Job, _) => Code::NotFound,
        (Gets::Role, Project, Whose::Theirs) => Code::PermissionDenied,
        (Gets::Role, Project, _) => Code::Ok,
    };
    Some(code)
}

struct State {
    name: &'static str,
    channel: Channel,
    token: Option<String>,
    gets: Gets,
    local: bool,
}

fn states(server: &Running, stranger: &Running) -> Vec<State> {
    let tcp = |name, pair: Option<&crate::fixture::Pair>, token: Option<String>, gets| State {
        name,
        channel: server.tcp(pair),
        token,
        gets,
        local: false,
    };
    let ca = &server.ca;
    let other = Ca::new();
    let good = server.issuer.token("ci", "ampouled", 0);
    let parts: Vec<&str> = good.split('.').collect();
    // {"alg":"none","typ":"JWT"}
    let none = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{}.", parts[1]);
    let token = |subject: &str, audience: &str, age| Some(server.issuer.token(subject, audience, age));
    vec![
        State {
            name: "plaintext",
            channel: server.plain(),
            token: Some(good.clone()),
            gets: Gets::Nowhere,
            local: false,
        },
        tcp("certificate of another CA", Some(&other.client(CI)), None, Gets::Nowhere),
        tcp("certificate that has expired", Some(&ca.expired(CI)), None, Gets::Nowhere),
        tcp("certificate for another use", Some(&ca.wrong_use(CI)), None, Gets::Nowhere),
        tcp("no credential", None, None, Gets::Unknown),
        tcp(
            "certificate with an unknown name",
            Some(&ca.client("spiffe://test.example/ci/x")),
            None,
            Gets::Unknown,
        ),
        tcp("token that has expired", None, token("ci", "ampouled", 3600), Gets::Unknown),
        tcp("token for another audience", None, token("ci", "other", 0), Gets::Unknown),
        tcp("token with alg none", None, Some(none.clone()), Gets::Unknown),
        tcp("token of another key", None, Some(Issuer::new().token("ci", "ampouled", 0)), Gets::Unknown),
        tcp("good certificate, bad token", Some(&ca.client(CI)), Some(none.clone()), Gets::Unknown),
        State {
            name: "good peer, bad token",
            channel: server.unix(),
            token: Some(none),
            gets: Gets::Unknown,
            local: true,
        },
        tcp("certificate without a role", Some(&ca.client(IDLE)), None, Gets::Known),
        tcp("token without a role", None, token("idle", "ampouled", 0), Gets::Known),
        State {
            name: "peer without a role",
            channel: stranger.unix(),
            token: None,
            gets: Gets::Known,
            local: true,
        },
        tcp("certificate with the role", Some(&ca.client(CI)), None, Gets::Role),
        tcp("token with the role", None, Some(good.clone()), Gets::Role),
        State {
            name: "peer with the role",
            channel: server.unix(),
            token: None,
            gets: Gets::Role,
            local: true,
        },
        State {
            name: "good certificate, token without a role",
            channel: server.tcp(Some(&ca.client(CI))),
            token: token("idle", "ampouled", 0),
            gets: Gets::Known,
            local: false,
        },
    ]
}

fn calls_of_the_schema() -> BTreeSet<String> {
    let sets: [&[u8]; 4] = [
        ampoule_proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let files = sets.into_iter().flat_map(|set| FileDescriptorSet::decode(set).unwrap().file);
    let mut calls = BTreeSet::new();
    for file in files {
        for service in &file.service {
            let methods = service.method.iter();
            calls.extend(methods.map(|m| format!("{}.{}/{}", file.package(), service.name(), m.name())));
        }
    }
    calls
}

#[test]
fn every_call_of_the_schema_is_in_the_table_and_no_other() {
    let table: BTreeSet<String> =
        ROWS.iter().map(|row| row.path).chain(ENDLESS.iter().copied()).map(str::to_owned).collect();
    assert_eq!(table, calls_of_the_schema(), "a call without a row is not authorised by anybody's word");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_gives_each_caller_what_the_table_says() {
    let server = start(Wish::default()).await;
    let stranger = start(Wish { peer_has_role: false, ..Wish::default() }).await;
    let mut wrong = Vec::new();
    let mut asked = 0;
    for state in states(&server, &stranger) {
        for row in ROWS {
            for whose in [Whose::Mine, Whose::Theirs, Whose::Nobodys] {
                let before = server.told.count() + stranger.told.count();
                let answer =
                    call(state.channel.clone(), row.path, (row.message)(whose), state.token.as_deref()).await;
                let code = match &answer {
                    Ok(messages) if row.about == About::List => {
                        // A list is no error; what may not be read is not in it.
                        let list = wire::ListJobsResponse::decode(messages[0].clone()).unwrap();
                        let sees = state.gets == Gets::Role && whose != Whose::Theirs;
                        (list.jobs.len() == usize::from(sees)).then_some(Code::Ok)
                    }
                    Ok(_) => Some(Code::Ok),
                    Err(status) if is_transport(status) => None,
                    Err(status) => Some(status.code()),
                };
                let told = server.told.count() + stranger.told.count() > before;
                let refused = matches!(code, Some(Code::Unauthenticated | Code::PermissionDenied));
                let want = expected(row.about, state.gets, state.local, whose);
                if code != want || refused && !told {
                    wrong.push(format!(
                        "{}, {}, {whose:?}: {code:?}, not {want:?}; told: {told}",
                        state.name, row.path
                    ));
                }
                asked += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {asked}:\n{}", wrong.len(), wrong.join("\n"));
    println!("{asked} calls");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn job_that_may_not_be_read_is_told_from_none_by_nothing() {
    let server = start(Wish::default()).await;
    let channel = server.tcp(Some(&server.ca.client(CI)));
    for row in ROWS.iter().filter(|row| row.about == About::Job) {
        let status =
            async |whose| call(channel.clone(), row.path, (row.message)(whose), None).await.unwrap_err();
        let (theirs, none) = (status(Whose::Theirs).await, status(Whose::Nobodys).await);
        assert_eq!((theirs.code(), theirs.message()), (none.code(), none.message()), "{}", row.path);
        assert_eq!(theirs.details(), none.details(), "{}", row.path);
        assert_eq!(theirs.get_error_details().error_info().unwrap().reason, "job.unknown");
    }
    // The same work is done for both. The medians of what it takes are near each other; a caller over a network sees less.
    let time = async |whose: Whose| {
        let before = std::time::Instant::now();
        let _ = call(channel.clone(), ROWS[1].path, (ROWS[1].message)(whose), None).await;
        before.elapsed()
    };
    let (mut theirs, mut none) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        theirs.push(time(Whose::Theirs).await);
        none.push(time(Whose::Nobodys).await);
    }
    theirs.sort();
    none.sort();
    let (theirs, none) = (theirs[100].as_secs_f64(), none[100].as_secs_f64());
    println!("median: theirs {:.0} us, none {:.0} us", theirs * 1e6, none * 1e6);
    assert!((0.5..2.0).contains(&(theirs / none)), "{theirs} {none}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listener_without_tokens_wants_a_certificate_in_the_handshake() {
    let server = start(Wish { tokens: false, ..Wish::default() }).await;
    let path = "grpc.health.v1.Health/Check";
    let token = server.issuer.token("ci", "ampouled", 0);
    let status = call(server.tcp(None), path, Vec::new(), Some(&token)).await.unwrap_err();
    assert!(is_transport(&status), "{status}");
    call(server.tcp(Some(&server.ca.client(IDLE))), path, Vec::new(), None).await.unwrap();
    assert!(server.told.0.lock().unwrap().iter().any(|line| line.starts_with("unidentified tls nobody")));
}
