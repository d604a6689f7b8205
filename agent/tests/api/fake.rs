//! Jobs, content and host that are made up.

use ampoule_agent::api::host::{Host, HostFacts};
use ampoule_agent::api::jobs::Uploads;
use ampoule_agent::api::leases::Leases;
use ampoule_agent::content::{ImportError, Importer};
use ampoule_agent::job::{
    Caller, End, EvidenceFile, EvidenceFiles, IdempotencyKey, Job, Jobs, JobsError, Means, OpenedOutput,
    Page, Promised, State, Submission, Submitted, Wanted, Watched, WatchedEvent,
};
use ampoule_agent::secrets::{Asked, Busy, Checked, Held, Shown, WantedLeases, Which};
use ampoule_spec::wire::{Content, Imported};
use ampoule_spec::{Code, JobId, JobSpec, LogChunk, Name, Outcome, Sha256, UnixNanos};
use futures_util::Stream;
use std::collections::BTreeMap;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A job of the project `mine`.
pub(crate) const MINE: &str = "01980000-0000-7000-8000-000000000001";
/// A job of the project `theirs`.
pub(crate) const THEIRS: &str = "01980000-0000-7000-8000-000000000002";
/// Another of `mine`, which has ended.
pub(crate) const OVER: &str = "01980000-0000-7000-8000-000000000004";
/// No job.
pub(crate) const NONE: &str = "01980000-0000-7000-8000-000000000003";

#[derive(Debug, Default)]
pub(crate) struct Fake {
    pub(crate) submitted: Mutex<Vec<Submission>>,
    /// What is missing of every job.
    pub(crate) missing: Mutex<Vec<String>>,
    /// A directory that every output is; none: they are files.
    pub(crate) tree: Mutex<Option<std::path::PathBuf>>,
    /// What was done.
    pub(crate) order: Arc<Mutex<Vec<String>>>,
    /// Bytes of the evidence of every job.
    pub(crate) evidence: AtomicUsize,
    /// Bytes in a label of each job that is listed, and how many are.
    pub(crate) listed: Mutex<(usize, usize)>,
    /// Whether the queue is full.
    pub(crate) is_busy: AtomicBool,
    /// Whether another call under the key is first, between the promise of a place and its use.
    pub(crate) comes_second: AtomicBool,
}

impl Fake {
    fn did(&self, what: &str) {
        self.order.lock().unwrap().push(what.to_owned());
    }
}

pub(crate) fn job(id: &str, project: &str) -> Job {
    let name = |text: &str| Name::parse(text).unwrap();
    Job {
        id: JobId::parse(id).unwrap(),
        project: name(project),
        name: name("build"),
        profile: name("hermetic"),
        attempt: 1,
        key: IdempotencyKey::parse("key").unwrap(),
        caller: Caller { means: Means::Peer, subject: "uid:4242".to_owned(), claims: BTreeMap::new() },
        request: Sha256::parse(&"0".repeat(64)).unwrap(),
        priority: 0,
        labels: BTreeMap::new(),
        submitted_at: UnixNanos(1),
        state: State::Finished,
        started_at: None,
        finished_at: None,
        cancel: None,
        end: Some(End {
            outcome: Outcome::Succeeded,
            failure: None,
            outputs: Vec::new(),
            attestation: Sha256::parse(&"1".repeat(64)).unwrap(),
            builder: "b".to_owned(),
            record_bytes: 4096,
        }),
    }
}

fn no_job() -> JobsError {
    JobsError { code: Code::JobUnknown, message: "there is no such job".to_owned(), retry_after: None }
}

impl Jobs for Fake {
    type Place = ();

    async fn promise(&self, submission: &Submission) -> Result<Promised<()>, JobsError> {
        if self.is_busy.load(Ordering::SeqCst) {
            let message = "the queue is full".to_owned();
            return Err(JobsError { code: Code::AdmissionBusy, message, retry_after: None });
        }
        Ok(self.attach(submission)?.map_or(Promised::Place(()), |job| Promised::Attached(Box::new(job))))
    }

    async fn enter(&self, (): (), submission: Submission) -> Result<Submitted, JobsError> {
        let mut job = job(submission.spec.id.as_str(), submission.project.as_str());
        job.caller = submission.caller.clone();
        if job.project.as_str() == "panics" {
            panic!("a defect that is made");
        }
        self.did("submit");
        self.submitted.lock().unwrap().push(submission);
        let attached = self.comes_second.load(Ordering::SeqCst);
        Ok(Submitted { job, attached })
    }

    fn attach(&self, submission: &Submission) -> Result<Option<Submitted>, JobsError> {
        let mut all = self.submitted.lock().unwrap();
        let (subject, key) = (&submission.caller.subject, &submission.key);
        let found = all.iter().find(|s| s.caller.subject == *subject && s.key == *key);
        let Some(found) = found else { return Ok(None) };
        let job = job(found.spec.id.as_str(), found.project.as_str());
        all.push(submission.clone());
        Ok(Some(Submitted { job, attached: true }))
    }

    fn get(&self, id: &JobId) -> Option<Job> {
        let mut job = match id.as_str() {
            MINE => Job { state: State::Running, ..job(MINE, "mine") },
            OVER => job(OVER, "mine"),
            THEIRS => job(THEIRS, "theirs"),
            _ => return None,
        };
        let bytes = self.evidence.load(Ordering::SeqCst) as u64;
        job.end.as_mut().unwrap().record_bytes = bytes.max(4096);
        Some(job)
    }

    fn queue_position(&self, _: &JobId) -> Option<u32> {
        None
    }

    fn list(&self, wanted: &Wanted, may_read: &(dyn Fn(&Job) -> bool + Sync)) -> Page {
        self.did("list");
        let (bytes, count) = *self.listed.lock().unwrap();
        let labels = BTreeMap::from([("l".to_owned(), "x".repeat(bytes))]);
        let large = (0..count).map(|_| Job { labels: labels.clone(), ..job(MINE, "mine") });
        let all = [job(THEIRS, "theirs"), job(MINE, "mine")].into_iter().chain(large);
        let jobs = all.filter(|job| wanted.project.as_ref().is_none_or(|project| *project == job.project));
        Page { jobs: jobs.filter(|job| may_read(job)).collect(), more: false }
    }

    async fn cancel(&self, id: &JobId, _: &Caller, _: &str) -> Result<Job, JobsError> {
        self.did("cancel");
        self.get(id).ok_or_else(no_job)
    }

    fn watch(
        &self,
        id: &JobId,
        _: u64,
        logs: bool,
        follow: bool,
    ) -> Result<impl Stream<Item = Result<Watched, JobsError>> + Send + 'static, JobsError> {
        self.did("watch");
        let job = self.get(id).ok_or_else(no_job)?;
        // With logs it never ends: for readers who never read.
        let count = if logs { usize::MAX } else { 1 };
        let event = move |at: usize| match at {
            0 => WatchedEvent::Job(Box::new(job.clone())),
            _ => WatchedEvent::Log(LogChunk {
                step: 0,
                stream: ampoule_spec::Stream::Stdout,
                at: UnixNanos(1),
                offset: at as u64 * 65536,
                bytes: vec![b'x'; 65536],
            }),
        };
        let all = (0..count).map(move |at| Ok(Watched { cursor: at as u64 + 1, event: event(at) }));
        let all = futures_util::stream::iter(all);
        // One that follows without logs waits for what never comes.
        let rest = futures_util::stream::iter((follow && !logs).then_some(()));
        let rest = futures_util::StreamExt::then(rest, |()| std::future::pending());
        Ok(futures_util::StreamExt::chain(all, rest))
    }

    fn evidence(&self, id: &JobId) -> Result<EvidenceFiles, JobsError> {
        self.did("evidence");
        self.get(id).ok_or_else(no_job)?;
        let bytes = vec![b'x'; self.evidence.load(Ordering::SeqCst)];
        let files =
            if bytes.is_empty() { Vec::new() } else { vec![EvidenceFile { names: vec!["a".into()], bytes }] };
        Ok(EvidenceFiles { files, ..EvidenceFiles::default() })
    }

    async fn open_output(&self, id: &JobId, _: &str) -> Result<OpenedOutput, JobsError> {
        self.did("open");
        self.get(id).ok_or_else(no_job)?;
        if let Some(tree) = &*self.tree.lock().unwrap() {
            let root = File::open(tree).unwrap().into();
            return Ok(OpenedOutput::Tree { root, epoch: 7 });
        }
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, b"output").unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        Ok(OpenedOutput::File { file, length: 6 })
    }

    async fn drain(&self, _: bool, _: bool) -> Result<(u32, u32), JobsError> {
        self.did("drain");
        Ok((3, 5))
    }

    fn load(&self) -> (bool, u32, u32) {
        (true, 3, 5)
    }
}

impl Uploads for Fake {
    async fn missing(&self, _: &Name, _: &JobSpec) -> Result<Vec<String>, JobsError> {
        Ok(self.missing.lock().unwrap().clone())
    }
}

impl Host for Fake {
    async fn facts(&self) -> HostFacts {
        HostFacts { agent_version: "test".to_owned(), ..HostFacts::default() }
    }
}

/// One grant, of the job of `mine`.
pub(crate) fn grant() -> Shown {
    Shown {
        id: 7,
        project: Name::parse("mine").unwrap(),
        job: JobId::parse(MINE).unwrap(),
        step: 0,
        step_name: Name::parse("build").unwrap(),
        server: Some(Name::parse("main").unwrap()),
        secrets: vec!["npm".to_owned()],
        accessor_sha256: Some("0".repeat(64)),
        leases: 2,
        minted_at: UnixNanos(1),
        given_at: None,
        until: UnixNanos(2),
        revoking_at: None,
        tries: 3,
        last_error: Some("sealed".to_owned()),
    }
}

impl Leases for Fake {
    fn held(&self, wanted: &WantedLeases) -> Held {
        self.did("leases");
        let grants = (wanted.limit > 1).then(grant).into_iter().collect();
        Held { grants, more: wanted.after.is_none() }
    }

    fn whose(&self, which: &Which) -> Option<(Name, JobId)> {
        let is_open = matches!(which, Which::Job(job) if job.as_str() == MINE) || *which == Which::Grant(7);
        is_open.then(|| (grant().project, grant().job))
    }

    async fn revoke(self: Arc<Self>, which: Which) -> Asked {
        self.did("revoke");
        Asked { asked: usize::from(self.whose(&which).is_some()), open: 0 }
    }

    async fn look(self: Arc<Self>, _: Option<Name>) -> Result<Checked, Busy> {
        self.did("look");
        if self.is_busy.load(Ordering::SeqCst) { Err(Busy) } else { Ok(Checked::default()) }
    }
}

impl Importer for Fake {
    fn present(&self, contents: &[Content]) -> Result<Vec<bool>, ImportError> {
        Ok(vec![true; contents.len()])
    }

    fn import(&self, content: Content, _: File) -> Result<Imported, ImportError> {
        let Content::File { sha256: Some(sha256), .. } = content else { panic!("{content:?}") };
        Ok(Imported { sha256, bytes: 0, entries: 0 })
    }
}
