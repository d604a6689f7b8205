use super::*;
use crate::audit::{Action, AuditError, AuditEvent};
use crate::audit_sink::{AuditSink, Refused};
use crate::secrets::testing::*;
use futures_util::future::BoxFuture;

fn all() -> Wanted {
    Wanted { limit: 100, ..Wanted::default() }
}

#[tokio::test]
async fn what_is_open_is_shown_with_why_it_is_not_back_and_without_what_names_it() {
    let (dir, bank) = (tempfile::tempdir().unwrap(), Bank::new());
    let secrets = open(dir.path(), &bank, &Arc::default());
    acquire(&secrets, &ALL).await.unwrap();
    let held = secrets.held(&all());
    let [of_bank, of_host] = held.grants.as_slice() else { panic!("{held:?}") };
    assert_eq!((of_bank.server.as_ref().unwrap().as_str(), of_bank.leases), ("bank", 1));
    assert_eq!(
        (of_host.server.as_ref(), of_host.secrets.as_slice()),
        (None, ["local".to_owned()].as_slice())
    );
    assert_eq!(of_bank.accessor_sha256.as_ref().unwrap().len(), 64);
    assert!(secrets.held(&Wanted { pending: true, ..all() }).grants.is_empty(), "its step may have it");

    bank.with(|of| of.fails = Some(("revoke", usize::MAX)));
    let job = step(&[]).job;
    let asked = secrets.revoke_now(&Which::Job(job.clone())).await;
    assert_eq!(asked, Asked { asked: 2, open: 1 }, "what is this host's needs no server");
    let pending = secrets.held(&Wanted { pending: true, ..all() });
    let [one] = pending.grants.as_slice() else { panic!("{pending:?}") };
    assert!(one.tries > 0 && one.last_error.as_ref().unwrap().contains("sealed"), "{one:?}");
    assert!(one.revoking_at.is_some());
    let text = format!("{pending:?}");
    assert!(!text.contains("accessor-") && !text.contains("database/creds"), "{text}");

    for (wanted, count) in [
        (Wanted { job: Some(job.clone()), ..all() }, 1),
        (Wanted { project: Some(name("other")), ..all() }, 0),
        (Wanted { server: Some(name("bank")), ..all() }, 1),
        (Wanted { server: Some(name("other")), ..all() }, 0),
        (Wanted { after: Some(one.id), ..all() }, 0),
        (Wanted { limit: 0, ..all() }, 0),
    ] {
        assert_eq!(secrets.held(&wanted).grants.len(), count, "{wanted:?}");
    }
    assert!(secrets.held(&Wanted { limit: 0, ..all() }).more);

    // Whoever asks again does not wait for the pause: by now it is seconds.
    tokio::time::sleep(Duration::from_secs(4)).await;
    bank.with(|of| of.fails = None);
    let begun = std::time::Instant::now();
    assert_eq!(secrets.revoke_now(&Which::Grant(one.id)).await, Asked { asked: 1, open: 0 });
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(secrets.held(&all()).grants.is_empty() && secrets.whose(&Which::Grant(one.id)).is_none());
    assert_eq!(secrets.revoke_now(&Which::Grant(one.id)).await, Asked::default());
}

#[test]
fn error_of_a_server_is_shown_without_what_names_the_token_or_its_leases() {
    let grant: Grant = serde_json::from_value(serde_json::json!({
        "job": "01890a5d-ac96-774b-bcce-b302099a8057", "step": 0, "step_name": "a", "project": "p", "server": "s", "secrets": [],
        "accessor": "acc-1", "leases": ["database/creds/app/x1"], "until": 0, "minted_at": 0, "given_at": null, "revoking_at": null,
        "closed_at": null,
    }))
    .unwrap();
    let text = shown(&grant, "no acc-1 and no database/creds/app/x1 here");
    assert_eq!(text, "no *** and no *** here");
    assert_eq!(shown(&grant, &"x".repeat(9999)).len(), ERROR_CHARS_MAX);
}

#[tokio::test]
async fn wish_that_comes_during_the_first_try_is_kept_for_after_it() {
    // Whoever begins it leaves no wish: it is being tried.
    for wishes_again in [false, true] {
        let (dir, bank) = (tempfile::tempdir().unwrap(), Bank::new());
        let secrets = open(dir.path(), &bank, &Arc::default());
        let id = acquire(&secrets, &["user"]).await.unwrap().grants[0];
        let wish = || {
            let secrets = secrets.clone();
            tokio::spawn(async move { secrets.revoke_now(&Which::Grant(id)).await })
        };
        bank.with(|of| of.hangs = Some("revoke"));
        let _begins = wish();
        while bank.with(|of| !of.calls.iter().any(|call| call == "revoke")) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let _again = wishes_again.then(wish);
        tokio::time::sleep(Duration::from_millis(20)).await;
        // In the place of the task, which would come to it if the try failed.
        let pause = secrets.under_way.pause(id, Duration::from_secs(3600));
        let ends_at_once = tokio::time::timeout(Duration::from_millis(500), pause).await.is_ok();
        assert_eq!(ends_at_once, wishes_again);
        bank.with(|of| of.hangs = None);
        assert!(secrets.until_closed(&step(&[]).job, Duration::from_secs(5)).await);
    }
}

#[tokio::test]
async fn what_a_server_says_is_cut_when_the_names_of_what_it_gave_are_out_of_it() {
    for before in 270..300 {
        let (dir, bank) = (tempfile::tempdir().unwrap(), Bank::new());
        let secrets = open(dir.path(), &bank, &Arc::default());
        acquire(&secrets, &["user"]).await.unwrap();
        let [lease] =
            <[String; 1]>::try_from(bank.with(|of| of.leases.keys().cloned().collect::<Vec<_>>())).unwrap();
        bank.with(|of| {
            (of.says, of.fails) =
                (Some(format!("{} {lease}", "y".repeat(before))), Some(("revoke_lease", usize::MAX)));
        });
        secrets.revoke_job(&step(&[]).job);
        let error = loop {
            let held = secrets.held(&all());
            match &held.grants[0].last_error {
                Some(error) => break error.clone(),
                None => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        };
        assert!(
            error.contains("yyy") && !error.contains(" da") && !error.contains(" d"),
            "{before}: {error}"
        );
    }
}

/// An audit log that an agent dies at when a revoke is told.
#[derive(Default)]
struct Deadly(tokio::sync::Notify);

impl AuditSink for Deadly {
    fn record(&self, _: &Refused<'_>) {}

    fn write<'a>(&'a self, event: &'a AuditEvent) -> BoxFuture<'a, Result<(), AuditError>> {
        if event.action != Action::SecretRevoked {
            return Box::pin(std::future::ready(Ok(())));
        }
        self.0.notify_one();
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn agent_that_dies_when_a_revoke_is_told_leaves_it_to_be_told_by_the_next_one() {
    let (dir, bank, heard) = (tempfile::tempdir().unwrap(), Bank::new(), Arc::new(Heard::default()));
    let deadly = Arc::new(Deadly::default());
    // The one before has no journal left when it is dead, and whoever comes has another.
    let before = std::thread::spawn({
        let (dir, bank, deadly) = (dir.path().to_owned(), bank.clone(), deadly.clone());
        move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            runtime.unwrap().block_on(async {
                let secrets = open_telling(&dir, &bank, deadly.clone());
                acquire(&secrets, &["user"]).await.unwrap();
                secrets.revoke_job(&step(&[]).job);
                deadly.0.notified().await;
            });
        }
    });
    before.join().unwrap();
    assert!(bank.with(|of| of.tokens.is_empty()), "the server has taken it back");
    let secrets = open(dir.path(), &bank, &heard);
    assert_eq!(secrets.open_grants().len(), 1, "closed, and told to nobody");
    secrets.revoke_job(&step(&[]).job);
    assert!(secrets.until_closed(&step(&[]).job, Duration::from_secs(5)).await);
    let heard = heard.0.lock().unwrap().join("\n");
    assert_eq!(heard.matches("secret.revoked").count(), 1, "{heard}");
}

#[tokio::test]
async fn while_a_disk_hangs_it_is_shown_what_is_open_and_what_is_to_go_is_not_prolonged() {
    let (dir, bank, disk) = (tempfile::tempdir().unwrap(), Bank::new(), Arc::new(Disk::default()));
    let leases = disk.leases(&dir.path().join("secrets"));
    let secrets = open_on(dir.path(), &bank, Arc::new(Heard::default()), leases);
    let job = step(&[]).job;
    let id = acquire(&secrets, &["user"]).await.unwrap().grants[0];
    bank.with(|of| of.calls.clear());
    disk.hang(true);
    secrets.revoke_job(&job);
    disk.until_hung().await;
    let begun = std::time::Instant::now();
    assert_eq!(secrets.held(&all()).grants.len(), 1);
    assert_eq!(secrets.whose(&Which::Grant(id)), Some((name("web"), job.clone())));
    assert!(secrets.claims(&job).unwrap().contains("\"revokePending\":true"));
    assert!(!secrets.until_closed(&job, Duration::from_millis(20)).await);
    // That it is to go is not durable yet, and known all the same.
    assert_eq!(secrets.renew(id, UnixNanos(u64::MAX)).await, None);
    // And it goes, before anything is written.
    while bank.with(|of| !of.tokens.is_empty() || !of.leases.is_empty()) && begun.elapsed() < HANGS / 2 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    bank.with(|of| assert_eq!(of.calls, ["revoke", "revoke_lease"]));
    assert!(secrets.held(&all()).grants[0].revoking_at.is_none(), "the disk hangs still");
    assert!(begun.elapsed() < HANGS / 2, "{:?}", begun.elapsed());
    disk.hang(false);
    assert!(secrets.until_closed(&job, Duration::from_secs(5)).await);
    assert_eq!(bank.with(|of| of.calls.len()), 2, "once");
}

#[tokio::test]
async fn while_a_disk_hangs_a_server_that_is_away_is_asked_again_and_a_wish_is_heard() {
    let (dir, bank, disk) = (tempfile::tempdir().unwrap(), Bank::new(), Arc::new(Disk::default()));
    let leases = disk.leases(&dir.path().join("secrets"));
    let secrets = open_on(dir.path(), &bank, Arc::new(Heard::default()), leases);
    let job = step(&[]).job;
    acquire(&secrets, &["user"]).await.unwrap();
    bank.with(|of| of.fails = Some(("revoke", 5)));
    disk.hang(true);
    let begun = std::time::Instant::now();
    // Each wish is a try; with the pauses between them, six would take longer than this waits.
    while bank.with(|of| !of.tokens.is_empty()) && begun.elapsed() < HANGS / 2 {
        let wish = Which::Job(job.clone());
        let _ = tokio::time::timeout(Duration::from_millis(100), secrets.revoke_now(&wish)).await;
    }
    assert!(begun.elapsed() < HANGS / 2, "{:?}", begun.elapsed());
    disk.hang(false);
    assert!(secrets.until_closed(&job, Duration::from_secs(5)).await);
}

#[tokio::test]
async fn that_it_goes_is_in_the_journal_before_that_it_is_gone() {
    let (dir, bank) = (tempfile::tempdir().unwrap(), Bank::new());
    let secrets = open(dir.path(), &bank, &Arc::default());
    // What is this host's is gone at once: no server is asked.
    acquire(&secrets, &["local", "user"]).await.unwrap();
    secrets.revoke_job(&step(&[]).job);
    assert!(secrets.until_closed(&step(&[]).job, Duration::from_secs(5)).await);
    drop(secrets);
    let bytes = std::fs::read(dir.path().join("secrets/leases")).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    for id in 0..2 {
        let place = |entry: &str| text.find(&format!("{{\"entry\":\"{entry}\",\"id\":{id},")).unwrap();
        assert!(place("revoking") < place("closed"), "{id}: {text}");
    }
}

#[tokio::test]
async fn what_was_read_when_a_disk_hung_is_revoked_when_it_is_known() {
    let (dir, bank, disk) = (tempfile::tempdir().unwrap(), Bank::new(), Arc::new(Disk::default()));
    let leases = disk.leases(&dir.path().join("secrets"));
    let secrets = open_on(dir.path(), &bank, Arc::new(Heard::default()), leases);
    bank.with(|of| (of.hangs, of.lease) = (Some("read"), Some((LIMIT * 2, true, LIMIT * 2))));
    let taking = tokio::spawn({
        let secrets = secrets.clone();
        async move { acquire(&secrets, &["user"]).await }
    });
    while bank.with(|of| of.leases.is_empty()) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    disk.hang(true);
    bank.with(|of| of.hangs = None);
    disk.until_hung().await;
    secrets.revoke_job(&step(&[]).job);
    while bank.with(|of| !of.tokens.is_empty()) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(bank.with(|of| of.leases.len()), 1, "nobody knows of it yet");
    disk.hang(false);
    assert!(secrets.until_closed(&step(&[]).job, Duration::from_secs(5)).await);
    assert!(bank.with(|of| of.leases.is_empty()));
    let _ = taking.await;
}

#[tokio::test]
async fn while_a_disk_hangs_whoever_has_handed_over_goes_on_within_seconds() {
    let (dir, bank, disk) = (tempfile::tempdir().unwrap(), Bank::new(), Arc::new(Disk::default()));
    let leases = disk.leases(&dir.path().join("secrets"));
    let secrets = open_on(dir.path(), &bank, Arc::new(Heard::default()), leases);
    let acquired = acquire(&secrets, &["user"]).await.unwrap();
    disk.hang(true);
    let begun = std::time::Instant::now();
    secrets.handed_over(&acquired.grants).await;
    assert!(begun.elapsed() < HANGS / 2, "{:?}", begun.elapsed());
    assert!(secrets.held(&all()).grants[0].given_at.is_none());
    disk.hang(false);
    // It is written all the same.
    while secrets.held(&all()).grants[0].given_at.is_none() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
