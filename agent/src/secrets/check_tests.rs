use super::*;
use crate::secrets::testing::*;

#[tokio::test]
async fn check_refuses_a_value_of_this_host_as_the_hand_over_does() {
    use super::FindingState::{Failed, Ok as Good};
    let (dir, bank, heard) = (tempfile::tempdir().unwrap(), Bank::new(), Arc::new(Heard::default()));
    let secrets = open(dir.path(), &bank, &heard);
    let long = "x".repeat(ampoule_spec::SECRET_BYTES_MAX + 1);
    for (value, state) in
        [("12345678", Good), ("123         \n", Failed), ("1234567\n", Failed), (&long, Failed)]
    {
        std::fs::write(dir.path().join("value"), value).unwrap();
        let checked = secrets.look_at_servers(None).await.unwrap();
        let local = checked.rules.iter().find(|rule| rule.name.as_str() == "local").unwrap();
        assert_eq!(local.finding.state, state, "{} bytes: {local:?}", value.len());
        assert_eq!(acquire(&secrets, &["local"]).await.is_ok(), state == Good, "{} bytes", value.len());
    }
}
