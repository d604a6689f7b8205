//! Bearer tokens: signed JSON Web Tokens (RFC 7519) of issuers that the operator has named.

use super::file::Issuer;
use super::jwks::KeySet;
use crate::job::{Caller, Means};
use jsonwebtoken::{Validation, decode, decode_header};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The longest token.
const TOKEN_BYTES_MAX: usize = 16 << 10;
/// Clocks may differ by so many seconds.
const LEEWAY_SECONDS: u64 = 30;
/// The longest life of a token, in seconds.
const LIFE_SECONDS_MAX: u64 = 24 * 60 * 60;
/// The longest subject.
const SUBJECT_BYTES_MAX: usize = 1024;

/// Why a token stands for nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is none.
    #[error("it is no signed JSON Web Token: {0}")]
    Malformed(String),
    /// Nobody of this name is known.
    #[error("its issuer {0:?} is not known")]
    Issuer(String),
    /// The issuer does not sign with it.
    #[error("it is signed with {0}, which is not allowed for its issuer")]
    Algorithm(String),
    /// The key.
    #[error("its key: {0}")]
    Key(String),
    /// Signature, audience, or time.
    #[error("{0}")]
    Refused(String),
}

#[derive(Deserialize)]
struct Issued {
    iss: String,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: u64,
    nbf: u64,
    #[serde(flatten)]
    all: BTreeMap<String, serde_json::Value>,
}

/// Who a token stands for.
///
/// # Errors
/// [`TokenError`].
pub(super) async fn caller(
    token: &str,
    issuers: &[Issuer],
    keys: &BTreeMap<String, Arc<KeySet>>,
    now: u64,
) -> Result<Caller, TokenError> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(TokenError::Malformed(format!("longer than {TOKEN_BYTES_MAX} bytes")));
    }
    let header = decode_header(token).map_err(|e| TokenError::Malformed(e.to_string()))?;
    if header.crit.is_some() || header.enc.is_some() || header.zip.is_some() {
        return Err(TokenError::Malformed("an extension that is not understood".to_owned()));
    }
    // Who it says that it is from decides only whose key must have signed it.
    let issued: Issued = jsonwebtoken::dangerous::insecure_decode_claims(token)
        .map_err(|e| TokenError::Malformed(e.to_string()))?;
    let unknown = || TokenError::Issuer(issued.iss.chars().take(200).collect());
    let issuer = issuers.iter().find(|issuer| issuer.issuer == issued.iss).ok_or_else(unknown)?;
    let keys = keys.get(&issuer.issuer).ok_or_else(unknown)?;
    if !issuer.algorithms.contains(&header.alg) {
        return Err(TokenError::Algorithm(format!("{:?}", header.alg)));
    }
    let key = keys.key(header.kid.as_deref(), header.alg).await.map_err(TokenError::Key)?;
    let mut validation = Validation::new(header.alg);
    validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud", "sub"]);
    validation.set_issuer(&[&issuer.issuer]);
    validation.set_audience(&[&issuer.audience]);
    validation.validate_nbf = true;
    validation.leeway = LEEWAY_SECONDS;
    let claims =
        decode::<Claims>(token, &key, &validation).map_err(|e| TokenError::Refused(e.to_string()))?.claims;
    let refused = |reason: &str| Err(TokenError::Refused(reason.to_owned()));
    // The library has looked at the time; these hold whatever it takes for one.
    if claims.exp.saturating_add(LEEWAY_SECONDS) < now || claims.nbf > now.saturating_add(LEEWAY_SECONDS) {
        return refused("it is not of this time");
    }
    if claims.exp.saturating_sub(claims.nbf) > LIFE_SECONDS_MAX {
        return refused("it is good for more than a day; let it be issued for less");
    }
    if claims.sub.is_empty()
        || claims.sub.len() > SUBJECT_BYTES_MAX
        || claims.sub.chars().any(char::is_control)
    {
        return refused("its subject is none");
    }
    let mut shown: BTreeMap<_, _> =
        claims.all.into_iter().filter(|(name, _)| issuer.claims.contains(name)).collect();
    shown.insert("iss".to_owned(), issuer.issuer.clone().into());
    shown.insert("sub".to_owned(), claims.sub.clone().into());
    Ok(Caller { means: Means::Token, subject: format!("{}#{}", issuer.issuer, claims.sub), claims: shown })
}
