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

#[test]
fn file_with_another_mode_is_another_and_what_asked_nobody_is_looked_at_again_soon() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret-id");
    assert_eq!(mark(Some(&path)), None);
    std::fs::write(&path, "s").unwrap();
    let before = mark(Some(&path));
    std::thread::sleep(Duration::from_millis(20));
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    assert_ne!(mark(Some(&path)), before, "chmod is what the error asks for");

    let file = VaultError::File { field: "login.token.file", path, reason: "cannot be read".to_owned() };
    let login = VaultError::Login { method: "AppRole", status: 400, detail: Default::default() };
    let denied = VaultError::Denied { doing: "asking", path: "sys/health".to_owned() };
    for (error, wait) in [(file, TICK), (login, REFUSED_FOR), (denied, SERVES_FOR)] {
        assert_eq!(wait_after(&error), wait, "{error}");
    }
}
