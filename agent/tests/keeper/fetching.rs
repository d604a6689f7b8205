//! Inputs that are fetched: what is known of them, and whose turn it is.

use super::*;

/// A source that answers everybody with a byte now and then, for ever; where it is, and how many have asked.
fn trickle() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    request.extend(byte);
                }
                let mut said = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n");
                while said.is_ok() {
                    said = stream.write_all(b"x");
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
        }
    });
    (address, asked)
}

/// A keeper with these bounds of intakes, in which jobs may fetch from there.
fn fetching(dir: &Path, from: SocketAddr, intakes: Intakes, shown: Arc<dyn Shown>) -> Keeper {
    let text = format!(
        "sources = 1\n[project.default]\nallow = [\"slow\"]\n[origin.slow]\nurl = \"http://{from}/\"\n"
    );
    let all = SourcesFile::parse(&text, "sources.toml", Path::new("")).unwrap().policy(None).unwrap();
    let mut options = options(dir);
    (options.sources.all, options.rules.running, options.rules.quota.running) = (all, 16, 16);
    options.needs.other = Amount { cpu_millis: 100, memory_bytes: 1 << 20, disk_bytes: 1 << 20 };
    Keeper::open(Options { intakes, shown, ..options }).unwrap()
}

/// A job of a project that fetches something.
fn fetches(number: u32, project: &str, from: SocketAddr) -> Submission {
    let source = serde_json::json!({"kind": "http", "url": format!("http://{from}/{number}"), "sha256": "1".repeat(64)});
    with_input(number, project, source)
}

/// A job of a project with an input.
fn with_input(number: u32, project: &str, source: serde_json::Value) -> Submission {
    let mut submission = submission(number);
    let input = serde_json::json!({"name": "src", "mount": "/build/src", "source": source});
    submission.spec.inputs.push(serde_json::from_value(input).unwrap());
    submission.project = Name::parse(project).unwrap();
    submission
}

fn state(keeper: &Keeper, number: u32) -> State {
    keeper.get(&job_id(number)).unwrap().state
}

/// A project that has had everything from everywhere, or all of them.
#[derive(Debug)]
struct HadAll {
    of: Option<&'static str>,
}

impl Shown for HadAll {
    fn has(&self, _: &Name, _: &Content) -> bool {
        true
    }

    fn record(&self, _: &Name, _: &Content) {}

    fn visit(&self, project: &Name, _: &Source) -> Option<Visit> {
        let visit = Visit { at: UnixNanos(1), from: "https://h.example/r".to_owned() };
        self.of.is_none_or(|of| of == project.as_str()).then_some(visit)
    }

    fn record_visit(&self, _: &Name, _: &Source, _: &Visit) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_found_before_a_restart_is_what_the_runner_is_asked_for_and_the_record_says() {
    let dir = tempfile::tempdir().unwrap();
    let agent = dir.path().join("agent");
    let mut fixed = open_submission(1);
    (fixed.spec.source_date_epoch, fixed.spec.epoch_of_commit) = (7, false);
    {
        // Killed behind the spec that was found, and before it.
        std::fs::create_dir_all(&agent).unwrap();
        let ledger = Ledger::open(&agent, &options(dir.path()).ledger, UnixNanos(1)).unwrap();
        let mut second = fixed.clone();
        (second.key, second.spec.id) = (jobs::key(2), job_id(2));
        for submission in [open_submission(1), second] {
            let id = submission.spec.id.clone();
            ledger.submit(submission, UnixNanos(1)).await.unwrap();
            ledger.change(&id, Change::Began).await.unwrap();
        }
        ledger.resolve(&job_id(1), &resolved(1)).await.unwrap();
    }
    let asked: Arc<Mutex<Vec<JobSpec>>> = Arc::default();
    let hears = asked.clone();
    // The launcher has the checkout, and takes no job.
    greet_with(&options(dir.path()).socket, move |request, descriptors| match request {
        Request::Find(Content::Git { epoch: 7, .. }) => {
            Some(Reply::Found { imported: Some(Imported { sha256: jobs::request(1), bytes: 1, entries: 1 }) })
        }
        Request::Run { .. } => {
            let mut spec = Vec::new();
            File::from(descriptors.into_iter().next().unwrap()).read_to_end(&mut spec).unwrap();
            hears.lock().unwrap().push(serde_json::from_slice(&spec).unwrap());
            Some(Reply::Refused { code: Code::JobInvalid, message: "m".to_owned() })
        }
        _ => None,
    });
    let keeper =
        Keeper::open(Options { shown: Arc::new(HadAll { of: None }), ..options(dir.path()) }).unwrap();
    for number in 1..3 {
        let (job, _) = finished(&keeper, &job_id(number)).await;
        let (verified, result) = attested(&keeper, &job);
        assert_eq!((verified.outcome, &result["code"]), (Outcome::Failed, &"job.invalid".into()));
        let evidence = keeper.evidence(&job.id).unwrap();
        let spec = evidence.files.iter().find(|file| file.names == ["spec.json"]).unwrap();
        let expected = JobSpec { id: job_id(number), ..resolved(1) };
        assert_eq!(serde_json::from_slice::<JobSpec>(&spec.bytes).unwrap(), expected);
        assert!(asked.lock().unwrap().contains(&expected), "{asked:?}");
    }
    // Who submits again gets the job that is there.
    assert!(keeper.attach(&open_submission(1)).unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn job_whose_commit_was_never_fetched_ends_in_a_record_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let keeper = open(dir.path());
    keeper.submit(open_submission(1)).await.unwrap();
    keeper.cancel(&job_id(1), &caller(), "").await.unwrap();
    let (job, _) = finished(&keeper, &job_id(1)).await;
    assert_eq!(attested(&keeper, &job).0.outcome, Outcome::Cancelled);
    let evidence = keeper.evidence(&job.id).unwrap();
    let file = |name: &str| {
        let bytes = &evidence.files.iter().find(|file| file.names == [name]).unwrap().bytes;
        serde_json::from_slice::<serde_json::Value>(bytes).unwrap()
    };
    let payload = base64::Engine::decode(
        &base64::engine::general_purpose::STANDARD,
        file("run.intoto.jsonl")["payload"].as_str().unwrap(),
    );
    let statement: serde_json::Value = serde_json::from_slice(&payload.unwrap()).unwrap();
    assert_eq!(
        statement["predicate"]["inputs"][0]["digest"],
        serde_json::json!({"gitCommit": "3".repeat(40)})
    );
    let spec = file("spec.json");
    assert_eq!(
        (&spec["epoch_of_commit"], &spec["inputs"][0]["source"]["tree"]),
        (&true.into(), &serde_json::Value::Null)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn job_that_fetches_nothing_is_not_behind_slow_sources() {
    let (dir, (from, asked)) = (tempfile::tempdir().unwrap(), trickle());
    let imported = Imported { sha256: jobs::request(1), bytes: 1, entries: 1 };
    greet_with(&options(dir.path()).socket, move |request, _| {
        matches!(request, Request::Find(_)).then(|| Reply::Found { imported: Some(imported.clone()) })
    });
    let intakes = Intakes { places: 1, ..Intakes::default() };
    let keeper = fetching(dir.path(), from, intakes, Arc::new(HadAll { of: Some("everywhere") }));
    keeper.submit(fetches(1, "a", from)).await.unwrap();
    until("the source is asked", || asked.load(Ordering::SeqCst) == 1).await;
    // Neither one that names what was uploaded, nor one of which everything was fetched, of the same project or of another.
    let uploaded = serde_json::json!({"kind": "tar", "sha256": "2".repeat(64)});
    keeper.submit(with_input(2, "a", uploaded)).await.unwrap();
    keeper.submit(fetches(3, "everywhere", from)).await.unwrap();
    for number in [2, 3] {
        until("the launcher is asked", || state(&keeper, number) > State::Preparing).await;
    }
    keeper.submit(fetches(4, "b", from)).await.unwrap();
    // A commit's time is asked for, whatever was fetched before.
    let commit =
        serde_json::json!({"kind": "git", "url": format!("http://{from}/r"), "commit": "3".repeat(40)});
    let mut open = with_input(5, "everywhere", commit);
    (open.spec.source_date_epoch, open.spec.epoch_of_commit) = (0, true);
    keeper.submit(open).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!([1, 4, 5].map(|number| state(&keeper, number)), [State::Preparing; 3]);
    assert_eq!(asked.load(Ordering::SeqCst), 1, "more fetch than there are places");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_project_fetches_in_half_of_the_places_and_not_for_ever() {
    let (dir, (from, asked)) = (tempfile::tempdir().unwrap(), trickle());
    greet(&options(dir.path()).socket);
    let whole = Duration::from_secs(3);
    let intakes = Intakes { places: 4, whole, patience: Duration::from_secs(3600), ..Intakes::default() };
    let keeper = fetching(dir.path(), from, intakes, Arc::new(ShownToAll));
    for number in 1..4 {
        keeper.submit(fetches(number, "a", from)).await.unwrap();
    }
    until("two fetch", || asked.load(Ordering::SeqCst) == 2).await;
    keeper.submit(fetches(4, "b", from)).await.unwrap();
    until("another project fetches", || asked.load(Ordering::SeqCst) == 3).await;
    let ends = (1..4).map(|number| keeper.get(&job_id(number)).unwrap().state).collect::<Vec<_>>();
    assert_eq!(ends, [State::Preparing; 3], "this machine is too slow");
    let (job, _) = finished(&keeper, &job_id(1)).await;
    let failure = job.end.unwrap().failure.unwrap();
    assert!(failure.code == Code::InputUnreachable && failure.message.contains("after 3 s"), "{failure:?}");
    until("the third of them fetches", || asked.load(Ordering::SeqCst) == 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_intake_gives_way_to_another_project_and_to_nobody_else() {
    let (dir, (from, asked)) = (tempfile::tempdir().unwrap(), trickle());
    greet(&options(dir.path()).socket);
    let intakes = Intakes { places: 4, patience: Duration::from_secs(1), ..Intakes::default() };
    let keeper = fetching(dir.path(), from, intakes, Arc::new(ShownToAll));
    for (number, project) in [(1, "a"), (2, "a"), (3, "a"), (4, "b")] {
        keeper.submit(fetches(number, project, from)).await.unwrap();
    }
    until("three fetch", || asked.load(Ordering::SeqCst) == 3).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    // One that waits for its own project is no reason.
    let waits = (1..4).filter(|number| state(&keeper, *number) == State::Preparing).count();
    assert!(waits == 3 && asked.load(Ordering::SeqCst) == 3);
    keeper.cancel(&job_id(3), &caller(), "").await.unwrap();
    finished(&keeper, &job_id(3)).await;
    keeper.submit(fetches(5, "b", from)).await.unwrap();
    until("all places are taken", || asked.load(Ordering::SeqCst) == 4).await;
    // Both projects are slow, and one place is wanted: one job gives way.
    keeper.submit(fetches(6, "c", from)).await.unwrap();
    until("the third project fetches", || asked.load(Ordering::SeqCst) == 5).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let jobs = [1, 2, 4, 5].map(|number| keeper.get(&job_id(number)).unwrap());
    let ended: Vec<_> = jobs.iter().filter_map(|job| job.end.as_ref()).collect();
    assert_eq!(ended.len(), 1, "{ended:?}");
    let failure = ended[0].failure.as_ref().unwrap();
    assert!(failure.code == Code::InputUnreachable && failure.message.contains("too slow"), "{failure:?}");
    assert_eq!(state(&keeper, 6), State::Preparing);
}
