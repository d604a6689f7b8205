//! Tokens that the agent signs (here: the test), and a server that believes their key.

use crate::vault::Rig;
use ampoule_agent::vault::{Assertions, Secret};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::KeyPair;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) struct Signer(pub(crate) KeyPair);

impl Signer {
    /// A key, and the roles of `examples/vault/` for it.
    pub(crate) fn new(rig: &Rig) -> Self {
        let signer = Self(KeyPair::generate().unwrap());
        rig.ask("POST", "sys/auth/jwt", Some(&json!({"type": "jwt"}))).unwrap();
        let config = json!({"jwt_validation_pubkeys": [signer.0.public_key_pem()], "bound_issuer": "https://agent.example"});
        rig.ask("POST", "auth/jwt/config", Some(&config)).unwrap();
        for (role, file) in
            [("ampoule-agent", "jwt-role-agent.json"), ("ampoule-step-app", "jwt-role-step-app.json")]
        {
            rig.ask("POST", &format!("auth/jwt/role/{role}"), Some(&rig.example_json(file).unwrap()))
                .unwrap();
        }
        signer
    }

    /// Signs these claims with the usual ones.
    pub(crate) fn sign(&self, claims: &Value) -> Secret {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let mut all = json!({"iss": "https://agent.example", "iat": now, "nbf": now - 5, "exp": now + 300});
        all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        let key = EncodingKey::from_ec_der(self.0.serialized_der());
        Secret::new(encode(&Header::new(Algorithm::ES256), &all, &key).unwrap().into_bytes())
    }

    pub(crate) fn step(&self, change: &Value) -> Secret {
        let mut claims = json!({
            "sub": "ampoule:job:0199:publish", "aud": "vault", "job": "0199", "step": "publish", "project": "app",
            "ref": "refs/heads/main",
        });
        claims.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        self.sign(&claims)
    }
}

impl Assertions for Signer {
    fn assertion(&self, audience: &str) -> Result<Secret, String> {
        Ok(self.sign(&json!({"sub": "ampoule:agent", "aud": audience})))
    }
}
