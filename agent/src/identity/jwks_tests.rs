use super::*;
use crate::identity::tests::Signer;
use std::sync::Mutex;

/// Answers with what it was given, and counts.
struct Answers(Mutex<(Result<Vec<u8>, String>, usize)>);

impl Answers {
    fn set(&self, answer: Result<Vec<u8>, String>) {
        self.0.lock().unwrap().0 = answer;
    }

    fn asked(&self) -> usize {
        self.0.lock().unwrap().1
    }
}

impl FetchKeys for Answers {
    fn fetch<'a>(
        &'a self,
        _: &'a str,
        _: usize,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, String>> + Send + 'a>> {
        let mut answers = self.0.lock().unwrap();
        answers.1 += 1;
        Box::pin(std::future::ready(answers.0.clone()))
    }
}

fn set(first: Result<Vec<u8>, String>) -> (Arc<Answers>, KeySet) {
    let answers = Arc::new(Answers(Mutex::new((first, 0))));
    let keys = KeySet::new(KeySource::Https("https://i.example/keys".to_owned()), answers.clone());
    (answers, keys)
}

#[tokio::test(start_paused = true)]
async fn keys_are_kept_read_again_for_a_new_one_and_used_for_an_hour_without_their_issuer() {
    let (a, b) = (Signer::new("a"), Signer::new("b"));
    let (answers, keys) = set(Ok(Signer::jwks(&[&a])));
    let has = async |id: &'static str| keys.key(Some(id), Algorithm::ES256).await.is_ok();
    assert!(has("a").await && has("a").await);
    assert_eq!(answers.asked(), 1);

    // Rotation: the new key is found, but no sooner than the pause allows, whoever asks how often.
    answers.set(Ok(Signer::jwks(&[&a, &b])));
    for _ in 0..100 {
        assert!(!has("b").await && has("a").await);
    }
    assert_eq!(answers.asked(), 1);
    tokio::time::advance(BETWEEN).await;
    assert!(has("b").await);
    assert_eq!(answers.asked(), 2);

    // The old key goes when its set is no longer fresh.
    answers.set(Ok(Signer::jwks(&[&b])));
    assert!(has("a").await);
    tokio::time::advance(FRESH).await;
    assert!(!has("a").await && has("b").await);

    // The issuer is away: its keys serve for an hour, and not for longer.
    answers.set(Err("away".to_owned()));
    tokio::time::advance(FRESH).await;
    assert!(has("b").await);
    tokio::time::advance(STALE_MAX).await;
    assert!(!has("b").await);
    answers.set(Ok(Signer::jwks(&[&b])));
    tokio::time::advance(BETWEEN).await;
    assert!(has("b").await);
}

#[tokio::test(start_paused = true)]
async fn key_is_one_that_is_meant_for_it() {
    let (a, b) = (Signer::new("a"), Signer::new("b"));
    let text = String::from_utf8(Signer::jwks(&[&a])).unwrap();
    for (what, from, to, fits) in [
        ("as it is", "", "", true),
        ("for encryption", "\"kty\"", "\"use\":\"enc\",\"kty\"", false),
        ("for another algorithm", "\"alg\":\"ES256\"", "\"alg\":\"ES384\"", false),
        ("of another name", "\"kid\":\"a\"", "\"kid\":\"A\"", false),
    ] {
        let changed = if from.is_empty() { text.clone() } else { text.replace(from, to) };
        assert_eq!(changed == text, from.is_empty(), "{what}: {text}");
        let (_, keys) = set(Ok(changed.into_bytes()));
        assert_eq!(keys.key(Some("a"), Algorithm::ES256).await.is_ok(), fits, "{what}");
    }
    let (_, two) = set(Ok(Signer::jwks(&[&a, &b])));
    assert!(two.key(None, Algorithm::ES256).await.is_err(), "which one?");
    let (_, same) = set(Ok(Signer::jwks(&[&a, &a])));
    assert!(same.key(Some("a"), Algorithm::ES256).await.is_err(), "two of one name");
    let (_, one) = set(Ok(Signer::jwks(&[&a])));
    assert!(one.key(None, Algorithm::ES256).await.is_ok());
    for bad in [&b""[..], b"{}", b"{\"keys\":[]}", b"[]"] {
        assert!(set(Ok(bad.to_vec())).1.key(None, Algorithm::ES256).await.is_err());
    }
    let many: Vec<&Signer> = std::iter::repeat_n(&a, KEYS_MAX + 1).collect();
    assert!(set(Ok(Signer::jwks(&many))).1.key(Some("a"), Algorithm::ES256).await.is_err());
}
