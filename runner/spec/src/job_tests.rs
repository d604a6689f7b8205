use super::*;

fn job() -> JobSpec {
    serde_json::from_str(
        r#"{"ampoule":1,"id":"01890a5d-ac96-774b-bcce-b302099a8057","attempt":1,"name":"j","profile":"hermetic",
        "image":{"kind":"host"},"source_date_epoch":1700000000,
        "inputs":[{"name":"src","mount":"/build/src","source":{"kind":"tar","sha256":
        "0000000000000000000000000000000000000000000000000000000000000000"}}],
        "steps":[{"name":"s","run":["true"],"cwd":"/build","timeout_ms":1000}],
        "outputs":[{"name":"o","path":"/build/o"}]}"#,
    )
    .unwrap()
}

fn refused(change: impl FnOnce(&mut JobSpec)) -> String {
    let mut job = job();
    change(&mut job);
    job.validate().unwrap_err().field
}

fn path(text: &str) -> SandboxPath {
    SandboxPath::parse(text).unwrap()
}

#[test]
fn validate_good_job_passes() {
    assert_eq!(job().validate(), Ok(()));
}

#[test]
fn validate_names_the_field_of_each_broken_rule() {
    assert_eq!(refused(|j| j.ampoule = 2), "ampoule");
    assert_eq!(refused(|j| j.attempt = 0), "attempt");
    assert_eq!(refused(|j| j.source_date_epoch = u64::MAX), "source_date_epoch");
    assert_eq!(refused(|j| j.steps.clear()), "step");
    assert_eq!(refused(|j| j.steps[0].run.clear()), "step[0].run");
    assert_eq!(refused(|j| j.steps[0].run.push("a\0b".into())), "step[0].run");
    assert_eq!(refused(|j| j.steps[0].timeout_ms = 0), "step[0].timeout");
    assert_eq!(refused(|j| j.steps.push(j.steps[0].clone())), "step[1].name");
    assert_eq!(refused(|j| j.outputs.push(j.outputs[0].clone())), "output[1].name");
    assert_eq!(refused(|j| j.outputs[0].path = path("/")), "output[0].path");
}

#[test]
fn validate_refuses_mounts_over_our_own_places() {
    for place in ["/", "/proc", "/dev/x", "/etc", "/usr/lib/x", "/tmp", "/run/secrets", "/lib64"] {
        assert_eq!(refused(|j| j.inputs[0].mount = path(place)), "input[0].mount", "{place}");
    }
}

#[test]
fn validate_refuses_overlapping_mounts() {
    let second = |j: &mut JobSpec, at: &str| {
        let mut input = j.inputs[0].clone();
        input.name = Name::parse("second").unwrap();
        input.mount = path(at);
        j.inputs.push(input);
    };
    assert_eq!(refused(|j| second(j, "/build/src/deep")), "input[1].mount");
    assert_eq!(refused(|j| second(j, "/build")), "input[1].mount");
    let mut good = job();
    second(&mut good, "/build/src2");
    assert_eq!(good.validate(), Ok(()));
}

#[test]
fn unknown_field_is_refused() {
    let mut json = serde_json::to_value(job()).unwrap();
    json["privileged"] = true.into();
    assert!(serde_json::from_value::<JobSpec>(json).is_err());
}

#[test]
fn job_that_leaves_something_to_be_found_is_valid_and_not_resolved() {
    let git = |text: &str| {
        let mut job = job();
        job.source_date_epoch = 0;
        job.inputs[0].source = serde_json::from_str(text).unwrap();
        job
    };
    let named = format!(r#""kind":"git","url":"https://h/r","commit":"{}""#, "1".repeat(40));
    let tree = format!(r#""tree":"{}""#, "2".repeat(64));
    let signer = |principal: &str, key: &str| {
        format!(
            r#""signer":{{"principal":"{principal}","key":"{key}","allowed_signers":"{}"}}"#,
            "3".repeat(64)
        )
    };
    let resolved = git(&format!("{{{named},{tree},{}}}", signer("me@x", "SHA256:k")));
    assert_eq!((resolved.validate(), resolved.check_resolved()), (Ok(()), Ok(())));
    let field = |job: &JobSpec| {
        job.validate().unwrap();
        job.check_resolved().unwrap_err().field
    };
    for open in [
        format!("{{{named}}}"),
        format!("{{{named},{tree},{}}}", signer("", "")),
        format!("{{{named},{tree},{}}}", signer("me@x", "")),
    ] {
        assert_eq!(field(&git(&open)), "input[0].git", "{open}");
    }
    let mut timed = resolved;
    timed.epoch_of_commit = true;
    assert_eq!(field(&timed), "source_date_epoch");
    timed.source_date_epoch = 1;
    assert_eq!(timed.validate().unwrap_err().field, "source_date_epoch");
    assert_eq!(refused(|j| (j.source_date_epoch, j.epoch_of_commit) = (0, true)), "source_date_epoch");
}
