use super::*;
use crate::secrets::testing::*;

#[tokio::test]
async fn client_that_nobody_needs_any_more_logs_out_and_all_do_at_the_end() {
    let (dir, heard) = (tempfile::tempdir().unwrap(), Arc::new(Heard::default()));
    let (first, second) = (Bank::new(), Bank::new());
    first.with(|of| of.cluster = Some("first".to_owned()));
    second.with(|of| of.cluster = Some("second".to_owned()));
    let secrets = open(dir.path(), &first, &heard);
    let acquired = acquire(&secrets, &["npm"]).await.unwrap();
    let ended = [&first, &second].map(|bank| bank.with(|of| of.ended.clone()));
    let ended = || ended.each_ref().map(|count| count.load(std::sync::atomic::Ordering::SeqCst));
    secrets.take(rules_of(&second));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(ended(), [0, 0], "it has given what is open");
    secrets.revoke_job(&step(&[]).job);
    assert!(secrets.until_closed(&step(&[]).job, Duration::from_secs(20)).await);
    assert!(acquired.ids().count() == 1 && first.with(|of| of.tokens.is_empty()));
    // Whoever has a client may be asking it something.
    drop(first);
    secrets.take(rules_of(&second));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(ended(), [1, 0]);
    second.with(|of| of.hangs = Some("end"));
    let begun = std::time::Instant::now();
    secrets.log_out().await;
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!(ended(), [1, 1]);
}
