//! The wire's request and the spec are the same model.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use ampoule_agent::api::convert::{job_request, job_spec};
use ampoule_proto::v1 as wire;
use ampoule_spec::{
    Delivery, EnvName, GitId, GitSigner, Image, Input, InputSource, JobId, JobSpec, LimitsRequest,
    LogOverflow, MadeBy, Name, Output, OutputForm, OutputKind, OutputName, OutputWhen, ParamValue,
    RotateSignal, SandboxPath, Secret, Sha256, Step, StepUser,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

fn id() -> JobId {
    JobId::parse("01890a5d-ac96-774b-bcce-b302099a8057").unwrap()
}

fn name() -> impl Strategy<Value = Name> {
    "[a-z0-9][a-z0-9-]{0,20}".prop_map(|t| Name::parse(&t).unwrap())
}

fn sha256() -> impl Strategy<Value = Sha256> {
    any::<[u8; 32]>().prop_map(Sha256::new)
}

fn env() -> impl Strategy<Value = std::collections::BTreeMap<EnvName, String>> {
    btree_map("[A-Z_][A-Z0-9_]{0,9}".prop_map(|t| EnvName::parse(&t).unwrap()), "[^\0]{0,20}", 0..4)
}

fn image() -> impl Strategy<Value = Image> {
    prop_oneof![
        Just(Image::Host),
        (sha256(), "[^\0]{0,20}").prop_map(|(manifest, reference)| Image::Oci { manifest, reference }),
        sha256().prop_map(|sha256| Image::Tar { sha256 }),
    ]
}

fn source() -> impl Strategy<Value = InputSource> {
    prop_oneof![
        sha256().prop_map(|tree| InputSource::Directory { tree }),
        (sha256(), any::<bool>()).prop_map(|(sha256, executable)| InputSource::File { sha256, executable }),
        (vec("https?://[a-z]{1,9}/[a-z?=&%20]{0,9}", 1..4), sha256(), any::<bool>()).prop_map(
            |(mut urls, sha256, unpack)| {
                InputSource::Http { url: urls.remove(0), sha256, unpack, mirrors: urls }
            }
        ),
        sha256().prop_map(|sha256| InputSource::Tar { sha256 }),
        (
            prop::option::of("https?://[a-z]{1,9}/[a-z]{0,9}"),
            any::<[u8; 20]>(),
            any::<bool>(),
            prop::option::of(sha256()),
            0..3
        )
            .prop_map(|(url, commit, submodules, tree, signed)| InputSource::Git {
                url,
                commit: GitId::new(commit),
                submodules,
                tree,
                signer: (signed > 0).then(|| GitSigner {
                    principal: String::new(),
                    key: String::new(),
                    allowed_signers: Sha256::new([7; 32]),
                    tag: (signed > 1).then(|| "v1".to_owned()),
                }),
            }),
        (sha256(), any::<bool>(), sha256(), "[a-zA-Z0-9][a-zA-Z0-9._+-]{0,9}").prop_map(
            |(sha256, unpack, statement, subject)| InputSource::Attestation {
                sha256,
                executable: false,
                unpack,
                tree: !unpack && statement.as_bytes()[0] > 127,
                made_by: MadeBy {
                    builder: "https://ampoule.example/builders/hermetic/v1".to_owned(),
                    key: "SHA256:x".to_owned(),
                    job: id(),
                    subject: OutputName::parse(&subject).unwrap(),
                    statement,
                },
            }
        ),
    ]
}

fn inputs() -> impl Strategy<Value = Vec<Input>> {
    vec((any::<bool>(), source()), 0..4).prop_map(|inputs| {
        let input = |(at, (writable, source))| Input {
            name: Name::parse(&format!("input-{at}")).unwrap(),
            mount: SandboxPath::parse(&format!("/build/{at}")).unwrap(),
            writable,
            exclude: match &source {
                InputSource::Directory { .. } if writable => vec!["target/".to_owned(), "!*.o".to_owned()],
                _ => Vec::new(),
            },
            source,
        };
        inputs.into_iter().enumerate().map(input).collect()
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    vec((vec("[^\0]{1,20}", 1..4), env(), 1..=86_400_000_u64), 1..4).prop_map(|steps| {
        let step = |(at, (run, env, timeout_ms))| Step {
            name: Name::parse(&format!("step-{at}")).unwrap(),
            run,
            cwd: SandboxPath::parse("/build").unwrap(),
            env,
            timeout_ms,
            secrets: Vec::new(),
        };
        steps.into_iter().enumerate().map(step).collect()
    })
}

fn outputs() -> impl Strategy<Value = Vec<Output>> {
    vec((any::<bool>(), any::<bool>(), any::<bool>()), 0..4).prop_map(|outputs| {
        let forms = [None, Some(OutputForm::File), Some(OutputForm::Tree), Some(OutputForm::TarZst)];
        let output = |(at, (always, report, optional))| Output {
            name: OutputName::parse(&format!("Out_{at}")).unwrap(),
            path: SandboxPath::parse(&format!("/build/out/{at}")).unwrap(),
            when: if always { OutputWhen::Always } else { OutputWhen::Success },
            kind: if report { OutputKind::Report } else { OutputKind::Artifact },
            optional,
            form: forms[at],
        };
        outputs.into_iter().enumerate().map(output).collect()
    })
}

fn limits() -> impl Strategy<Value = LimitsRequest> {
    let one = || option::of(1..=u64::MAX);
    (one(), one(), one(), one(), one(), one(), one(), one()).prop_map(|(a, b, c, d, e, f, g, h)| {
        LimitsRequest {
            memory_bytes: a,
            cpu_millis: b,
            pids: c,
            disk_bytes: d,
            disk_inodes: e,
            log_bytes: f,
            timeout_ms: g,
            open_files: h,
        }
    })
}

fn params() -> impl Strategy<Value = std::collections::BTreeMap<Name, ParamValue>> {
    let value = prop_oneof![
        any::<bool>().prop_map(ParamValue::Bool),
        any::<i64>().prop_map(ParamValue::Integer),
        "[^\0]{0,20}".prop_map(ParamValue::String),
    ];
    btree_map(name(), value, 0..4)
}

/// The first variables of a job and its steps are spelt otherwise.
fn secrets() -> impl Strategy<Value = Vec<Secret>> {
    vec((0..3_u8, 0..4_usize), 0..4).prop_map(|secrets| {
        let secret = |(at, (kind, told)): (usize, (u8, usize))| {
            let variable = EnvName::parse(&format!("SECRET__{at}")).unwrap();
            let path = SandboxPath::parse(&format!("/run/secrets/{at}")).unwrap();
            let on_rotate = RotateSignal::ALL.get(told).copied().filter(|_| kind == 0);
            let delivery = [Delivery::File(path), Delivery::Fd(variable.clone()), Delivery::Env(variable)];
            let name = Name::parse(&format!("secret-{at}")).unwrap();
            Secret { name, delivery: delivery[usize::from(kind)].clone(), on_rotate }
        };
        secrets.into_iter().enumerate().map(secret).collect()
    })
}

prop_compose! {
    fn spec()(
        attempt in 1..=u32::MAX,
        (name, profile) in (name(), name()),
        image in image(),
        source_date_epoch in 0..=253_402_300_799_u64,
        env in env(),
        params in params(),
        inputs in inputs(),
        (secrets, mut steps) in (secrets(), steps()),
        outputs in outputs(),
        limits in limits(),
        (root, fail, of_commit) in (any::<bool>(), any::<bool>(), any::<bool>()),
    ) -> JobSpec {
        steps[0].secrets = secrets.iter().rev().map(|secret| secret.name.clone()).collect();
        let epoch_of_commit = of_commit && inputs.iter().any(|i| matches!(i.source, InputSource::Git { .. }));
        JobSpec {
            ampoule: 1, id: id(), attempt, name, profile, image, env, params, inputs, secrets, steps, outputs, limits,
            source_date_epoch: if epoch_of_commit { 0 } else { source_date_epoch },
            epoch_of_commit,
            user: if root { StepUser::Root } else { StepUser::Build },
            log_overflow: if fail { LogOverflow::Fail } else { LogOverflow::Cut },
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn spec_to_request_to_bytes_and_back_is_the_same(spec in spec()) {
        use prost::Message as _;
        let request = job_request(&spec);
        let bytes = request.encode_to_vec();
        let read = wire::JobRequest::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(&read, &request);
        prop_assert_eq!(job_spec(read, id()), Ok(spec));
    }

    #[test]
    fn any_bytes_give_a_request_a_field_error_or_nothing(bytes in vec(any::<u8>(), 0..200)) {
        use prost::Message as _;
        if let Ok(request) = wire::JobRequest::decode(bytes.as_slice()) {
            let _ = job_spec(request, id());
        }
    }
}

fn request() -> wire::JobRequest {
    let zero = "0".repeat(64);
    let http = wire::HttpSource { url: "https://h/x".into(), sha256: zero, unpack: false, mirrors: vec![] };
    wire::JobRequest {
        ampoule: 1,
        attempt: 1,
        name: "j".into(),
        profile: "hermetic".into(),
        image: Some(wire::Image { kind: Some(wire::image::Kind::Host(wire::HostImage {})) }),
        inputs: vec![wire::Input {
            name: "src".into(),
            mount: "/build/src".into(),
            writable: false,
            source: Some(wire::input::Source::Http(http)),
            exclude: Vec::new(),
        }],
        steps: vec![wire::Step {
            name: "s".into(),
            run: vec!["true".into()],
            cwd: "/build".into(),
            timeout_ms: 1,
            ..Default::default()
        }],
        outputs: vec![wire::Output { name: "o".into(), path: "/build/o".into(), ..Default::default() }],
        ..Default::default()
    }
}

fn refused(change: impl FnOnce(&mut wire::JobRequest)) -> String {
    let mut request = request();
    change(&mut request);
    job_spec(request, id()).unwrap_err().field
}

#[test]
fn job_spec_unspecified_enums_are_the_defaults() {
    let spec = job_spec(request(), id()).unwrap();
    assert_eq!((spec.outputs[0].when, spec.outputs[0].kind), (OutputWhen::Success, OutputKind::Artifact));
    assert_eq!((spec.user, spec.log_overflow), (StepUser::Build, LogOverflow::Cut));
    let limits = wire::LimitsRequest::default();
    let spec = job_spec(wire::JobRequest { limits: Some(limits), ..request() }, id()).unwrap();
    assert_eq!(spec.log_overflow, LogOverflow::Cut);
}

#[test]
fn job_spec_names_the_field_of_the_message() {
    fn http(request: &mut wire::JobRequest) -> &mut wire::HttpSource {
        match &mut request.inputs[0].source {
            Some(wire::input::Source::Http(http)) => http,
            _ => unreachable!(),
        }
    }
    assert_eq!(refused(|r| *r = wire::JobRequest::default()), "name");
    assert_eq!(refused(|r| r.ampoule = 2), "ampoule");
    assert_eq!(refused(|r| r.attempt = 0), "attempt");
    assert_eq!(refused(|r| r.profile = "../x".into()), "profile");
    assert_eq!(refused(|r| r.image = None), "image");
    assert_eq!(refused(|r| r.image = Some(wire::Image::default())), "image");
    let oci = wire::OciImage { manifest_sha256: "x".into(), reference: String::new() };
    let oci = wire::Image { kind: Some(wire::image::Kind::Oci(oci)) };
    assert_eq!(refused(|r| r.image = Some(oci)), "image.oci.manifest_sha256");
    assert_eq!(refused(|r| _ = r.env.insert("1".into(), String::new())), "env[\"1\"]");
    assert_eq!(refused(|r| _ = r.params.insert("p".into(), wire::ParamValue::default())), "params[\"p\"]");
    assert_eq!(refused(|r| r.inputs[0].source = None), "inputs[0]");
    assert_eq!(refused(|r| r.inputs[0].mount = "/usr".into()), "inputs[0].mount");
    assert_eq!(refused(|r| http(r).sha256.clear()), "inputs[0].http.sha256");
    assert_eq!(refused(|r| http(r).url = "file:///etc/passwd".into()), "inputs[0].http.url");
    assert_eq!(refused(|r| http(r).url = "https://u:p@h/".into()), "inputs[0].http.url");
    let mirror = |url: &str| vec!["https://h/x".to_owned(), url.to_owned()];
    assert_eq!(refused(|r| http(r).mirrors = mirror("file:///x")), "inputs[0].http.mirrors[1]");
    assert_eq!(refused(|r| r.steps.clear()), "steps");
    assert_eq!(refused(|r| r.steps[0].cwd = "x".into()), "steps[0].cwd");
    assert_eq!(refused(|r| r.steps[0].timeout_ms = 0), "steps[0].timeout_ms");
    assert_eq!(refused(|r| r.steps.push(r.steps[0].clone())), "steps[1].name");
    let secret = |delivery| wire::Secret { name: "a".into(), delivery, on_rotate: 0 };
    let file = |path: &str| Some(wire::secret::Delivery::File(path.into()));
    assert_eq!(refused(|r| r.secrets.push(secret(None))), "secrets[0]");
    assert_eq!(refused(|r| r.secrets.push(secret(file("x")))), "secrets[0].file");
    assert_eq!(refused(|r| r.secrets.push(secret(file("/etc/x")))), "secrets[0].file");
    let told = wire::Secret { on_rotate: 9, ..secret(file("/run/secrets/a")) };
    assert_eq!(refused(|r| r.secrets.push(told)), "secrets[0].on_rotate");
    assert_eq!(refused(|r| r.steps[0].secrets.push("A".into())), "steps[0].secrets[0]");
    assert_eq!(refused(|r| r.steps[0].secrets.push("a".into())), "steps[0].secrets");
    assert_eq!(refused(|r| r.outputs[0].when = 9), "outputs[0].when");
    assert_eq!(refused(|r| r.outputs[0].kind = -1), "outputs[0].kind");
    assert_eq!(refused(|r| r.outputs[0].path = "/".into()), "outputs[0].path");
    let zero = wire::LimitsRequest { pids: Some(0), ..Default::default() };
    assert_eq!(refused(|r| r.limits = Some(zero)), "limits.pids");
    let odd = wire::LimitsRequest { log_overflow: 3, ..Default::default() };
    assert_eq!(refused(|r| r.limits = Some(odd)), "limits.log_overflow");
    assert_eq!(refused(|r| r.user = 3), "user");
    assert_eq!(refused(|r| r.user = -1), "user");
}
