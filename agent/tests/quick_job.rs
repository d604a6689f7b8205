//! `ampoule run -- ARGV…` without a job file.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use ampoule_agent::jobfile::{ImagePlan, QuickJob, SourcePlan, quick_job};
use ampoule_spec::{Code, InputSource, JobId, Sha256};

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&t| t.to_owned()).collect()
}

fn refused(argv: &[&str], outputs: &[&str], image: Option<&str>) -> (Code, String) {
    let dir = tempfile::tempdir().unwrap();
    let (argv, outputs) = (texts(argv), texts(outputs));
    let ask = QuickJob { argv: &argv, outputs: &outputs, image, profile: None, dir: dir.path() };
    let error = quick_job(&ask).unwrap_err();
    assert!(error.to_string().starts_with("command line: "), "{error}");
    (error.code, error.field)
}

#[test]
fn quick_job_is_one_step_over_the_current_directory() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("My Project_2");
    std::fs::create_dir(&dir).unwrap();
    let (argv, outputs) = (texts(&["make", "all"]), texts(&["./out/app", "dist/"]));
    let ask = QuickJob { argv: &argv, outputs: &outputs, image: None, profile: Some("dev"), dir: &dir };
    let plan = quick_job(&ask).unwrap();
    assert_eq!(plan.image, ImagePlan::Host);
    assert_eq!(plan.inputs[0].source, SourcePlan::Path { path: dir.clone(), digest: None });
    let sources = vec![InputSource::Directory { tree: Sha256::new([1; 32]) }];
    let id = JobId::parse("01890a5d-ac96-774b-bcce-b302099a8057").unwrap();
    let spec = plan.into_spec(id, 1, sources).unwrap();
    assert_eq!((spec.name.as_str(), spec.profile.as_str()), ("my-project-2", "dev"));
    assert_eq!(spec.source_date_epoch, 315_532_800);
    assert_eq!((spec.user, spec.log_overflow), Default::default());
    assert_eq!((spec.inputs[0].mount.as_str(), spec.inputs[0].writable), ("/build/src", true));
    assert_eq!((spec.steps[0].cwd.as_str(), &spec.steps[0].run), ("/build/src", &argv));
    let outputs: Vec<_> = spec.outputs.iter().map(|o| (o.name.as_str(), o.path.as_str())).collect();
    assert_eq!(outputs, [("app", "/build/src/out/app"), ("dist", "/build/src/dist")]);
}

#[test]
fn quick_job_wrong_arguments_are_usage_errors() {
    assert_eq!(refused(&[], &[], None).0, Code::Usage);
    assert_eq!(refused(&[""], &[], None).0, Code::Usage);
    for bad in ["/etc/passwd", "..", "a/../../b", ".", "", "a\nb", ".hidden", "run", "x.intoto.jsonl"] {
        assert_eq!(refused(&["true"], &[bad], None), (Code::Usage, "--output".into()), "{bad:?}");
    }
    assert_eq!(refused(&["true"], &["a/x", "b/X"], None), (Code::Usage, "--output".into()));
    assert_eq!(refused(&["true"], &[], Some("debian")), (Code::Usage, "--image".into()));
    assert_eq!(refused(&["true"], &[], Some("oci:./base")), (Code::InputUnpinned, "--image".into()));
    let missing = format!("tar:none.tar@sha256:{}", "0".repeat(64));
    assert_eq!(refused(&["true"], &[], Some(&missing)), (Code::InputMissing, "image".into()));
    assert_eq!(refused(&["a\0b"], &[], None), (Code::JobInvalid, "step[0].run".into()));
}
