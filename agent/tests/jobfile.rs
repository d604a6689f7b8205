//! The job file against tables of good, bad and mutated files.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use ampoule_agent::git::GitPlace;
use ampoule_agent::jobfile::{
    JOB_FILE_BYTES_MAX, JobFile, JobFileError, JobPlan, PathDigest, SourcePlan, load, parse,
};
use ampoule_spec::{Code, GitSigner, InputSource, JobId, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

fn table(which: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/jobfiles").join(which)
}

fn files(which: &str) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(table(which))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

/// The values of a header `# key: value`.
fn header(bytes: &[u8], key: &str) -> Vec<String> {
    let prefix = format!("# {key}: ");
    String::from_utf8_lossy(bytes)
        .lines()
        .filter_map(|l| l.strip_prefix(&prefix).map(str::to_owned))
        .collect()
}

fn given(bytes: &[u8]) -> BTreeMap<String, String> {
    let split = |p: String| p.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())).unwrap();
    header(bytes, "param").into_iter().map(split).collect()
}

fn sources(plan: &JobPlan) -> Vec<InputSource> {
    let zero = Sha256::new([0; 32]);
    let of = |source: &SourcePlan| match source {
        SourcePlan::Path { digest: Some(PathDigest::Tree(tree)), .. } => {
            InputSource::Directory { tree: *tree }
        }
        SourcePlan::Path { path, digest } if path.is_file() => {
            InputSource::File { sha256: digest.map_or(zero, PathDigest::sha256), executable: false }
        }
        SourcePlan::Path { .. } => InputSource::Directory { tree: zero },
        SourcePlan::Git(plan) => InputSource::Git {
            url: match &plan.place {
                GitPlace::Url(url) => Some(url.clone()),
                GitPlace::Path(_) => None,
            },
            commit: plan.commit,
            submodules: plan.submodules,
            tree: Some(zero),
            signer: plan.allowed_signers.is_some().then(|| GitSigner {
                principal: "me@x".to_owned(),
                key: "SHA256:k".to_owned(),
                allowed_signers: zero,
                tag: plan.tag.clone(),
            }),
        },
        pinned => pinned.pinned().unwrap(),
    };
    plan.inputs.iter().map(|input| of(&input.source)).collect()
}

/// `AMPOULE_BLESS=1` writes the expected specs anew.
#[test]
fn good_files_give_the_expected_specs() {
    let files = files("good");
    assert!(files.len() >= 6);
    for (name, bytes) in files {
        let job = parse(&bytes, "job.toml").unwrap_or_else(|e| panic!("{name}: {e}"));
        let plan = job.plan(&table("good"), &given(&bytes)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let sources = sources(&plan);
        let spec = plan.into_spec(JobId::parse(ID).unwrap(), 1, sources).unwrap();
        let json = serde_json::to_string_pretty(&spec).unwrap() + "\n";
        let golden = table("good").join(format!("{name}.json"));
        if std::env::var_os("AMPOULE_BLESS").is_some() {
            fs::write(&golden, &json).unwrap();
        }
        assert_eq!(json, fs::read_to_string(&golden).unwrap(), "{name}");
    }
}

fn run(bytes: &[u8]) -> Result<JobPlan, JobFileError> {
    let at_plan = header(bytes, "stage") == ["plan"];
    let job = match parse(bytes, "job.toml") {
        Err(e) if at_plan => panic!("refused before the plan: {e}"),
        other => other?,
    };
    assert!(at_plan, "parsed");
    job.plan(&table("bad"), &given(bytes))
}

#[test]
fn bad_files_are_refused_with_code_line_and_field() {
    let files = files("bad");
    assert!(files.len() >= 60);
    let mut wrong = Vec::new();
    for (name, bytes) in files {
        let expect = header(&bytes, "expect").pop().unwrap();
        let says = header(&bytes, "says").pop().unwrap();
        let Err(error) = std::panic::catch_unwind(|| run(&bytes)).unwrap_or_else(|_| panic!("{name}")) else {
            wrong.push(format!("{name}: accepted"));
            continue;
        };
        let line = error.line().map_or("-".to_owned(), |line| line.to_string());
        let field = if error.field.is_empty() { "-" } else { &error.field };
        let found = format!("{} {line} {field}", error.code);
        if found != expect || !error.to_string().contains(&says) {
            wrong.push(format!("{name}: expected {expect} … {says}\n    found {found}: {error}"));
        }
        assert!(!error.to_string().contains(['\u{1b}', '\r']), "{name}: control bytes in the message");
        assert!(error.to_string().lines().count() <= 2, "{name}: {error}");
        assert!(error.to_string().starts_with("job.toml:"), "{name}: {error}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn who_has_no_secrets_to_give_names_the_first_and_where_to_get_them() {
    let bytes = fs::read(table("good").join("secrets.toml")).unwrap();
    let plan = parse(&bytes, "job.toml").unwrap().plan(&table("good"), &BTreeMap::new()).unwrap();
    let error = plan.demands_no_secret().unwrap_err();
    assert_eq!((error.code, error.line(), error.field.as_str()), (Code::JobInvalid, Some(5), "secret[0]"));
    assert!(
        error.to_string().contains("npm-publish") && error.to_string().contains("ampoule submit"),
        "{error}"
    );
    let plain = fs::read(table("good").join("minimal.toml")).unwrap();
    let plan = parse(&plain, "job.toml").unwrap().plan(&table("good"), &BTreeMap::new()).unwrap();
    assert_eq!(plan.demands_no_secret(), Ok(()));
}

#[test]
fn display_names_file_line_column_and_nearest_key() {
    let text = "ampoule = 1\nname = \"j\"\nimage = \"host\"\n[[step]]\nrun = [\"true\"]\n  timout = \"1m\"\n";
    let error = parse(text.as_bytes(), "job.toml").unwrap_err();
    assert_eq!(error.to_string(), "job.toml:6:3: step[0].timout: unknown key; did you mean \"timeout\"?");
}

#[test]
fn ten_megabytes_are_refused_before_they_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("big.toml");
    // Sparse: reading it would give ten million NUL bytes and another error.
    fs::File::create(&path).unwrap().set_len(10 << 20).unwrap();
    let error = load(&path).unwrap_err();
    assert_eq!(error.code, Code::JobInvalid);
    assert!(error.to_string().contains("10485760") && error.to_string().contains("1048576"), "{error}");
    let at_cap = "#".repeat(usize::try_from(JOB_FILE_BYTES_MAX).unwrap());
    assert!(!parse(at_cap.as_bytes(), "f").unwrap_err().to_string().contains("at most"));
    assert!(parse(format!("{at_cap}#").as_bytes(), "f").unwrap_err().to_string().contains("at most 1048576"));
}

#[test]
fn load_missing_file_or_directory_is_unusable() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(load(&dir.path().join("none.toml")).unwrap_err().code, Code::FileUnusable);
    assert_eq!(load(dir.path()).unwrap_err().code, Code::FileUnusable);
}

#[test]
fn position_of_a_written_and_an_unwritten_field() {
    let job: JobFile =
        parse(b"ampoule = 1\nname = \"j\"\nimage = \"host\"\n[[step]]\nrun = [\"true\"]\n", "f").unwrap();
    assert_eq!(job.position("step[0].run").unwrap().line, 5);
    assert_eq!(job.position("step[0].cwd").unwrap().line, 4);
    assert!(job.position("limits").is_none());
    assert_eq!((job.profile, job.source_date_epoch, job.steps[0].timeout_ms), (None, None, None));
}

#[test]
fn into_spec_with_other_sources_is_a_defect() {
    let job = parse(&fs::read(table("good").join("everything.toml")).unwrap(), "f").unwrap();
    let params = BTreeMap::from([("version".to_owned(), "1".to_owned())]);
    let plan = job.plan(&table("good"), &params).unwrap();
    let id = || JobId::parse(ID).unwrap();
    let error = plan.clone().into_spec(id(), 1, Vec::new()).unwrap_err();
    assert_eq!(error.code, Code::Internal);
    let mut other = sources(&plan);
    other[2] = InputSource::Tar { sha256: Sha256::new([0; 32]) };
    let error = plan.clone().into_spec(id(), 1, other).unwrap_err();
    assert_eq!((error.code, error.field.as_str()), (Code::Internal, "input[2]"));
    let error = plan.clone().into_spec(id(), 0, sources(&plan)).unwrap_err();
    assert_eq!((error.code, error.field.as_str()), (Code::JobInvalid, "attempt"));
}

#[test]
fn resolve_image_replaces_the_manifest_and_keeps_the_pin() {
    let job = parse(&fs::read(table("good").join("zlib.toml")).unwrap(), "f").unwrap();
    let mut plan = job.plan(&table("good"), &BTreeMap::new()).unwrap();
    plan.resolve_image(Sha256::new([7; 32]));
    let sources = sources(&plan);
    let spec = plan.into_spec(JobId::parse(ID).unwrap(), 1, sources).unwrap();
    let ampoule_spec::Image::Oci { manifest, reference } = spec.image else { panic!("{:?}", spec.image) };
    assert_eq!(manifest, Sha256::new([7; 32]));
    assert_eq!(reference, format!("oci@sha256:{}", "0123456789abcdef".repeat(4)));
}

#[test]
fn spec_larger_than_the_launcher_accepts_is_refused() {
    // A backslash takes one byte here and two in the JSON.
    let text = format!(
        "ampoule = 1\nname = \"j\"\nimage = \"host\"\n[[step]]\nrun = [\"true\"{}]\n",
        format!(", '{}'", "\\".repeat(100_000)).repeat(9)
    );
    let error = parse(text.as_bytes(), "f").unwrap_err();
    assert!(error.to_string().contains("at most 1048576 are accepted"), "{error}");
}

#[test]
fn deep_nesting_is_refused_and_does_not_overflow_the_stack() {
    let deep = [
        format!("{}x = 1", "a.".repeat(500_000)),
        format!("x = {}", "[".repeat(1_000_000)),
        format!("x = {}", "{a=".repeat(300_000)),
        format!("[{}a]", "a.".repeat(500_000)),
        format!("[{}a]\n{}a = 1", "a.".repeat(70), "a.".repeat(70)),
        "[[a]]\n".repeat(150_000),
        "[a]\n".repeat(250_000),
        (0..90_000).map(|n| format!("k{n} = 1\n")).collect(),
    ];
    for text in deep {
        assert_eq!(parse(text.as_bytes(), "f").unwrap_err().code, Code::JobInvalid);
    }
}

/// xorshift64*: the same mutations on every machine.
struct Prng(u64);

impl Prng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(n.max(1)).unwrap()).unwrap()
    }
}

fn mutate(seeds: &[Vec<u8>], random: &mut Prng) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        match random.below(6) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => bytes[at] = b"\"'[]{}=.,#\n\\$0a\0\xff"[random.below(17)],
            2 => bytes.truncate(at),
            3 => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len());
                let to = from + random.below(other.len() - from);
                bytes.splice(at..at, other[from..to].iter().copied());
            }
            kind => {
                let mut lines: Vec<Vec<u8>> = bytes.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
                let line = random.below(lines.len());
                if kind == 4 {
                    lines.remove(line);
                } else {
                    let copy = lines[line].clone();
                    lines.insert(random.below(lines.len()), copy);
                }
                bytes = lines.join(&b'\n');
            }
        }
    }
    bytes
}

#[test]
fn ten_thousand_mutated_files_parse_or_give_a_named_error() {
    let [good_seeds, bad_seeds] =
        ["good", "bad"].map(|which| files(which).into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>());
    let base = table("good");
    let mut random = Prng(0x9e37_79b9_7f4a_7c15);
    let (mut good, mut codes) = (0, BTreeMap::<Code, u32>::new());
    for round in 0..10_000 {
        let bytes = mutate(if round % 3 == 0 { &bad_seeds } else { &good_seeds }, &mut random);
        let planned = parse(&bytes, "f").and_then(|job| job.plan(&base, &given(&bytes)));
        match planned {
            Ok(plan) => {
                good += 1;
                let sources = sources(&plan);
                plan.into_spec(JobId::parse(ID).unwrap(), 1, sources).unwrap();
            }
            Err(error) => {
                *codes.entry(error.code).or_default() += 1;
                let lines = u32::try_from(bytes.split(|b| *b == b'\n').count()).unwrap();
                assert!(error.line().is_none_or(|line| line >= 1 && line <= lines), "{error}");
                assert!(!error.to_string().contains('\n') && !error.reason.is_empty(), "{error:?}");
            }
        }
    }
    let known = [Code::JobInvalid, Code::InputUnpinned, Code::InputMissing, Code::InputRefused];
    assert!(codes.keys().all(|code| known.contains(code)), "{codes:?}");
    // The mutations reach behind the syntax: some files stay good, and the plan is reached as well.
    assert!(good > 100 && codes.contains_key(&Code::InputMissing), "{good} {codes:?}");
}

#[test]
fn signer_that_the_job_did_not_ask_for_or_lacks_is_a_defect() {
    let job = parse(&fs::read(table("good").join("git.toml")).unwrap(), "f").unwrap();
    let plan = job.plan(&table("good"), &BTreeMap::new()).unwrap();
    assert!(plan.epoch_of_commit);
    let good = sources(&plan);
    for (at, change) in [(0, true), (1, false)] {
        let mut other = good.clone();
        let InputSource::Git { signer, .. } = &mut other[at] else { panic!("a git input") };
        *signer = if change { signer_of(&good[1]) } else { None };
        let error = plan.clone().into_spec(JobId::parse(ID).unwrap(), 1, other).unwrap_err();
        assert_eq!((error.code, error.field), (Code::Internal, format!("input[{at}]")));
    }
    let mut plan = plan;
    plan.resolve_epoch(1_600_000_000);
    assert_eq!(plan.into_spec(JobId::parse(ID).unwrap(), 1, good).unwrap().source_date_epoch, 1_600_000_000);
}

fn signer_of(source: &InputSource) -> Option<GitSigner> {
    match source {
        InputSource::Git { signer, .. } => signer.clone(),
        _ => None,
    }
}
