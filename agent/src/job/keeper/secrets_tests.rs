use super::*;
use crate::job::keeper::testing::submission;
use crate::secrets::testing::{Bank, Heard, open};
use ampoule_journal::Writer;
use ampoule_spec::wire::CONTROL_SOCKET;
use ampoule_spec::{FRAME_EVENT, Name, Outcome};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept, bind, listen, recv,
    send, socket_with,
};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

/// A job's directory with a supervisor that does what a test says.
struct Job {
    dir: tempfile::TempDir,
    events: Writer<File>,
    socket: Arc<OwnedFd>,
}

impl Job {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = File::options().append(true).create_new(true).open(dir.path().join("events")).unwrap();
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        bind(&socket, &SocketAddrUnix::new(dir.path().join(CONTROL_SOCKET)).unwrap()).unwrap();
        listen(&socket, 8).unwrap();
        Self { dir, events: Writer::create(file).unwrap(), socket: Arc::new(socket) }
    }

    fn tell(&mut self, event: serde_json::Value) {
        self.events.append(FRAME_EVENT, &serde_json::to_vec(&event).unwrap()).unwrap();
    }

    fn ready(&mut self) {
        self.tell(serde_json::json!({"event": "step_ready", "at": 1, "step": 0, "names": ["user", "npm"]}));
    }

    fn started(&mut self) {
        let at = crate::job::keeper::inner::now();
        self.tell(serde_json::json!({"event": "step_started", "at": at, "step": 0, "name": "s"}));
    }

    /// Takes one packet and answers it.
    async fn answers(&self, answer: &'static str) -> String {
        let socket = self.socket.clone();
        let one = move || {
            let accepted = accept(&*socket).unwrap();
            let mut packet = [0; 8192];
            let (read, _) = recv(&accepted, &mut packet, RecvFlags::empty()).unwrap();
            send(&accepted, answer.as_bytes(), SendFlags::NOSIGNAL).unwrap();
            String::from_utf8(packet[..read].to_vec()).unwrap()
        };
        tokio::time::timeout(Duration::from_secs(20), tokio::task::spawn_blocking(one))
            .await
            .unwrap()
            .unwrap()
    }

    fn tend(&self, secrets: &Arc<Secrets>) -> Tended {
        let mut of = submission();
        of.project = Name::parse("web").unwrap();
        let spec = serde_json::json!([
            {"name": "user", "file": "/run/secrets/user"}, {"name": "npm", "file": "/run/secrets/npm"},
            {"name": "denied", "file": "/run/secrets/denied"},
        ]);
        of.spec.secrets = serde_json::from_value(spec).unwrap();
        let names =
            if self.dir.path().join("denied").exists() { ["user", "denied"] } else { ["user", "npm"] };
        of.spec.steps[0].secrets = names.map(|name| Name::parse(name).unwrap()).to_vec();
        of.spec.steps[0].timeout_ms = 600_000;
        let (life, _) = Life::submitted(&of, UnixNanos(1)).unwrap();
        Tending::of(secrets.clone(), self.dir.path().to_owned(), life, of.spec).begin()
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..4000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

fn nothing_left(bank: &Bank) -> bool {
    bank.with(|of| of.tokens.is_empty() && of.leases.is_empty())
}

fn prepared(dir: &Path) -> (Arc<Bank>, Arc<Secrets>) {
    let bank = Bank::new();
    let secrets = open(dir, &bank, &Arc::new(Heard::default()));
    (bank, secrets)
}

const TOOK: &str = r#"{"took":true}"#;
const NOT_WAITING: &str = r#"{"refused":"it does not wait"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn step_that_waits_is_given_its_values_and_they_are_taken_back_when_it_has_ended() {
    let (home, mut job) = (tempfile::tempdir().unwrap(), Job::new());
    let (bank, secrets) = prepared(home.path());
    let tended = job.tend(&secrets);
    job.ready();
    let packet = job.answers(TOOK).await;
    assert!(
        packet.starts_with(r#"s{"step":0,"values":[{"name":"user","bytes":"#) && !packet.contains("hunter2"),
        "{packet}"
    );
    job.started();
    until("handed over", || secrets.open_grants().iter().any(|(_, grant)| grant.given_at.is_some())).await;
    assert!(!nothing_left(&bank));
    let finished = finished_step();
    job.tell(serde_json::json!({"event": "step_finished", "at": 9, "step": 0, "report": finished}));
    until("revoked with the step", || nothing_left(&bank) && secrets.open_grants().is_empty()).await;
    drop(tended);
}

#[tokio::test(flavor = "multi_thread")]
async fn job_that_ends_in_any_way_leaves_nothing_and_nothing_that_is_under_way() {
    for waits in [true, false] {
        let (home, mut job) = (tempfile::tempdir().unwrap(), Job::new());
        let (bank, secrets) = prepared(home.path());
        bank.with(|of| of.slow = Duration::from_millis(100));
        let mut tended = job.tend(&secrets);
        job.ready();
        if waits {
            // In the middle of what it asks of the server.
            until("asked", || bank.with(|of| of.calls.len() >= 3)).await;
        } else {
            job.answers(TOOK).await;
            job.tell(serde_json::json!({"event": "closed", "at": 9, "outcome": Outcome::Cancelled}));
        }
        tended.over.cancel();
        (&mut tended.task).await.unwrap();
        until("revoked", || nothing_left(&bank) && secrets.open_grants().is_empty()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_that_comes_after_another_keeps_what_the_step_has_and_gives_what_it_has_not() {
    for had in [true, false] {
        let (home, mut job) = (tempfile::tempdir().unwrap(), Job::new());
        let (bank, secrets) = prepared(home.path());
        let tended = job.tend(&secrets);
        job.ready();
        // The first agent dies when the packet is out, and never hears the answer.
        job.answers(TOOK).await;
        until("open", || !secrets.open_grants().is_empty()).await;
        drop(tended);
        let before: Vec<_> = secrets.open_grants().into_iter().map(|(id, _)| id).collect();
        let _again = job.tend(&secrets);
        job.answers(if had { NOT_WAITING } else { TOOK }).await;
        let open = || secrets.open_grants().into_iter().map(|(id, _)| id).collect::<Vec<_>>();
        until("one of the two stays", || open().len() == 1).await;
        assert_eq!(open() == before, had);
        job.started();
        let asked = bank.with(|of| of.calls.len());
        if had {
            until("renewed", || bank.with(|of| of.calls[asked..].iter().any(|call| call == "renew"))).await;
        }
        job.tell(
            serde_json::json!({"event": "step_finished", "at": 9, "step": 0, "report": finished_step()}),
        );
        until("revoked", || nothing_left(&bank)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn step_that_the_rules_give_nothing_is_told_the_code_and_no_reason() {
    let (home, mut job) = (tempfile::tempdir().unwrap(), Job::new());
    let (bank, secrets) = prepared(home.path());
    std::fs::write(job.dir.path().join("denied"), "").unwrap();
    let _tended = job.tend(&secrets);
    job.ready();
    let packet = job.answers(TOOK).await;
    assert!(
        packet.contains(r#""code":"secret.denied""#) && packet.contains(crate::secrets::TENANT_TEXT),
        "{packet}"
    );
    until("told", || secrets.counts().denied.get() == 1).await;
    assert!(nothing_left(&bank));
}

fn finished_step() -> serde_json::Value {
    serde_json::json!({
        "name": "s", "end": {"end": "exited", "code": 0}, "started": 1, "finished": 2, "survivors_killed": 0, "logs": [],
        "usage": {"cpu_micros": 0, "memory_peak_bytes": 0},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_hangs_keeps_nothing_from_being_taken_back_when_the_job_is_over() {
    for (hangs, renews) in [("renew", true), ("read", false), ("mint", false)] {
        let (home, mut job) = (tempfile::tempdir().unwrap(), Job::new());
        let (bank, secrets) = prepared(home.path());
        let mut tended = job.tend(&secrets);
        if renews {
            // Another agent goes on with what the step has, and renews it first.
            job.ready();
            job.answers(TOOK).await;
            job.started();
            until("handed over", || secrets.open_grants().iter().any(|(_, grant)| grant.given_at.is_some()))
                .await;
            drop(tended);
            bank.with(|of| (of.hangs, of.calls) = (Some(hangs), Vec::new()));
            tended = job.tend(&secrets);
        } else {
            bank.with(|of| of.hangs = Some(hangs));
            job.ready();
        }
        until("it hangs", || bank.with(|of| of.calls.iter().any(|call| call == hangs))).await;
        let id = tended_job();
        let is_back = all_back(&secrets, &id, Some(tended), Duration::from_secs(3)).await;
        // Of a token that nobody has heard of yet nothing can be taken back yet; then it is, though nobody waits for that any more.
        assert_eq!(is_back, hangs != "mint", "{hangs}");
        bank.with(|of| of.hangs = None);
        until("taken back", || nothing_left(&bank) && secrets.open_grants().is_empty()).await;
    }
}

fn tended_job() -> JobId {
    Life::submitted(&submission(), UnixNanos(1)).unwrap().0.job.id.clone()
}

/// A step that runs and has something that rotates.
async fn turning(job: &Job, secrets: &Arc<Secrets>) -> Tending {
    let mut of = submission();
    of.project = Name::parse("web").unwrap();
    of.spec.secrets =
        serde_json::from_value(serde_json::json!([{"name": "turning", "file": "/run/secrets/turning"}]))
            .unwrap();
    of.spec.steps[0].secrets = vec![Name::parse("turning").unwrap()];
    of.spec.steps[0].timeout_ms = 600_000;
    let (life, _) = Life::submitted(&of, UnixNanos(1)).unwrap();
    let mut tending = Tending::of(secrets.clone(), job.dir.path().to_owned(), life, of.spec);
    let step = tending.step(0).unwrap();
    let acquired = secrets.acquire(&step, &CancellationToken::new()).await.unwrap();
    let (_, ()) = tokio::join!(job.answers(TOOK), tending.hand_over(0, acquired, Duration::ZERO));
    tending.running = Some((0, UnixNanos(1)));
    assert_eq!((tending.held.rotating.len(), secrets.open_grants().len()), (1, 1));
    tending
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_that_is_refused_leaves_one_credential_and_is_not_tried_for_ever() {
    let (home, job) = (tempfile::tempdir().unwrap(), Job::new());
    let (bank, secrets) = prepared(home.path());
    let mut tending = turning(&job, &secrets).await;
    bank.with(|of| of.password = "hunter2-second".to_owned());
    let again = |tending: &Tending| {
        let step = tending.step(0).unwrap();
        let secrets = secrets.clone();
        async move { secrets.acquire_again(&step, &CancellationToken::new()).await.unwrap() }
    };
    for _ in 0..held::FAILED_MAX {
        assert!(tending.held.rotates.is_some());
        let acquired = again(&tending).await;
        let (_, ()) = tokio::join!(job.answers(r#"{"refused":"no room"}"#), tending.rotate(0, acquired));
        until("the new one goes", || bank.with(|of| of.tokens.len() == 1)).await;
        assert_eq!(tending.held.rotating.len(), 1);
    }
    assert!(tending.held.rotates.is_none(), "it refuses always");
    // One that is taken takes the place of the one before.
    let acquired = again(&tending).await;
    let (_, ()) = tokio::join!(job.answers(TOOK), tending.rotate(0, acquired));
    until("the old one goes", || bank.with(|of| of.tokens.len() == 1)).await;
    assert_eq!(tending.held.rotating.len(), 1);
    // Of some nobody knows; they are not many.
    tending.held.rotates = Some((Duration::from_secs(30), Instant::now()));
    for _ in 0..held::FAILED_MAX {
        assert!(tending.held.rotates.is_some());
        bank.with(|of| of.password.push('x'));
        let acquired = again(&tending).await;
        let (_, ()) = tokio::join!(job.answers("what?"), tending.rotate(0, acquired));
    }
    assert!(tending.held.rotates.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_that_comes_after_another_goes_on_rotating() {
    let (home, job) = (tempfile::tempdir().unwrap(), Job::new());
    let (_bank, secrets) = prepared(home.path());
    let before = turning(&job, &secrets).await;
    let mut after =
        Tending::of(secrets.clone(), before.dir.clone(), before.life.clone(), before.spec.clone());
    drop(before);
    after.running = Some((0, UnixNanos(1)));
    after.settle();
    assert_eq!(after.held.rotates.map(|(every, _)| every), Some(Duration::from_secs(30)));
    assert_eq!(after.held.rotating.len(), 1);
}

/// A step runs with its values, and the agent that gave them is gone.
async fn served(job: &mut Job, secrets: &Arc<Secrets>) {
    let _tended = job.tend(secrets);
    job.ready();
    job.answers(TOOK).await;
    job.started();
    until("handed over", || secrets.open_grants().iter().any(|(_, grant)| grant.given_at.is_some())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revoke_that_an_agent_had_begun_goes_on_when_its_step_is_over_for_the_next() {
    let (home, mut job) = (tempfile::tempdir().unwrap(), Job::new());
    let (bank, secrets) = prepared(home.path());
    served(&mut job, &secrets).await;
    // The agent dies behind the entry that says what it is about to do.
    let (id, grant) = secrets.open_grants().pop().unwrap();
    secrets.begin_revoking(id).await;
    job.tell(serde_json::json!({"event": "step_finished", "at": 9, "step": 0, "report": finished_step()}));
    drop(secrets);
    let secrets = open(home.path(), &bank, &Arc::new(Heard::default()));
    assert!(secrets.open_grants()[0].1.revoking_at.is_some() && grant.revoking_at.is_none());
    let _again = job.tend(&secrets);
    until("revoked", || nothing_left(&bank) && secrets.open_grants().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_hangs_for_one_step_holds_no_other_up() {
    let (home, mut job) = (tempfile::tempdir().unwrap(), Job::new());
    let (bank, secrets) = prepared(home.path());
    served(&mut job, &secrets).await;
    bank.with(|of| (of.hangs, of.calls) = (Some("renew"), Vec::new()));
    // What the next agent finds is renewed at once, and hangs; the step ends meanwhile.
    let _tended = job.tend(&secrets);
    until("it hangs", || bank.with(|of| of.calls.iter().any(|call| call == "renew"))).await;
    job.tell(serde_json::json!({"event": "step_finished", "at": 9, "step": 0, "report": finished_step()}));
    until("taken back", || nothing_left(&bank) && secrets.open_grants().is_empty()).await;
}
