//! Release: outputs and evidence appear together, by one rename, or not at all.

use super::evidence::Signing;
use super::place::Place;
use super::record::released_outputs;
use super::watch::{Watch, Work};
use super::{LocalError, ReleasedOutput};
use crate::files::{code_of, read_file};
use ampoule_evidence::{
    AgentClaims, CleanRun, JobRecord, ProvenanceRefused, Sealed, Unstarted, provenance, seal,
};
use ampoule_journal::{Next, Reader};
use ampoule_spec::wire::Content;
use ampoule_spec::{
    Code, FRAME_LOG, Failure, LogChunk, Outcome, OutputForm, OutputReport, REPORT_BYTES_MAX, SPEC_BYTES_MAX,
};
use ampoule_store::Limits;
use ampoule_store::pack::{PackError, Packed, pack_output};
use ampoule_store::unpack::unpack;
use aws_lc_rs::digest::{Context, SHA256};
use rustix::fs::{AtFlags, StatxFlags};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A job's record with the bytes that were read.
#[derive(Debug)]
pub(crate) struct Evidence {
    pub(crate) record: JobRecord,
    /// What only we know, for the run attestation.
    pub(crate) claims: AgentClaims,
    /// Why there is to be no provenance, whatever the report says.
    withheld: Option<String>,
    spec: Vec<u8>,
    report: Vec<u8>,
}

/// What was released.
#[derive(Debug)]
pub(crate) struct Released {
    pub(crate) provenance: bool,
    pub(crate) builder: String,
    pub(crate) outputs: Vec<ReleasedOutput>,
    /// Why a job that succeeded has no provenance although it has artifacts.
    pub(crate) refused: Option<Failure>,
}

/// `result.json`.
#[derive(Debug, Serialize)]
struct ResultFile<'a> {
    ampoule: u32,
    job: &'a str,
    outcome: &'a str,
    code: Option<&'a str>,
    fault: Option<&'a str>,
    message: Option<&'a str>,
    retryable: bool,
    step: Option<&'a str>,
    exit: u8,
    attestation: &'a str,
    builder: &'a str,
}

impl Evidence {
    /// Reads a job's record from its directory.
    pub(crate) fn read(job_dir: &Path) -> Result<Self, LocalError> {
        let spec = read_limited(&job_dir.join("spec.json"), SPEC_BYTES_MAX)?;
        let report = read_limited(&job_dir.join("report.json"), REPORT_BYTES_MAX)?;
        let record = JobRecord::read(&spec, &report).map_err(|e| LocalError::Evidence {
            code: Code::ProvenanceRefused,
            reason: format!("the job's record cannot be read: {e}"),
        })?;
        Ok(Self { record, claims: AgentClaims::new(), withheld: None, spec, report })
    }

    /// Of a job that never had a sandbox.
    pub(crate) fn unstarted(spec: Vec<u8>, end: &Unstarted) -> Result<Self, LocalError> {
        let (record, report) = JobRecord::unstarted(&spec, end).map_err(|e| LocalError::Evidence {
            code: Code::ProvenanceRefused,
            reason: format!("the job's record cannot be made: {e}"),
        })?;
        Ok(Self { record, claims: AgentClaims::new(), withheld: None, spec, report })
    }

    /// The same with what only the run that made it knows.
    pub(crate) fn with_claims(self, claims: AgentClaims) -> Self {
        Self { claims, ..self }
    }

    /// The same without provenance, if there is a reason.
    pub(crate) fn withholding(self, withheld: Option<String>) -> Self {
        Self { withheld, ..self }
    }

    /// Writes a signed record of a job whose outputs are not released: what a crash kept its own run from. A
    /// record that is there already is the same one, and stays.
    pub(super) fn write_record(&self, job_dir: &Path, dir: &Path, run: &Sealed) -> Result<(), LocalError> {
        let failed = |e: io::Error| LocalError::file("the record", dir, &e);
        if dir.join("run.intoto.jsonl").exists() {
            return Ok(());
        }
        let id = self.record.spec().id.as_str();
        let parent = Place::open(&parent(dir)).map_err(failed)?;
        let aside = aside(id);
        let made = parent.make(&aside).map_err(failed)?;
        let written = write_evidence(self, &made, None, run)
            .and_then(|()| write_logs(self, job_dir, &made.make("logs")?))
            .and_then(|()| made.sync())
            .and_then(|()| parent.publish(&aside, &made, id));
        written.map_err(|error| {
            parent.discard(&aside, &made);
            failed(error)
        })
    }
}

pub(super) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, LocalError> {
    read_file(path, limit).map_err(|e| LocalError::file("the job's record", path, &e))
}

/// Refuses an output directory that cannot be filled when the job has run: one that holds something, because nothing
/// of a caller's is ever replaced, or one that no directory of ours can take the name of.
pub(crate) fn check_out(out: &Path) -> Result<(), LocalError> {
    let told =
        |code: Code, reason: String| LocalError::File { code, what: "--out", path: out.to_owned(), reason };
    let refused = |reason: String| told(Code::FileUnusable, reason);
    name_of(out).map_err(|e| refused(e.to_string()))?;
    let parent = parent(out);
    let unmade = |e: io::Error| told(code_of(&e), format!("{}: {e}", parent.display()));
    let place = Place::open(&parent).map_err(unmade)?;
    match fs::symlink_metadata(out) {
        Ok(meta) if !meta.is_dir() => return Err(refused("it is no directory; name a new one".to_owned())),
        Ok(_) => {
            let mut entries = fs::read_dir(out).map_err(|e| refused(e.to_string()))?;
            if entries.next().is_some() {
                return Err(refused("it is not empty; name a new directory".to_owned()));
            }
            if is_mount_point(out, &parent) {
                return Err(refused("it is a mount point; name a new directory in it".to_owned()));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(refused(error.to_string())),
    }
    let aside = aside(&uuid::Uuid::now_v7().to_string());
    let made = place.make(&aside).map_err(unmade)?;
    place.discard(&aside, &made);
    Ok(())
}

/// Whether something is mounted on a directory; false where the kernel does not tell (before Linux 5.8).
fn is_mount_point(dir: &Path, parent: &Path) -> bool {
    let mount = |path: &Path| {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let stat = rustix::fs::statx(rustix::fs::CWD, path, flags, StatxFlags::MNT_ID).ok()?;
        StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID).then_some(stat.stx_mnt_id)
    };
    mount(dir) != mount(parent)
}

pub(crate) fn name_of(out: &Path) -> io::Result<&str> {
    let name = out.file_name().and_then(|name| name.to_str());
    name.ok_or_else(|| io::Error::other("it has no name of its own; name a new directory"))
}

pub(crate) fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// A name that nobody else uses: job ids are unique.
pub(crate) fn aside(id: &str) -> String {
    format!(".ampoule-{id}.tmp")
}

/// Where a job's record and outputs come from.
pub(super) struct From<'a> {
    pub(super) job_dir: &'a Path,
    /// Opens what the store has.
    pub(super) open: &'a dyn Fn(&Content) -> io::Result<OwnedFd>,
}

/// What an output is in the store.
pub(super) fn content_of(output: &OutputReport, epoch: u64) -> Content {
    match output.form {
        OutputForm::Tree => Content::Directory { tree: Some(output.sha256), epoch },
        OutputForm::File | OutputForm::TarZst => {
            Content::File { sha256: Some(output.sha256), executable: output.executable, epoch }
        }
    }
}

/// Signs and releases a job.
pub(super) fn release(
    evidence: &Evidence,
    from: &From<'_>,
    out: &Path,
    signing: &Signing,
    watch: &Watch,
) -> Result<Released, LocalError> {
    let report = evidence.record.report();
    let (sealed, refused) = provenance_of(evidence, signing)?;
    let run = signing.attest_run(evidence, sealed.as_ref().map(|s| s.statement_sha256))?;
    let failed = |e: io::Error| LocalError::file("the output directory", out, &e);
    let mut released = Released {
        provenance: sealed.is_some(),
        builder: builder_of(evidence, signing),
        outputs: Vec::new(),
        refused,
    };
    let name = name_of(out).map_err(failed)?;
    let parent = Place::open(&parent(out)).map_err(failed)?;
    let aside = aside(report.job.as_str());
    let made = parent.make(&aside).map_err(failed)?;
    let sealed = sealed.as_ref();
    let written = fill(evidence, (from, &made), sealed, &run, &mut released, watch)
        .and_then(|()| parent.publish(&aside, &made, name));
    match written {
        Ok(()) => Ok(released),
        Err(error) => {
            parent.discard(&aside, &made);
            Err(failed(error))
        }
    }
}

/// Fills a directory that nobody looks at yet.
fn fill(
    evidence: &Evidence,
    (from, made): (&From<'_>, &Place),
    sealed: Option<&Sealed>,
    run: &Sealed,
    released: &mut Released,
    watch: &Watch,
) -> io::Result<()> {
    let report = evidence.record.report();
    watch.about("the outputs");
    let (mut meter, mut bytes) = (watch.begin(Work::Release), 0_u64);
    let total = report.outputs.iter().map(|output| output.bytes).sum();
    let mut passed = |count: u64| {
        bytes = bytes.saturating_add(count);
        meter.at(bytes, Some(total));
    };
    released.outputs = released_outputs(report, released.refused.as_ref());
    let outputs = made.make("outputs")?;
    for output in report.outputs.iter().filter(|_| !released.outputs.is_empty()) {
        let epoch = evidence.record.spec().source_date_epoch;
        let source = File::from((from.open)(&content_of(output, epoch))?);
        copy_output(output, source, &outputs, epoch, &mut passed)?;
    }
    let files = made.make("evidence")?;
    let logs = files.make("logs")?;
    write_evidence(evidence, &files, sealed, run)?;
    write_logs(evidence, from.job_dir, &logs)?;
    write_result(evidence, released, &files)?;
    [&outputs, &logs, &files, made].into_iter().try_for_each(Place::sync)
}

pub(super) fn builder_of(evidence: &Evidence, signing: &Signing) -> String {
    let mode = signing.issuer.mode(evidence.record.spec()).unwrap_or(ampoule_evidence::BuilderMode::Dev);
    signing.issuer.authority.builder_id(mode)
}

/// The signed provenance; none for a job that did not succeed or that has no artifact. A clean success whose
/// provenance is refused for another reason is a failure of ours: nothing of it is released.
pub(super) fn provenance_of(
    evidence: &Evidence,
    signing: &Signing,
) -> Result<(Option<Sealed>, Option<Failure>), LocalError> {
    let record = &evidence.record;
    if record.report().outcome != Outcome::Succeeded {
        return Ok((None, None));
    }
    let refuse = |message: String| {
        let failure = Failure::new(Code::ProvenanceRefused, message);
        Ok((None, Some(failure)))
    };
    if let Some(why) = &evidence.withheld {
        return refuse(why.clone());
    }
    let clean = match CleanRun::check(record.spec(), record.spec_sha256(), record.report()) {
        Ok(clean) => clean,
        Err(unclean) => return refuse(unclean.to_string()),
    };
    match provenance(&clean, &signing.issuer, record.report_sha256()) {
        Ok(statement) => match seal(&statement, signing.signer()) {
            Ok(sealed) => Ok((Some(sealed), None)),
            Err(error) => refuse(error.to_string()),
        },
        Err(ProvenanceRefused::NoSubject) => Ok((None, None)),
        Err(error) => refuse(error.to_string()),
    }
}

/// Copies an output and hashes what it writes: the bytes that leave are the bytes that were hashed.
fn copy_output(
    output: &OutputReport,
    mut source: File,
    into: &Place,
    epoch: u64,
    passed: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let name = output.name.as_str();
    let other = || Err(io::Error::other(format!("output {name} is no longer what was hashed")));
    if output.form == OutputForm::Tree {
        let dir = into.make(name)?.into_descriptor();
        let unpacked = copy_tree(&source, dir, epoch, output.entries.unwrap_or(0), passed)
            .map_err(|error| io::Error::new(error.kind(), format!("output {name}: {error}")))?;
        let same = (unpacked.tree, unpacked.bytes, Some(unpacked.entries))
            == (output.sha256, output.bytes, output.entries);
        return if same { Ok(()) } else { other() };
    }
    let mut copy = into.create(name, if output.executable { 0o755 } else { 0o644 })?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = source.read(&mut buffer)?;
        let part = buffer.get(..count).unwrap_or_default();
        if part.is_empty() {
            break;
        }
        context.update(part);
        copy.write_all(part)?;
        passed(part.len() as u64);
    }
    copy.sync_all()?;
    if context.finish().as_ref() == output.sha256.as_bytes() { Ok(()) } else { other() }
}

/// Copies a tree through an archive between two threads: the reader's rules and the writer's are those of every tree.
fn copy_tree(
    from: &File,
    into: OwnedFd,
    epoch: u64,
    entries: u64,
    passed: &mut dyn FnMut(u64),
) -> io::Result<Packed> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let limits = Limits { bytes_max: u64::MAX, ..Limits::default() };
    std::thread::scope(|scope| {
        let packing = scope.spawn(|| {
            let mut out = BufWriter::with_capacity(256 << 10, File::from(write));
            pack_output(from.as_fd(), &mut out, epoch, &limits)
        });
        let unpacked = unpack(File::from(read), into, epoch, entries, passed);
        match (packing.join(), unpacked) {
            // One that was not read to its end cannot be written either: why not is the reason.
            (Ok(Ok(_) | Err(PackError::Write(_))), Err(error)) => Err(io::Error::new(error.kind(), error)),
            (Ok(Err(error)), _) => Err(io::Error::other(error)),
            (Ok(Ok(_)), Ok(unpacked)) => Ok(unpacked),
            (Err(_), _) => Err(io::Error::other("it cannot be read")),
        }
    })
}

pub(super) fn write_evidence(
    evidence: &Evidence,
    dir: &Place,
    sealed: Option<&Sealed>,
    run: &Sealed,
) -> io::Result<()> {
    dir.write("spec.json", &evidence.spec)?;
    dir.write("report.json", &evidence.report)?;
    dir.write("run.intoto.jsonl", run.envelope_json_line.as_bytes())?;
    let Some(sealed) = sealed else { return Ok(()) };
    let artifacts =
        evidence.record.report().outputs.iter().filter(|o| o.kind == ampoule_spec::OutputKind::Artifact);
    // One statement has all artifacts as its subjects: its bytes are there once, under a name for each.
    let mut first: Option<[String; 2]> = None;
    for output in artifacts {
        let names = [format!("{}.intoto.jsonl", output.name), format!("{}.sigstore.json", output.name)];
        let files = [sealed.envelope_json_line.as_bytes(), sealed.bundle_json.as_bytes()];
        for (at, (name, bytes)) in names.iter().zip(files).enumerate() {
            match first.as_ref().and_then(|first| first.get(at)) {
                Some(first) => dir.write_also(name, first, bytes)?,
                None => dir.write(name, bytes)?,
            }
        }
        first.get_or_insert(names);
    }
    Ok(())
}

/// Writes each stream, and both streams of a step in the order in which they were read.
fn write_logs(evidence: &Evidence, job_dir: &Path, dir: &Place) -> io::Result<()> {
    let steps = &evidence.record.report().steps;
    let mut files: BTreeMap<String, BufWriter<File>> = BTreeMap::new();
    for (at, step) in steps.iter().enumerate() {
        for end in step.logs.iter().map(|log| log.stream.as_str()).chain(step.logs.first().map(|_| "log")) {
            let name = format!("{at}-{}.{end}", step.name);
            let file = BufWriter::new(dir.create(&name, 0o644)?);
            files.insert(name, file);
        }
    }
    let mut reader = Reader::new(File::open(job_dir.join("events"))?);
    while let Ok(Next::Frame(frame)) = reader.next_frame() {
        if frame.kind != FRAME_LOG {
            continue;
        }
        let Some(chunk) = LogChunk::decode(&frame.payload) else { continue };
        let step = usize::try_from(chunk.step).ok().and_then(|at| steps.get(at));
        let Some(step) = step else { continue };
        for end in [chunk.stream.as_str(), "log"] {
            if let Some(file) = files.get_mut(&format!("{}-{}.{end}", chunk.step, step.name)) {
                file.write_all(&chunk.bytes)?;
            }
        }
    }
    files.into_values().try_for_each(|file| file.into_inner().map_err(|e| e.into_error())?.sync_all())
}

pub(super) fn write_result(evidence: &Evidence, released: &Released, dir: &Place) -> io::Result<()> {
    let report = evidence.record.report();
    let failure = released.refused.as_ref().or(report.failure.as_ref());
    let step = failure.and_then(|f| f.step).and_then(|at| report.steps.get(usize::try_from(at).ok()?));
    let attestation = match report.outputs.iter().find(|o| o.kind == ampoule_spec::OutputKind::Artifact) {
        Some(output) if released.provenance => format!("{}.intoto.jsonl", output.name),
        _ => "run.intoto.jsonl".to_owned(),
    };
    let file = ResultFile {
        ampoule: ampoule_spec::FORMAT,
        job: report.job.as_str(),
        outcome: report.outcome.as_str(),
        code: failure.map(|f| f.code.as_str()),
        fault: failure.map(|f| f.code.fault().as_str()),
        message: failure.map(|f| f.message.as_str()),
        retryable: failure.is_some_and(|f| f.code.retryable()),
        step: step.map(|s| s.name.as_str()),
        exit: exit_of(failure, report.outcome),
        attestation: &attestation,
        builder: &released.builder,
    };
    let mut bytes = serde_json::to_vec_pretty(&file)?;
    bytes.push(b'\n');
    dir.write("result.json", &bytes)
}

/// The exit status of a job: an unclean teardown outweighs what came before it.
pub(crate) fn exit_of(failure: Option<&Failure>, outcome: Outcome) -> u8 {
    match (outcome, failure) {
        (Outcome::Quarantined, _) => Code::TeardownUnclean.exit() as u8,
        (_, Some(failure)) => failure.code.exit() as u8,
        (Outcome::Succeeded, None) => 0,
        (_, None) => Code::Internal.exit() as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ampoule_spec::{Blake3, OutputKind, OutputName, SandboxPath, Sha256};

    /// An output as the store has it: `o` is the directory or the file.
    fn made(form: OutputForm) -> (tempfile::TempDir, OutputReport) {
        let temp = tempfile::tempdir().unwrap();
        let out = temp.path().join("o");
        let (bytes, entries, sha256) = match form {
            OutputForm::Tree => {
                fs::create_dir_all(out.join("sub")).unwrap();
                fs::write(out.join("sub/a"), vec![b'a'; 600_000]).unwrap();
                fs::write(out.join("b"), "b").unwrap();
                let dir = File::open(&out).unwrap();
                let packed = pack_output(dir.as_fd(), &mut io::sink(), 7, &Limits::default()).unwrap();
                (packed.bytes, Some(packed.entries), packed.tree)
            }
            _ => {
                let bytes = vec![b'a'; 600_000];
                fs::write(&out, &bytes).unwrap();
                let digest = aws_lc_rs::digest::digest(&SHA256, &bytes);
                (bytes.len() as u64, None, Sha256::new(digest.as_ref().try_into().unwrap()))
            }
        };
        let report = OutputReport {
            name: OutputName::parse("o").unwrap(),
            path: SandboxPath::parse("/build/o").unwrap(),
            kind: OutputKind::Artifact,
            form,
            bytes,
            entries,
            sha256,
            blake3: Blake3::new([0; 32]),
            executable: false,
        };
        (temp, report)
    }

    fn copied(from: &Path, report: &OutputReport) -> (io::Result<()>, Vec<u64>, tempfile::TempDir) {
        let into = tempfile::tempdir().unwrap();
        let mut passed = Vec::new();
        let place = Place::open(into.path()).unwrap();
        let source = File::open(from.join("o")).unwrap();
        let result = copy_output(report, source, &place, 7, &mut |count| passed.push(count));
        (result, passed, into)
    }

    #[test]
    fn every_byte_of_an_output_is_counted_as_it_passes() {
        for form in [OutputForm::File, OutputForm::Tree] {
            let (temp, report) = made(form);
            let (result, passed, into) = copied(temp.path(), &report);
            result.unwrap();
            assert_eq!(passed.iter().sum::<u64>(), report.bytes);
            assert!(passed.len() > 2, "{passed:?}");
            assert!(into.path().join("o").exists());
        }
    }

    #[test]
    fn output_that_is_not_what_was_hashed_is_not_released() {
        for form in [OutputForm::File, OutputForm::Tree] {
            let (temp, report) = made(form);
            let path = temp.path().join(if form == OutputForm::Tree { "o/sub/a" } else { "o" });
            let mut bytes = fs::read(&path).unwrap();
            bytes[2000] ^= 1;
            fs::write(&path, bytes).unwrap();
            let (result, _, _into) = copied(temp.path(), &report);
            let text = result.unwrap_err().to_string();
            assert!(text.contains("no longer what was hashed"), "{text}");
        }
        // A count that does not fit is another tree too.
        let (temp, report) = made(OutputForm::Tree);
        for other in [
            OutputReport { bytes: report.bytes + 1, ..report.clone() },
            OutputReport { entries: Some(4), ..report.clone() },
            OutputReport { entries: Some(2), ..report },
        ] {
            assert!(copied(temp.path(), &other).0.is_err());
        }
    }
}
