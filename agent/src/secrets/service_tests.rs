use super::*;
use crate::secrets::AcquireError;
use crate::secrets::testing::*;
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

/// Waits until nothing is open.
async fn until_closed(secrets: &Arc<Secrets>) {
    assert!(
        secrets.until_closed(&step(&[]).job, Duration::from_secs(20)).await,
        "{:?}",
        secrets.open_grants()
    );
}

#[tokio::test]
async fn step_gets_what_it_names_in_its_order_and_all_of_it_is_taken_back() {
    let (dir, bank, heard) = (tempfile::tempdir().unwrap(), Bank::new(), Arc::new(Heard::default()));
    let secrets = open(dir.path(), &bank, &heard);
    let acquired = acquire(&secrets, &ALL).await.unwrap();
    let values: Vec<_> =
        acquired.values.iter().map(|(name, value)| (name.as_str(), value.expose_text().unwrap())).collect();
    assert_eq!(values[0], ("local", "of this host alone"));
    assert_eq!((values[1], values[2]), (("password", "hunter2-first"), ("npm", "hunter2-first")));
    assert!(values[3].1.starts_with("user-"));
    // One read for a user and its password; the token is journaled before it lives for longer, and the leases before anything is given.
    assert_eq!(bank.with(|of| of.calls.join(" ")), "ready mint renew read read renew_lease");
    let need = LIMIT + Duration::from_secs(60);
    assert!(
        bank.with(|of| of.tokens.values().all(|(ttl, _)| *ttl == need)
            && of.leases.values().all(|ttl| *ttl == need))
    );
    secrets.handed_over(&acquired.ids().collect::<Vec<_>>()).await;
    assert_eq!((secrets.counts().open.get(), secrets.counts().granted.get()), (2, 2));
    secrets.revoke_job(&step(&[]).job);
    until_closed(&secrets).await;
    assert!(bank.with(|of| of.tokens.is_empty() && of.leases.is_empty()));
    let claims = secrets.claims(&step(&[]).job).unwrap();
    for (text, there) in [
        ("accessorSha256", true),
        ("revokedAt", true),
        ("vault:bank", true),
        ("accessor-", false),
        ("hunter2", false),
    ] {
        assert_eq!(claims.contains(text), there, "{text}: {claims}");
    }
    let heard = heard.0.lock().unwrap().join("\n");
    assert!(
        heard.contains("secret.granted") && heard.contains("secret.revoked") && heard.contains("uid:7"),
        "{heard}"
    );
    assert!(!heard.contains("hunter2") && !heard.contains("accessor-"), "{heard}");
    let journal = std::fs::read(dir.path().join("secrets/leases")).unwrap();
    assert!(!String::from_utf8_lossy(&journal).contains("hunter2"));
    secrets.forget(&step(&[]).job).await;
    assert!(secrets.claims(&step(&[]).job).is_none());
}

/// What is said, and how the server is then.
type Case = (&'static str, fn(&mut Accounts));

#[tokio::test]
async fn what_does_not_last_as_long_as_the_step_is_not_given_and_leaves_nothing() {
    let set: [Case; 4] = [
        ("may live for", |of| of.token_max = Some(LIMIT)),
        ("a lease lasts for", |of| of.lease = Some((Duration::from_secs(60), false, LIMIT * 2))),
        ("a lease lasts for", |of| of.lease = Some((Duration::from_secs(60), true, LIMIT))),
        ("sealed", |of| of.fails = Some(("read", 9))),
    ];
    for (why, change) in set {
        let (dir, bank) = (tempfile::tempdir().unwrap(), Bank::new());
        let secrets = open(dir.path(), &bank, &Arc::default());
        bank.with(change);
        let error = acquire(&secrets, &ALL).await.unwrap_err();
        assert!(error.reason().contains(why), "{error:?}");
        // The tenant hears nothing of the server.
        assert!(!error.told().1.contains("bank") && error.told().0.as_str() == "secret.unavailable");
        until_closed(&secrets).await;
        assert!(bank.with(|of| of.tokens.is_empty() && of.leases.is_empty()), "{why}");
    }
}

#[tokio::test]
async fn value_that_cannot_be_masked_is_not_given_and_nothing_is_asked_for_what_is_denied() {
    let (dir, bank) = (tempfile::tempdir().unwrap(), Bank::new());
    let secrets = open(dir.path(), &bank, &Arc::default());
    for (names, why) in
        [(["short"], "fewer than 8 bytes"), (["nothing"], "the answer has no field nothing; it has ")]
    {
        let error = acquire(&secrets, &names).await.unwrap_err();
        assert!(error.reason().contains(why), "{error:?}");
        until_closed(&secrets).await;
    }
    assert!(bank.with(|of| of.tokens.is_empty()));
    bank.with(|of| of.calls.clear());
    let error = acquire(&secrets, &["npm", "other"]).await.unwrap_err();
    let (code, told) = error.told();
    assert_eq!(code, ampoule_spec::Code::SecretDenied);
    assert_eq!(told, format!("secret other: {}", crate::secrets::TENANT_TEXT));
    assert!(bank.with(|of| of.calls.is_empty()));
    let over = CancellationToken::new();
    over.cancel();
    bank.with(|of| of.fails = None);
    assert!(matches!(secrets.acquire(&step(&["npm"]), &over).await, Err(AcquireError::Over) | Ok(_)));
}

#[tokio::test]
async fn revoke_goes_on_until_the_server_agrees() {
    let (dir, bank) = (tempfile::tempdir().unwrap(), Bank::new());
    let secrets = open(dir.path(), &bank, &Arc::default());
    acquire(&secrets, &["user"]).await.unwrap();
    bank.with(|of| of.fails = Some(("revoke_lease", 2)));
    let job = step(&[]).job;
    secrets.revoke_job(&job);
    secrets.revoke_job(&job);
    assert!(!secrets.until_closed(&job, Duration::from_millis(50)).await, "the backend is away");
    assert!(secrets.claims(&job).unwrap().contains("\"revokePending\":true"));
    until_closed(&secrets).await;
    assert_eq!((secrets.counts().revoke_failures.get(), secrets.counts().pending.get()), (2, 0));
    assert!(bank.with(|of| of.leases.is_empty()));
    assert!(!secrets.claims(&job).unwrap().contains("revokePending"));
}

#[tokio::test]
async fn what_rotates_is_taken_again_alone_and_by_a_token_of_its_own() {
    let (dir, bank) = (tempfile::tempdir().unwrap(), Bank::new());
    let secrets = open(dir.path(), &bank, &Arc::default());
    let first = acquire(&secrets, &["npm", "turning"]).await.unwrap();
    assert_eq!(
        (first.grants.len(), first.rotating.len(), first.rotates),
        (1, 1, Some(Duration::from_secs(30)))
    );
    bank.with(|of| of.password = "hunter2-second".to_owned());
    let again = secrets.acquire_again(&step(&["npm", "turning"]), &CancellationToken::new()).await.unwrap();
    let values: Vec<_> =
        again.values.iter().map(|(name, value)| (name.as_str(), value.expose_text().unwrap())).collect();
    assert_eq!(values, [("turning", "hunter2-second")]);
    assert_eq!((again.grants.len(), again.rotating.len()), (0, 1));
    // A lease that is short is good enough for what is taken again.
    bank.with(|of| of.token_max = Some(Duration::from_secs(120)));
    assert!(secrets.acquire_again(&step(&["turning"]), &CancellationToken::new()).await.is_ok());
    assert!(acquire(&secrets, &["npm"]).await.is_err());
}

#[tokio::test]
async fn renewal_comes_at_two_thirds_of_what_was_granted_and_again_soon_when_it_failed() {
    let (dir, bank) = (tempfile::tempdir().unwrap(), Bank::new());
    let secrets = open(dir.path(), &bank, &Arc::default());
    let id = acquire(&secrets, &["user"]).await.unwrap().grants[0];
    let until = UnixNanos(now().0 + 1_000_000_000_000);
    bank.with(|of| of.token_max = Some(Duration::from_secs(300)));
    let again = secrets.renew(id, until).await.unwrap();
    assert!((180..=200).contains(&again.as_secs()), "{again:?}");
    bank.with(|of| of.fails = Some(("renew", 1)));
    assert!(secrets.renew(id, until).await.unwrap() <= Duration::from_secs(5));
    assert_eq!(secrets.counts().renew_failures.get(), 1);
    bank.with(|of| of.token_max = None);
    bank.with(|of| of.lease = Some((SHORT, true, LIMIT * 3)));
    assert_eq!(secrets.renew(id, until).await, None, "it lives long enough");
}

#[tokio::test]
async fn server_that_the_operator_names_no_more_takes_back_what_it_gave() {
    let (dir, bank) = (tempfile::tempdir().unwrap(), Bank::new());
    let secrets = open(dir.path(), &bank, &Arc::default());
    acquire(&secrets, &["user"]).await.unwrap();
    secrets.take(NewRules(Rules::default()));
    assert!(acquire(&secrets, &["user"]).await.is_err());
    secrets.revoke_job(&step(&[]).job);
    until_closed(&secrets).await;
    assert!(bank.with(|of| of.tokens.is_empty() && of.leases.is_empty()));
}

/// The agent dies before and after each thing that it asks of the server, and another one comes: nothing is left, but for what
/// dies within seconds by itself.
#[test]
fn whenever_the_agent_dies_the_next_one_takes_everything_back() {
    for done in [false, true] {
        let mut deaths = 0;
        for at in 0.. {
            let (dir, bank) = (tempfile::tempdir().unwrap(), Bank::new());
            bank.with(|of| (of.dies, of.cascades) = (Some((at, done)), true));
            let lives = |work: fn(Arc<Secrets>) -> BoxFuture<'static, ()>| {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(1)
                    .enable_all()
                    .build()
                    .unwrap();
                let _context = runtime.enter();
                let secrets = open(dir.path(), &bank, &Arc::default());
                let (task, watched) = (runtime.spawn(work(secrets)), bank.clone());
                runtime.block_on(async move {
                    while !task.is_finished() && !watched.with(|of| of.dead) {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                });
                drop(_context);
                // As a kill: whatever was in the middle of something is gone.
                runtime.shutdown_timeout(Duration::from_secs(5));
            };
            lives(|secrets| {
                Box::pin(async move {
                    let acquired = acquire(&secrets, &ALL).await.unwrap();
                    secrets.handed_over(&acquired.ids().collect::<Vec<_>>()).await;
                    secrets.revoke_job(&step(&[]).job);
                    until_closed(&secrets).await;
                })
            });
            if !bank.with(|of| std::mem::take(&mut of.dead)) {
                assert!(at >= 8, "only {at} calls");
                break;
            }
            deaths += 1;
            bank.with(|of| of.dies = None);
            lives(|secrets| {
                Box::pin(async move {
                    secrets.open_grants().into_iter().for_each(|(id, _)| secrets.revoke(id));
                    until_closed(&secrets).await;
                })
            });
            let left = bank.with(|of| (of.tokens.clone(), of.leases.clone(), of.calls.clone()));
            assert!(left.1.is_empty(), "at {at}, done {done}: {left:?}");
            assert!(
                left.0.values().all(|(ttl, leases)| *ttl == SHORT && leases.is_empty()),
                "at {at}, done {done}: {left:?}"
            );
            assert!(left.0.is_empty() || at == 1 && done, "only what was not told: {left:?}");
        }
        assert!(deaths >= 8, "{deaths}");
    }
}

fn of_cluster(id: &str) -> Arc<Bank> {
    let bank = Bank::new();
    bank.with(|of| of.cluster = Some(id.to_owned()));
    bank
}

fn has_nothing(bank: &Bank) -> bool {
    bank.with(|of| of.tokens.is_empty() && of.leases.is_empty())
}

#[tokio::test]
async fn what_one_cluster_gave_is_never_taken_for_revoked_by_the_word_of_another() {
    let (dir, first, second) = (tempfile::tempdir().unwrap(), of_cluster("one"), of_cluster("two"));
    let job = step(&[]).job;
    let secrets = open(dir.path(), &first, &Arc::default());
    acquire(&secrets, &["user"]).await.unwrap();
    drop(secrets);
    // The next daemon knows another cluster alone by that name.
    let secrets = open(dir.path(), &second, &Arc::default());
    assert!(secrets.renew(secrets.open_grants()[0].0, UnixNanos(u64::MAX)).await.is_some());
    secrets.revoke_job(&job);
    assert!(!secrets.until_closed(&job, Duration::from_millis(300)).await && !has_nothing(&first));
    assert!(second.with(|of| of.calls.is_empty()), "it hears of no accessor that is not its own");
    // The operator names the right one again: the revoke that goes on finds it.
    secrets.take(rules_of(&first));
    until_closed(&secrets).await;
    assert!(has_nothing(&first));
}

#[tokio::test]
async fn server_that_says_no_more_which_cluster_it_is_is_not_the_one_that_did() {
    let (dir, bank) = (tempfile::tempdir().unwrap(), of_cluster("one"));
    let secrets = open(dir.path(), &bank, &Arc::default());
    acquire(&secrets, &["user"]).await.unwrap();
    bank.with(|of| (of.cluster, of.calls) = (None, Vec::new()));
    let job = step(&[]).job;
    secrets.revoke_job(&job);
    assert!(!secrets.until_closed(&job, Duration::from_millis(300)).await);
    assert!(bank.with(|of| of.calls.is_empty()));
    bank.with(|of| of.cluster = Some("one".to_owned()));
    until_closed(&secrets).await;
    assert!(has_nothing(&bank));
}

fn nameless() -> Arc<Bank> {
    let bank = Bank::new();
    bank.with(|of| of.cluster = None);
    bank
}

#[tokio::test]
async fn server_without_a_clusters_id_is_believed_when_it_knew_the_token_and_not_by_its_word() {
    let (dir, bank, other) = (tempfile::tempdir().unwrap(), nameless(), nameless());
    let job = step(&[]).job;
    let secrets = open(dir.path(), &bank, &Arc::default());
    acquire(&secrets, &["user"]).await.unwrap();
    drop(secrets);
    // Another one has the name, and says success to whatever it is asked to revoke.
    let secrets = open(dir.path(), &other, &Arc::default());
    secrets.revoke_job(&job);
    assert!(!secrets.until_closed(&job, Duration::from_millis(300)).await && !has_nothing(&bank));
    assert!(other.with(|of| of.calls.iter().all(|call| call == "knows") && !of.calls.is_empty()));
    assert!(secrets.claims(&job).unwrap().contains("\"revokePending\":true"));
    // Its backend is away when the token is gone already: it is known who has given the lease.
    bank.with(|of| of.fails = Some(("revoke_lease", 2)));
    secrets.take(rules_of(&bank));
    until_closed(&secrets).await;
    assert!(has_nothing(&bank));
}

#[tokio::test]
async fn token_that_nobody_knows_and_that_names_no_cluster_is_closed_when_its_time_is_over() {
    let (dir, bank) = (tempfile::tempdir().unwrap(), nameless());
    let secrets = open(dir.path(), &bank, &Arc::default());
    let id = acquire(&secrets, &["user"]).await.unwrap().grants[0];
    // As after a death between the revoke and the entry that says so.
    bank.with(|of| (of.tokens, of.leases) = Default::default());
    let (job, hour) = (step(&[]).job, Duration::from_secs(3600));
    let over = UnixNanos(now().0 - u64::try_from(hour.as_nanos()).unwrap());
    secrets.leases.renewed(id, UnixNanos(over.0 + 3_000_000_000)).await.unwrap();
    secrets.revoke(id);
    assert!(!secrets.until_closed(&job, Duration::from_millis(500)).await);
    let why = secrets
        .held(&crate::secrets::WantedLeases { limit: 9, ..Default::default() })
        .grants
        .remove(0)
        .last_error;
    assert!(why.as_ref().is_some_and(|why| why.contains("an hour after its time")), "{why:?}");
    until_closed(&secrets).await;
    assert!(now().0 > over.0 + 3_000_000_000);
}

#[tokio::test]
async fn time_of_what_names_no_cluster_is_written_down_before_it_lives_so_long() {
    let (dir, bank) = (tempfile::tempdir().unwrap(), nameless());
    let secrets = open(dir.path(), &bank, &Arc::default());
    let need = u64::try_from((LIMIT + Duration::from_secs(60)).as_nanos()).unwrap();
    let begun = now().0;
    // It is renewed, and nobody hears of it.
    bank.with(|of| of.hangs = Some("renew"));
    let taking = tokio::spawn({
        let secrets = secrets.clone();
        async move { acquire(&secrets, &["user"]).await }
    });
    let hung = |times| {
        let bank = bank.clone();
        async move {
            while bank.with(|of| of.calls.iter().filter(|call| *call == "renew").count() < times) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    };
    hung(1).await;
    let until = || secrets.open_grants()[0].1.until.0;
    assert!(until() > begun + need);
    bank.with(|of| of.hangs = None);
    let id = taking.await.unwrap().unwrap().grants[0];
    bank.with(|of| of.hangs = Some("renew"));
    let later = UnixNanos(begun + 3 * need);
    let renewing = tokio::spawn({
        let secrets = secrets.clone();
        async move { secrets.renew(id, later).await }
    });
    hung(2).await;
    assert_eq!(until(), later.0);
    bank.with(|of| of.hangs = None);
    renewing.await.unwrap();
}

#[tokio::test]
async fn client_before_a_reload_takes_back_what_it_gave() {
    let (dir, first, second) = (tempfile::tempdir().unwrap(), of_cluster("one"), of_cluster("two"));
    let secrets = open(dir.path(), &first, &Arc::default());
    acquire(&secrets, &["user"]).await.unwrap();
    for other in [&second, &of_cluster("three")] {
        secrets.take(rules_of(other));
    }
    secrets.revoke_job(&step(&[]).job);
    until_closed(&secrets).await;
    assert!(has_nothing(&first));
    // Nothing is open, and nobody takes anything: nobody who came before is kept.
    drop((first, second));
    secrets.take(rules_of(&Bank::new()));
    assert!(secrets.rules().before.is_empty());
}

#[tokio::test]
async fn reload_keeps_the_client_of_a_server_that_is_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = open(dir.path(), &Bank::new(), &Arc::default());
    let authority = rcgen::generate_simple_self_signed(["vault.corp.example".to_owned()]).unwrap();
    std::fs::write(dir.path().join("ca.pem"), authority.cert.pem()).unwrap();
    let load = |budget: &str| {
        let text = format!(
            "format = 1\n[server.main]\naddresses = [\"https://vault.corp.example\"]\nca = \"ca.pem\"\nbudget = \"{budget}\"\n\
             login.approle = {{ role_id = \"r\", secret_id = \"s\", wrapped = \"auth/approle/role/r/secret-id\" }}\n"
        );
        secrets.take(secrets.ready(&SecretsFile::parse(&text, dir.path()).unwrap()).unwrap());
        secrets.rules().servers[&name("main")].clone()
    };
    let first = load("30s");
    assert!(Arc::ptr_eq(&first, &load("30s")));
    let second = load("31s");
    assert!(!Arc::ptr_eq(&first, &second), "another configuration");
    let other = rcgen::generate_simple_self_signed(["vault.corp.example".to_owned()]).unwrap();
    std::fs::write(dir.path().join("ca.pem"), other.cert.pem()).unwrap();
    assert!(!Arc::ptr_eq(&second, &load("31s")), "another authority in the same file");
}

#[tokio::test]
async fn server_that_grants_no_time_at_all_is_not_asked_without_pause() {
    let (dir, bank) = (tempfile::tempdir().unwrap(), Bank::new());
    let secrets = open(dir.path(), &bank, &Arc::default());
    let id = acquire(&secrets, &["npm"]).await.unwrap().grants[0];
    bank.with(|of| of.token_max = Some(Duration::ZERO));
    let again = secrets.renew(id, UnixNanos(now().0 + 1_000_000_000_000)).await.unwrap();
    assert!(again >= Duration::from_secs(1), "{again:?}");
}

#[tokio::test]
async fn no_token_is_made_before_every_server_serves() {
    let (dir, bank, away) = (tempfile::tempdir().unwrap(), Bank::new(), Bank::new());
    let secrets = open(dir.path(), &bank, &Arc::default());
    let mut rules = Rules { mapping: secrets.rules().mapping.clone(), ..Rules::default() };
    let mut other = of_bank(KV, "password", None);
    if let crate::secrets::Source::Vault { server, .. } = &mut other.source {
        *server = name("remote");
    }
    rules.mapping.rules.insert((name("web"), name("far")), other);
    rules.servers = [("bank", &bank), ("remote", &away)]
        .map(|(of, bank)| (name(of), bank.clone() as Arc<dyn crate::secrets::Server>))
        .into();
    secrets.take(NewRules(rules));
    away.with(|of| of.fails = Some(("ready", 1)));
    assert!(acquire(&secrets, &["user", "far"]).await.is_err());
    assert_eq!(bank.with(|of| of.calls.join(" ")), "ready", "what it gives would age meanwhile");
    assert_eq!(acquire(&secrets, &["user", "far"]).await.unwrap().values.len(), 2);
}

#[tokio::test]
async fn what_is_to_be_revoked_is_not_renewed() {
    let (dir, bank) = (tempfile::tempdir().unwrap(), Bank::new());
    let secrets = open(dir.path(), &bank, &Arc::default());
    let id = acquire(&secrets, &["user"]).await.unwrap().grants[0];
    secrets.begin_revoking(id).await;
    bank.with(|of| of.calls.clear());
    assert_eq!(secrets.renew(id, UnixNanos(now().0 + 1_000_000_000_000)).await, None);
    assert!(bank.with(|of| of.calls.is_empty()));
}

#[tokio::test]
async fn client_that_a_reload_replaces_while_something_is_taken_from_it_takes_it_back() {
    let (dir, first, second) = (tempfile::tempdir().unwrap(), of_cluster("one"), of_cluster("two"));
    let secrets = open(dir.path(), &first, &Arc::default());
    first.with(|of| of.hangs = Some("mint"));
    let taking = tokio::spawn({
        let secrets = secrets.clone();
        async move { acquire(&secrets, &["user"]).await }
    });
    while first.with(|of| !of.calls.iter().any(|call| call == "mint")) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    secrets.take(rules_of(&second));
    first.with(|of| of.hangs = None);
    assert!(taking.await.unwrap().is_ok());
    secrets.revoke_job(&step(&[]).job);
    until_closed(&secrets).await;
    assert!(has_nothing(&first));
}

#[tokio::test]
async fn token_that_cannot_be_a_steps_is_taken_back_for_as_long_as_it_takes() {
    let (dir, bank) = (tempfile::tempdir().unwrap(), Bank::new());
    let secrets = open(dir.path(), &bank, &Arc::default());
    bank.with(|of| (of.unfit, of.fails) = (true, Some(("revoke", 2))));
    let error = acquire(&secrets, &["user"]).await.unwrap_err();
    assert!(error.reason().contains("no orphan"), "{error:?}");
    until_closed(&secrets).await;
    assert!(
        has_nothing(&bank) && bank.with(|of| of.calls.iter().filter(|call| *call == "revoke").count() == 3)
    );
}
