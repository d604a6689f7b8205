//! Tokens: one orphan for each step, known afterwards by its accessor alone.

use super::answer::{Auth, life};
use super::call::Call;
use super::config::{ConfigError, JwtLogin, StepLogin, check_name};
use super::error::VaultError;
use super::fleet::Ask;
use super::lease::{Renewed, Revoked};
use super::value::Secret;
use super::{Data, Vault};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;
use vaultrs::api::token::requests::{
    CreateRoleTokenRequest, LookupTokenAccessorRequest, RenewTokenAccessorRequest, RevokeTokenAccessorRequest,
};

/// How long a new token lives unless it is renewed: what a crash before the journal leaves behind.
pub const MINT_TTL: Duration = Duration::from_secs(15);
/// A role of a login by JWT may give so much for a start.
const MINT_TTL_MAX: Duration = Duration::from_secs(60);
/// The longest token; those of Vault Enterprise have some hundred bytes.
const TOKEN_BYTES_MAX: usize = 8 << 10;

/// A token. Never printed; overwritten when dropped.
#[derive(Clone)]
pub struct Token(Secret);

impl Token {
    /// Takes one over: visible ASCII characters alone, since it stands in a header.
    pub fn new(secret: Secret) -> Option<Self> {
        let bytes = secret.expose();
        let fits = !bytes.is_empty() && bytes.len() <= TOKEN_BYTES_MAX;
        (fits && bytes.iter().all(u8::is_ascii_graphic)).then_some(Self(secret))
    }

    pub(super) fn expose(&self) -> &str {
        self.0.expose_text().unwrap_or_default()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

/// What stands for a token where it is renewed, looked up and revoked. It reads nothing, and goes into the journal; in
/// evidence stands its digest alone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Accessor(String);

impl Accessor {
    /// Takes one over: 1 to 256 visible ASCII characters.
    pub fn new(text: String) -> Option<Self> {
        let fits = (1..=256).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        fits.then_some(Self(text))
    }

    /// It.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Accessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Accessor(..)")
    }
}

impl TryFrom<String> for Accessor {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(text).ok_or("no accessor of a token")
    }
}

impl From<Accessor> for String {
    fn from(accessor: Accessor) -> Self {
        accessor.0
    }
}

/// For whom a token is; Vault's audit log shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepMeta {
    /// The job's id.
    pub job: String,
    /// The step's name.
    pub step: String,
    /// The project's name.
    pub project: String,
}

/// A new token of a step, to be journaled by its accessor and then renewed.
#[derive(Debug)]
pub struct Minted {
    /// It.
    pub token: Token,
    /// Its accessor.
    pub accessor: Accessor,
    /// How long it lives from now on, unless it is renewed: a minute at most.
    pub ttl: Duration,
    /// Its policies.
    pub policies: Vec<String>,
}

/// What is known of a token by its accessor.
#[derive(Debug, Clone)]
pub struct TokenInfo {
    /// How long it lives.
    pub ttl: Duration,
    /// How long it can live at all, from its making; none: no bound of its own. (A token role's bound does not show here:
    /// it caps renewals, see [`Renewed::covers`].)
    pub explicit_max_ttl: Option<Duration>,
    /// Whether it outlives whoever made it.
    pub orphan: bool,
    /// What was written to it when it was made.
    pub meta: HashMap<String, String>,
}

#[derive(Deserialize)]
struct Lookup {
    #[serde(default)]
    ttl: u64,
    #[serde(default)]
    explicit_max_ttl: u64,
    #[serde(default)]
    orphan: bool,
    #[serde(default)]
    meta: Option<HashMap<String, String>>,
}

impl Vault {
    /// Makes a step's token from a token role (none: the configured one), for [`MINT_TTL`].
    ///
    /// # Errors
    /// [`VaultError`]; [`VaultError::Answer`] if the role makes tokens that cannot be a step's: not orphans, batch
    /// tokens, with the policy `root`, not renewable.
    pub async fn mint(&self, role: Option<&str>, meta: &StepMeta) -> Result<Minted, VaultError> {
        let doing = "making a token for a step";
        let role = match (role, &self.config.step) {
            (Some(role), _) => role,
            (None, StepLogin::TokenRole { name }) => name,
            (None, StepLogin::Jwt(_) | StepLogin::Nowhere) => {
                let reason = "no token role is named";
                return Err(ConfigError::new("step.token_role", reason, "name one").into());
            }
        };
        check_name("token_role", role)?;
        let request = CreateRoleTokenRequest {
            role_name: role.to_owned(),
            display_name: Some("ampoule-step".to_owned()),
            meta: Some(meta.as_map()),
            renewable: Some(true),
            ttl: Some(seconds(MINT_TTL)),
            ..CreateRoleTokenRequest::default()
        };
        let reply = self.own(doing, &request).await?;
        let auth = reply.parse::<Data>(doing)?.auth.ok_or_else(|| without(doing, "auth"))?;
        self.fit(doing, auth).await
    }

    /// A step's own login, with a token that the agent signed for it. `role`: another one than the configured.
    ///
    /// # Errors
    /// As [`Vault::mint`]; [`VaultError::Login`] if its claims do not fit the role.
    pub async fn login_step(&self, role: Option<&str>, jwt: &Secret) -> Result<Minted, VaultError> {
        let doing = "a step's login";
        let StepLogin::Jwt(login) = &self.config.step else {
            let reason = "steps do not log in by themselves";
            return Err(ConfigError::new("step", reason, "configure step.jwt").into());
        };
        let login = JwtLogin { role: role.unwrap_or(&login.role).to_owned(), ..login.clone() };
        check_name("step.jwt.role", &login.role)?;
        let auth = self.login_by_jwt(&login, jwt, self.budget()).await?;
        self.fit(doing, auth).await
    }

    /// A token that cannot be a step's is taken back at once: by the agent, since its own policies need not let it do that.
    async fn fit(&self, doing: &'static str, auth: Auth) -> Result<Minted, VaultError> {
        let (accessor, ttl) = (auth.accessor.clone(), life(auth.lease_duration));
        let reason = match minted(auth) {
            Ok(minted) => return Ok(minted),
            Err(reason) => reason,
        };
        // A batch token has no accessor, and nobody can revoke it.
        if let Some(accessor) = Accessor::new(accessor)
            && let Err(error) = self.revoke_accessor(&accessor).await
        {
            let error = crate::chain::chain(&error);
            tracing::warn!(error, "a token that cannot be a step's is not taken back yet");
            return Err(VaultError::Unfit { doing, reason, accessor, ttl });
        }
        Err(VaultError::Answer { doing, reason })
    }

    /// Prolongs a token to `ttl` from now. Vault may grant less: see [`Renewed::covers`].
    ///
    /// # Errors
    /// [`VaultError`]; [`VaultError::Missing`] if it is none any more.
    pub async fn renew_accessor(&self, accessor: &Accessor, ttl: Duration) -> Result<Renewed, VaultError> {
        let doing = "prolonging a step's token";
        let accessor = accessor.as_str().to_owned();
        let request = RenewTokenAccessorRequest { accessor, increment: Some(seconds(ttl)) };
        let reply = self.own(doing, &request).await?;
        let auth = reply.parse::<Data>(doing)?.auth.ok_or_else(|| without(doing, "auth"))?;
        Ok(Renewed { ttl: life(auth.lease_duration), renewable: auth.renewable })
    }

    /// Ends a token and all its leases. A token that is none any more has ended.
    ///
    /// # Errors
    /// [`VaultError`]: it may still live; try again.
    pub async fn revoke_accessor(&self, accessor: &Accessor) -> Result<Revoked, VaultError> {
        let doing = "revoking a step's token";
        let request = RevokeTokenAccessorRequest { accessor: accessor.as_str().to_owned() };
        match self.own(doing, &request).await {
            Ok(_) => Ok(Revoked::Now),
            Err(error) if is_unknown_accessor(&error) => Ok(Revoked::Unknown),
            Err(error) => Err(error),
        }
    }

    /// What a token is. None: there is none any more.
    ///
    /// # Errors
    /// [`VaultError`].
    pub async fn lookup_accessor(&self, accessor: &Accessor) -> Result<Option<TokenInfo>, VaultError> {
        let doing = "looking up a step's token";
        let request = LookupTokenAccessorRequest { accessor: accessor.as_str().to_owned() };
        let reply = match self.own(doing, &request).await {
            Ok(reply) => reply,
            Err(error) if is_unknown_accessor(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let found: Lookup = reply.parse(doing)?.data.ok_or_else(|| without(doing, "data"))?;
        let bound = life(found.explicit_max_ttl);
        Ok(Some(TokenInfo {
            ttl: life(found.ttl),
            explicit_max_ttl: (!bound.is_zero()).then_some(bound),
            orphan: found.orphan,
            meta: found.meta.unwrap_or_default(),
        }))
    }

    /// What a token may do, by path: `create`, `read`, `update`, `delete`, `list`, `sudo`, `deny`, `root`. In the
    /// order of the paths.
    ///
    /// # Errors
    /// [`VaultError`].
    pub async fn capabilities(
        &self,
        token: &Token,
        paths: &[&str],
    ) -> Result<Vec<(String, Vec<String>)>, VaultError> {
        #[derive(Serialize)]
        struct Body<'a> {
            paths: &'a [&'a str],
        }
        let doing = "asking what a token may do";
        let call = Call::post("sys/capabilities-self".to_owned(), &Body { paths });
        let ask = Ask { doing, token: Some(token), once: false, budget: self.budget() };
        let reply = self.fleet.send(ask, &call).await?;
        if !reply.is_success() {
            return Err(reply.error(doing, "sys/capabilities-self", true));
        }
        let found: HashMap<String, serde_json::Value> =
            reply.parse(doing)?.data.ok_or_else(|| without(doing, "data"))?;
        let of = |path: &&str| {
            let list = found.get(*path).and_then(serde_json::Value::as_array);
            let names = list.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned));
            ((*path).to_owned(), names.collect())
        };
        Ok(paths.iter().map(of).collect())
    }
}

impl StepMeta {
    fn as_map(&self) -> HashMap<String, String> {
        let pairs = [("job", &self.job), ("step", &self.step), ("project", &self.project)];
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value.clone())).collect()
    }
}

/// The token of an answer, if it can be a step's; else why not.
fn minted(auth: Auth) -> Result<Minted, String> {
    let unfit = Err::<Minted, String>;
    let policies = auth.policies.unwrap_or_default();
    if auth.token_type != "service" {
        return unfit(format!(
            "a {} token cannot be revoked; set token_type = service on the role",
            if auth.token_type.is_empty() { "nameless" } else { &auth.token_type }
        ));
    }
    if !auth.orphan {
        return unfit(
            "it would die with the agent's own token; set orphan = true on the token role".to_owned(),
        );
    }
    if policies.iter().any(|policy| policy == "root") {
        return unfit(
            "it has the policy root, and may do everything; set allowed_policies on the role".to_owned(),
        );
    }
    let ttl = life(auth.lease_duration);
    if !auth.renewable || ttl.is_zero() {
        return unfit("it cannot be renewed; set renewable = true on the role".to_owned());
    }
    if ttl > MINT_TTL_MAX {
        return unfit(format!(
            "it lives for {ttl:?} although nothing was journaled yet; set token_ttl = {} on the role and let \
             token_max_ttl bound its renewals",
            seconds(MINT_TTL)
        ));
    }
    let (Some(token), Some(accessor)) = (Token::new(auth.client_token), Accessor::new(auth.accessor)) else {
        return unfit("its token or accessor is none".to_owned());
    };
    Ok(Minted { token, accessor, ttl, policies })
}

/// Whether a server says that it knows no such token. (What is not known for sure has not ended: a 404 is also what a proxy says,
/// and who does not know the namespace.)
fn is_unknown_accessor(error: &VaultError) -> bool {
    match error {
        VaultError::Missing { detail, .. } | VaultError::Refused { status: 400, detail, .. } => {
            detail.shown().contains("invalid accessor")
        }
        _ => false,
    }
}

pub(super) fn without(doing: &'static str, part: &str) -> VaultError {
    VaultError::Answer { doing, reason: format!("it has no {part}") }
}

/// A duration as Vault reads it: whole seconds, rounded up.
pub(super) fn seconds(duration: Duration) -> String {
    let whole = duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0));
    format!("{whole}s")
}
