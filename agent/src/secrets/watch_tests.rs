use super::*;
use crate::secrets::service::NewRules;
use crate::secrets::testing::*;

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let within = tokio::time::timeout(Duration::from_secs(60), async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(within.await.is_ok(), "{what}");
}

#[tokio::test(start_paused = true)]
async fn server_is_looked_at_from_the_start_and_what_becomes_of_it_is_a_gauge() {
    let (dir, bank, heard) = (tempfile::tempdir().unwrap(), Bank::new(), Arc::new(Heard::default()));
    bank.with(|of| of.fails = Some(("ready", 2)));
    let secrets = open(dir.path(), &bank, &heard);
    let up = || {
        let label = [("server", "bank".to_owned())];
        secrets.counts().up.get(&label).map(|gauge| gauge.get())
    };
    let watch = tokio::spawn(secrets.clone().watch());
    until("it is looked at without a step", || up() == Some(0)).await;
    until("it is looked at again", || up() == Some(1)).await;
    assert_eq!(bank.with(|of| of.calls.len()), 3);
    bank.with(|of| of.fails = Some(("ready", usize::MAX)));
    until("that it is away is noticed", || up() == Some(0)).await;
    // Another client under the name is looked at at once, and a name that is gone has no gauge.
    secrets.take(rules_of(&Bank::new()));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(up(), Some(1));
    secrets.take(NewRules(Default::default()));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(up(), None);
    watch.abort();
}
