//! A stranger's job file: an error that says where and what, or a job that the runner takes.

use ampoule_agent::git::GitPlace;
use ampoule_agent::jobfile::{JobPlan, PathDigest, SourcePlan, parse};
use ampoule_spec::{Code, GitSigner, InputSource, JobId, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

/// The values that the first lines of a test's file give its parameters: `# param: name=value`.
fn given(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("# param: ")?.split_once('='));
    lines.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// What the inputs are when they have been taken in; none for what is not known without it, an upstream's provenance.
fn sources(plan: &JobPlan) -> Option<Vec<InputSource>> {
    plan.inputs.iter().map(|input| source(&input.source)).collect()
}

fn source(source: &SourcePlan) -> Option<InputSource> {
    let zero = Sha256::new([0; 32]);
    match source {
        SourcePlan::Path { digest: Some(PathDigest::Tree(tree)), .. } => {
            Some(InputSource::Directory { tree: *tree })
        }
        SourcePlan::Path { path, digest } if path.is_file() => {
            Some(InputSource::File { sha256: digest.map_or(zero, PathDigest::sha256), executable: false })
        }
        SourcePlan::Path { .. } => Some(InputSource::Directory { tree: zero }),
        SourcePlan::Git(plan) => Some(InputSource::Git {
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
        }),
        SourcePlan::Attestation(_) => None,
        pinned => Some(pinned.pinned().expect("what is pinned has a digest")),
    }
}

/// Parses a job file and goes on as `ampoule run` would.
pub fn run(data: &[u8]) {
    is_planned(data);
}

/// The same, and whether it is a job.
pub fn is_planned(data: &[u8]) -> bool {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/tests/jobfiles/good");
    let text = String::from_utf8_lossy(data);
    let planned = parse(data, "f").and_then(|job| job.plan(&base, &given(&text)));
    let good = planned.is_ok();
    match planned {
        Ok(plan) => {
            let Some(sources) = sources(&plan) else { return true };
            // What parses would pass the runner's own check; `into_spec` makes it, and it is made again here.
            let spec = plan.into_spec(JobId::parse(ID).unwrap(), 1, sources).expect("a plan is a spec");
            spec.validate().expect("a spec of a plan is valid");
            let json = serde_json::to_vec(&spec).unwrap();
            assert_eq!(serde_json::from_slice::<ampoule_spec::JobSpec>(&json).unwrap(), spec);
        }
        Err(error) => {
            let lines = u32::try_from(data.split(|b| *b == b'\n').count()).unwrap();
            assert!(error.line().is_none_or(|line| line >= 1 && line <= lines), "{error}");
            let known = [Code::JobInvalid, Code::InputUnpinned, Code::InputMissing, Code::InputRefused];
            assert!(known.contains(&error.code), "{error:?}");
            let text = error.to_string();
            assert!(!text.contains('\n') && !error.reason.is_empty(), "{error:?}");
            assert!(!text.chars().any(char::is_control), "an error that drives a terminal: {text:?}");
        }
    }
    good
}
