use super::*;
use crate::secrets::testing::*;
use std::sync::Arc;

const KINDS: [&str; 5] = ["ready", "mint", "renew", "read", "renew_lease"];

fn rig(
    wait: Duration,
    fails: (&'static str, usize),
) -> (tempfile::TempDir, Arc<Bank>, Arc<super::super::Secrets>) {
    let (dir, bank, heard) = (tempfile::tempdir().unwrap(), Bank::new(), Arc::new(Heard::default()));
    bank.with(|of| (of.wait, of.fails, of.cascades) = (wait, Some(fails), true));
    let secrets = open(dir.path(), &bank, &heard);
    (dir, bank, secrets)
}

#[tokio::test]
async fn step_waits_for_a_server_whatever_call_it_fails_and_what_was_taken_in_vain_is_taken_back() {
    for kind in KINDS {
        let (_dir, bank, secrets) = rig(Duration::from_secs(20), (kind, 3));
        let begun = Instant::now();
        let acquired =
            acquire(&secrets, &["password", "npm"]).await.unwrap_or_else(|e| panic!("{kind}: {e:?}"));
        assert_eq!(acquired.values.len(), 2, "{kind}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{kind}: {:?}", begun.elapsed());
        let grants: Vec<_> = acquired.ids().collect();
        let until = Instant::now() + Duration::from_secs(10);
        while bank.with(|of| of.tokens.len()) > 1 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let open: Vec<_> = secrets.open_grants().into_iter().map(|(id, _)| id).collect();
        assert_eq!((bank.with(|of| of.tokens.len()), open), (1, grants), "{kind}");
    }
}

#[tokio::test]
async fn step_waits_as_long_as_was_configured_and_then_says_why() {
    let wait = Duration::from_millis(1500);
    for kind in KINDS {
        let (_dir, _bank, secrets) = rig(wait, (kind, usize::MAX));
        let begun = Instant::now();
        let error = acquire(&secrets, &["password"]).await.unwrap_err();
        let took = begun.elapsed();
        assert!(took + Duration::from_millis(100) >= wait && took < wait * 2, "{kind}: {took:?}");
        for text in ["server bank", "sealed", "1.5s in all"] {
            assert!(error.reason().contains(text), "{kind}: {}", error.reason());
        }
    }
}

#[tokio::test]
async fn step_that_is_over_and_a_rule_that_is_gone_end_the_wait() {
    let (_dir, _bank, secrets) = rig(Duration::from_secs(20), ("ready", usize::MAX));
    let over = tokio_util::sync::CancellationToken::new();
    let (waits, step) = (secrets.clone(), step(&["password"]));
    let (of, cancelled) = (step.clone(), over.clone());
    let waiting = tokio::spawn(async move { waits.acquire(&of, &cancelled).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished());
    over.cancel();
    assert!(matches!(waiting.await.unwrap(), Err(AcquireError::Over)));

    let waits = secrets.clone();
    let waiting = tokio::spawn(async move { waits.acquire(&step, &Default::default()).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    secrets.take(rules_of(&Bank::new()));
    let denied = tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
    assert!(matches!(denied, Err(AcquireError::Denied(_))), "{denied:?}");
}

#[test]
fn no_wait_is_longer_than_the_runners_and_a_rotations_is_short() {
    let times = Times { wait: Duration::from_secs(3600), request: Duration::from_secs(5) };
    let new = Waiting::of_a_new_step();
    assert!(new.whole(times) < Duration::from_secs(SECRETS_WAIT_SECONDS));
    assert!(new.to_serve(times) <= Instant::now() + times.request, "it is soon said what is waited for");
    assert_eq!(Waiting::of_a_rotation().whole(times), ROTATION_MAX);
}

#[tokio::test(start_paused = true)]
async fn why_is_what_the_last_try_said_in_which_the_server_was_asked() {
    let times = Times { wait: Duration::from_secs(1), request: Duration::from_millis(100) };
    let server = Name::parse("bank").unwrap();
    let away = |reason: &str, was_asked| AcquireError::Away {
        server: server.clone(),
        reason: reason.to_owned(),
        times,
        was_asked,
    };
    let (mut waiting, step) = (Waiting::of_a_new_step(), step(&["password"]));
    waiting.after(&step, away("is sealed after 3 tries", true)).await.unwrap();
    tokio::time::sleep(times.wait).await;
    let error = waiting.after(&step, away("is failing after 0 tries", false)).await.unwrap_err();
    assert_eq!(error.reason(), "is sealed after 3 tries; it was waited for, for 1s in all");
}
