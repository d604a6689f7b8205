//! `ampoule run [--image I] [--output P]… -- ARGV…`: a job without a file.

use super::error::{JobFileError, shown};
use super::fields::Fields;
use super::image::ImageRef;
use super::model::name_of;
use super::plan::{ImagePlan, InputPlan, JobPlan, SourcePlan};
use super::{PROFILE_DEFAULT, SOURCE_DATE_EPOCH_DEFAULT, STEP_TIMEOUT_MS_DEFAULT};
use ampoule_spec::{Code, LimitsRequest, LogOverflow, Name, Output, SandboxPath, Step, StepUser};
use std::collections::BTreeMap;
use std::path::Path;

/// Where the current directory appears in the sandbox.
const SRC: &str = "/build/src";
/// What messages call the command line.
const FILE: &str = "command line";

/// What the command line says.
#[derive(Debug, Clone, Copy)]
pub struct QuickJob<'a> {
    /// The program and its arguments.
    pub argv: &'a [String],
    /// Paths of outputs, relative to the current directory.
    pub outputs: &'a [String],
    /// The image, spelt as in a job file; none is `host`.
    pub image: Option<&'a str>,
    /// The profile; none is `hermetic`.
    pub profile: Option<&'a str>,
    /// The current directory, absolute: it becomes the writable input `src` at `/build/src`.
    pub dir: &'a Path,
}

/// The plan of a job without a file: one step `run` in `/build/src`, with `source_date_epoch` at 1980-01-01
/// because there is no file that could name another time.
///
/// # Errors
/// `usage` with the argument that is wrong; `input.unpinned` for an image without a digest; else as
/// [`JobFile::plan`](super::JobFile::plan).
pub fn quick_job(ask: &QuickJob<'_>) -> Result<JobPlan, JobFileError> {
    let usage = |field: &str, reason: String, remedy: &str| {
        JobFileError::whole(Code::Usage, FILE, field, reason, remedy)
    };
    let name = |text: &str| Name::parse(text).map_err(|e| usage("", e.to_string(), ""));
    let path = |text: &str| SandboxPath::parse(text).map_err(|e| usage("--output", e.to_string(), ""));

    let image = ImageRef::parse(ask.image.unwrap_or("host")).map_err(|e| {
        let code = if e.unpinned { Code::InputUnpinned } else { Code::Usage };
        JobFileError::whole(code, FILE, "--image", e.reason, e.remedy)
    })?;
    let profile = Name::parse(ask.profile.unwrap_or(PROFILE_DEFAULT))
        .map_err(|e| usage("--profile", e.to_string(), ""))?;
    if ask.argv.first().is_none_or(String::is_empty) {
        return Err(usage("", "no program is given".to_owned(), "write it behind --, as in -- make all"));
    }
    let src = path(SRC)?;
    let mut outputs = Vec::new();
    for text in ask.outputs {
        let path = path(&format!("{SRC}/{}", relative(text).map_err(|e| usage("--output", e, ""))?))?;
        let name = name_of(&path, None).ok_or_else(|| {
            let reason = format!("{} does not end in a name that an output can have", shown(text));
            usage("--output", reason, "use A-Z, a-z, 0-9, '.', '_', '+' and '-'")
        })?;
        if outputs.iter().any(|other: &Output| other.name.as_str().eq_ignore_ascii_case(name.as_str())) {
            let reason = format!("two outputs are called {name}");
            return Err(usage("--output", reason, "write a job file and name them"));
        }
        outputs.push(Output {
            name,
            path,
            when: Default::default(),
            kind: Default::default(),
            optional: false,
            form: None,
        });
    }
    let plan = JobPlan {
        name: name(&sanitised(ask.dir))?,
        profile,
        image: ImagePlan::of(&image, ask.dir),
        user: StepUser::default(),
        source_date_epoch: SOURCE_DATE_EPOCH_DEFAULT,
        epoch_of_commit: false,
        env: BTreeMap::new(),
        params: BTreeMap::new(),
        inputs: vec![InputPlan {
            name: name("src")?,
            mount: src.clone(),
            writable: true,
            source: SourcePlan::Path { path: ask.dir.to_owned(), digest: None },
            exclude: Vec::new(),
        }],
        secrets: Vec::new(),
        steps: vec![Step {
            name: name("run")?,
            run: ask.argv.to_vec(),
            cwd: src,
            env: BTreeMap::new(),
            timeout_ms: STEP_TIMEOUT_MS_DEFAULT,
            secrets: Vec::new(),
        }],
        outputs,
        limits: LimitsRequest::default(),
        log_overflow: LogOverflow::default(),
        fields: Fields::without_places(FILE),
    };
    plan.check()?;
    Ok(plan)
}

/// A relative path without `.` components and trailing slashes.
fn relative(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        return Err(format!("{} is absolute; give a path below the current directory", shown(text)));
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.is_empty() || parts.contains(&"..") {
        return Err(format!("{} is not below the current directory", shown(text)));
    }
    Ok(parts.join("/"))
}

/// The directory's name as a job's name.
fn sanitised(dir: &Path) -> String {
    let name = dir.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let mut text = String::new();
    for c in name.chars() {
        match c {
            'a'..='z' | '0'..='9' => text.push(c),
            _ if text.is_empty() || text.ends_with('-') => {}
            _ => text.push('-'),
        }
        if text.len() == 64 {
            break;
        }
    }
    match text.trim_end_matches('-') {
        "" => "job".to_owned(),
        text => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sanitised_gives_a_name_for_every_directory() {
        for (dir, name) in [
            ("/home/u/zlib-1.3.1", "zlib-1-3-1"),
            ("/", "job"),
            ("/x/Ünï", "n"),
            ("/x/__A b__", "a-b"),
            ("/x/日本", "job"),
        ] {
            assert_eq!(sanitised(Path::new(dir)), name);
        }
        let long = format!("/x/{}", "a.".repeat(100));
        assert!(Name::parse(&sanitised(Path::new(&long))).is_ok());
    }

    #[test]
    fn relative_stays_below() {
        assert_eq!(relative("./a//b/").unwrap(), "a/b");
        for bad in ["", ".", "..", "a/../b", "/a", "a/.."] {
            assert!(relative(bad).is_err(), "{bad}");
        }
    }
}
