//! A server that outlives the agent, for tests of what the agent asks of it.

use super::identity::Identity;
use super::judge::{Asks, Tried};
use super::leases::Leases;
use super::mapping::{Mapping, Rule, Source};
use super::server::{Server, Times};
use super::service::{Counts, NewRules, Options, Rules, Secrets};
use super::{AcquireError, Acquired, Step};
use crate::audit::{AuditError, AuditEvent};
use crate::audit_sink::{AuditSink, Refused};
use crate::job::{Caller, Means};
use crate::vault::{
    Accessor, Data, Lease, LeaseId, Minted, Read, Renewed, Revoked, Secret, Secrets as Found, ServerState,
    StepMeta, Token, VaultError,
};
use ampoule_journal::Medium;
use ampoule_spec::{Delivery, JobId, Name};
use futures_util::future::BoxFuture;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub(crate) const SHORT: Duration = Duration::from_secs(15);
pub(crate) const LIMIT: Duration = Duration::from_secs(600);

/// A server that outlives the agent, and an agent that dies at a call of the test's choice.
#[derive(Debug, Default)]
pub(crate) struct Bank(Mutex<Accounts>);

#[derive(Debug, Default)]
pub(crate) struct Accounts {
    /// By accessor: how long it lives, and its leases.
    pub(crate) tokens: BTreeMap<String, (Duration, Vec<String>)>,
    pub(crate) leases: BTreeMap<String, Duration>,
    pub(crate) calls: Vec<String>,
    /// At which call the agent dies, and whether the call was done.
    pub(crate) dies: Option<(usize, bool)>,
    pub(crate) dead: bool,
    /// So many calls of this kind fail.
    pub(crate) fails: Option<(&'static str, usize)>,
    /// What it says when a call fails; none: that it is sealed.
    pub(crate) says: Option<String>,
    pub(crate) token_max: Option<Duration>,
    pub(crate) lease: Option<(Duration, bool, Duration)>,
    pub(crate) password: String,
    /// How long a new step waits for it.
    pub(crate) wait: Duration,
    /// How long each call takes.
    pub(crate) slow: Duration,
    /// Its tokens cannot be a step's, and are not taken back.
    pub(crate) unfit: bool,
    /// A call of this kind is done and not answered.
    pub(crate) hangs: Option<&'static str>,
    /// Which one it says it is; none: it does not.
    pub(crate) cluster: Option<String>,
    /// How often the agent has logged out for good; to be asked when nobody else has the bank any more.
    pub(crate) ended: Arc<AtomicUsize>,
    /// Whether a token's leases go with it at once. With a backend that is away they do not.
    pub(crate) cascades: bool,
}

impl Bank {
    pub(crate) fn new() -> Arc<Self> {
        let lease = Some((Duration::from_secs(60), true, LIMIT * 2));
        let password = "hunter2-first".to_owned();
        let cluster = Some("first/".to_owned());
        Arc::new(Self(Mutex::new(Accounts { lease, password, cluster, ..Accounts::default() })))
    }

    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut Accounts) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn call<T>(
        &self,
        what: &'static str,
        work: impl FnOnce(&mut Accounts) -> T,
    ) -> Result<T, VaultError> {
        enum Next<T> {
            Done(T),
            Failed,
            Dead,
        }
        let next = self.with(|of| {
            let number = of.calls.len();
            of.calls.push(what.to_owned());
            let dies = of.dies.filter(|(at, _)| *at == number);
            of.dead |= dies.is_some();
            if dies == Some((number, false)) {
                return Next::Dead;
            }
            if let Some((kind, left)) = &mut of.fails
                && *kind == what
                && *left > 0
            {
                *left -= 1;
                return Next::Failed;
            }
            let done = work(of);
            if dies.is_some() { Next::Dead } else { Next::Done(done) }
        });
        tokio::time::sleep(self.with(|of| of.slow)).await;
        while self.with(|of| of.hangs == Some(what)) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        match next {
            Next::Done(done) => Ok(done),
            Next::Failed => Err(match self.with(|of| of.says.clone()) {
                Some(says) => VaultError::Refused {
                    doing: what,
                    path: what.to_owned(),
                    status: 400,
                    detail: says.into(),
                },
                None => VaultError::Unavailable {
                    doing: what,
                    address: "https://bank".to_owned(),
                    state: ServerState::Sealed,
                    tries: 1,
                    reason: String::new(),
                },
            }),
            Next::Dead => std::future::pending().await,
        }
    }
}

pub(crate) type Answer<'a, T> = BoxFuture<'a, Result<T, VaultError>>;

impl Server for Bank {
    fn ready(&self) -> Answer<'_, ()> {
        Box::pin(self.call("ready", |_| ()))
    }

    fn cluster(&self) -> Answer<'_, Option<String>> {
        Box::pin(async { Ok(self.with(|of| of.cluster.clone())) })
    }

    fn end(&self) -> Answer<'_, ()> {
        Box::pin(self.call("end", |of| {
            of.ended.fetch_add(1, Ordering::SeqCst);
        }))
    }

    fn times(&self) -> Times {
        Times { wait: self.with(|of| of.wait), request: Duration::from_secs(5) }
    }

    fn mint<'a>(&'a self, _: &'a Step, _: &'a Identity) -> Answer<'a, Minted> {
        let minted = self.call("mint", |of| {
            let accessor = format!("accessor-{}", of.calls.len());
            of.tokens.insert(accessor.clone(), (SHORT, Vec::new()));
            let token = Token::new(Secret::new(accessor.clone().into_bytes())).unwrap();
            Minted { token, accessor: Accessor::new(accessor).unwrap(), ttl: SHORT, policies: Vec::new() }
        });
        Box::pin(async {
            let Minted { accessor, ttl, .. } = match minted.await {
                Ok(minted) if !self.with(|of| of.unfit) => return Ok(minted),
                other => other?,
            };
            Err(VaultError::Unfit { doing: "mint", reason: "no orphan".to_owned(), accessor, ttl })
        })
    }

    fn renew<'a>(&'a self, accessor: &'a Accessor, ttl: Duration) -> Answer<'a, Renewed> {
        Box::pin(self.call("renew", move |of| {
            let ttl = ttl.min(of.token_max.unwrap_or(ttl));
            of.tokens.get_mut(accessor.as_str()).unwrap().0 = ttl;
            Renewed { ttl, renewable: true }
        }))
    }

    fn read<'a>(&'a self, _: &'a Token, what: &'a Read) -> Answer<'a, Found> {
        Box::pin(self.call("read", move |of| {
            let (name, number) = (what.path().unwrap(), of.calls.len());
            let text = serde_json::json!({ "username": format!("user-of-ro-{number}"), "password": of.password, "short": "1234567" });
            let data: Data = serde_json::from_str(&text.to_string()).unwrap();
            let lease = of.lease.filter(|_| what.is_dynamic()).map(|(duration, renewable, _)| {
                let id = format!("{name}/{number}");
                of.leases.insert(id.clone(), duration);
                of.tokens.values_mut().last().unwrap().1.push(id.clone());
                Lease { id: LeaseId::new(id).unwrap(), duration, renewable }
            });
            Found { data, lease, version: None, expires_at: None }
        }))
    }

    fn renew_lease<'a>(&'a self, lease: &'a LeaseId, ttl: Duration) -> Answer<'a, Renewed> {
        Box::pin(self.call("renew_lease", move |of| {
            let ttl = ttl.min(of.lease.unwrap().2);
            of.leases.insert(lease.as_str().to_owned(), ttl);
            Renewed { ttl, renewable: true }
        }))
    }

    fn knows<'a>(&'a self, accessor: &'a Accessor) -> Answer<'a, bool> {
        Box::pin(self.call("knows", move |of| of.tokens.contains_key(accessor.as_str())))
    }

    fn revoke<'a>(&'a self, accessor: &'a Accessor) -> Answer<'a, Revoked> {
        Box::pin(self.call("revoke", move |of| {
            let Some((_, leases)) = of.tokens.remove(accessor.as_str()) else { return Revoked::Unknown };
            if of.cascades {
                for lease in &leases {
                    of.leases.remove(lease);
                }
            }
            Revoked::Now
        }))
    }

    fn revoke_lease<'a>(&'a self, lease: &'a LeaseId) -> Answer<'a, Revoked> {
        Box::pin(self.call("revoke_lease", move |of| {
            of.leases.remove(lease.as_str()).map_or(Revoked::Unknown, |_| Revoked::Now)
        }))
    }

    fn token_role(&self) -> Option<&str> {
        None
    }

    fn preflight<'a>(&'a self, _: &'a Asks, _: &'a StepMeta) -> BoxFuture<'a, Tried> {
        Box::pin(std::future::ready(Tried::Away(Vec::new())))
    }
}

/// A disk whose syncs hang while a test wants it so; not for ever, so that a test that waits for one fails.
#[derive(Default)]
pub(crate) struct Disk {
    now: Mutex<Now>,
    changed: Condvar,
}

#[derive(Default)]
struct Now {
    hangs: bool,
    /// In a sync that hangs, now or before.
    hung: bool,
    syncs: usize,
    /// The most bytes of a write that there is room for.
    room: Option<usize>,
}

/// How long a sync hangs at most.
pub(crate) const HANGS: Duration = Duration::from_secs(10);

impl Disk {
    /// Has syncs hang from now on, or no more.
    pub(crate) fn hang(&self, hangs: bool) {
        let mut now = self.now.lock().unwrap();
        (now.hangs, now.hung) = (hangs, now.hung && !hangs);
        self.changed.notify_all();
    }

    pub(crate) fn room(&self, bytes: usize) {
        self.now.lock().unwrap().room = Some(bytes);
    }

    pub(crate) fn syncs(&self) -> usize {
        self.now.lock().unwrap().syncs
    }

    /// Waits until a sync hangs.
    pub(crate) async fn until_hung(&self) {
        while !self.now.lock().unwrap().hung {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// A journal on it.
    pub(crate) fn leases(self: &Arc<Self>, dir: &Path) -> Leases {
        let disk = self.clone();
        Leases::open_on(dir, move |file| OnDisk(file, disk.clone())).unwrap()
    }
}

pub(crate) struct OnDisk(File, Arc<Disk>);

impl Medium for OnDisk {
    fn write_once(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.1.now.lock().unwrap().room.is_some_and(|room| bytes.len() > room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.write_once(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut now = self.1.now.lock().unwrap();
        now.syncs += 1;
        now.hung |= now.hangs;
        let waited = self.1.changed.wait_timeout_while(now, HANGS, |now| now.hangs);
        drop(waited.unwrap());
        self.0.sync_data()
    }

    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        self.0.cut(bytes)
    }
}

/// Keeps what it is told.
#[derive(Default)]
pub(crate) struct Heard(pub(crate) Mutex<Vec<String>>);

impl AuditSink for Heard {
    fn record(&self, refused: &Refused<'_>) {
        self.0.lock().unwrap().push(format!("refused {}", refused.reason));
    }

    fn write<'a>(&'a self, event: &'a AuditEvent) -> BoxFuture<'a, Result<(), AuditError>> {
        self.0.lock().unwrap().push(format!("{} {:?} {}", event.action.as_str(), event.detail, event.reason));
        Box::pin(std::future::ready(Ok(())))
    }

    fn read<'a>(&'a self, event: &'a AuditEvent) -> BoxFuture<'a, Result<(), AuditError>> {
        self.write(event)
    }
}

pub(crate) fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

pub(crate) fn rule(source: Source) -> Rule {
    Rule { source, callers: None, refs: None, profiles: None, signed: false, env_allowed: false }
}

pub(crate) fn of_bank(read: &str, field: &str, rotate: Option<Duration>) -> Rule {
    let read: Read =
        toml::from_str::<BTreeMap<String, Read>>(&format!("read = {read}")).unwrap().remove("read").unwrap();
    rule(Source::Vault { server: name("bank"), read, field: Some(field.to_owned()), rotate })
}

pub(crate) const DATABASE: &str = "{ database = { role = \"ro\" } }";
pub(crate) const KV: &str = "{ kv2 = { path = \"web/npm\" } }";

pub(crate) fn open(dir: &Path, bank: &Arc<Bank>, heard: &Arc<Heard>) -> Arc<Secrets> {
    open_telling(dir, bank, heard.clone())
}

pub(crate) fn open_telling(dir: &Path, bank: &Arc<Bank>, audit: Arc<dyn AuditSink>) -> Arc<Secrets> {
    open_on(dir, bank, audit, Leases::open(&dir.join("secrets")).unwrap())
}

pub(crate) fn open_on(
    dir: &Path,
    bank: &Arc<Bank>,
    audit: Arc<dyn AuditSink>,
    leases: Leases,
) -> Arc<Secrets> {
    let file = dir.join("value");
    std::fs::write(&file, "of this host alone").unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let options = Options {
        dir: dir.join("secrets"),
        issuer: "https://builds.corp.example".to_owned(),
        credentials: None,
        audit,
        counts: Counts::default(),
    };
    let secrets = Secrets::on(leases, options);
    let secrets = secrets.unwrap();
    let rules = [
        ("user", of_bank(DATABASE, "username", None)),
        ("password", of_bank(DATABASE, "password", None)),
        ("npm", of_bank(KV, "password", None)),
        ("turning", of_bank(KV, "password", Some(Duration::from_secs(30)))),
        ("short", of_bank(KV, "short", None)),
        ("nothing", of_bank(KV, "nothing", None)),
        ("local", rule(Source::File(file))),
    ];
    let rules = rules.into_iter().map(|(secret, rule)| ((name("web"), name(secret)), rule)).collect();
    let servers = BTreeMap::from([(name("bank"), bank.clone() as Arc<dyn Server>)]);
    secrets.take(NewRules(Rules { mapping: Mapping { rules }, servers, before: Vec::new() }));
    secrets
}

/// Rules under which another server has the name.
pub(crate) fn rules_of(bank: &Arc<Bank>) -> NewRules {
    let servers = BTreeMap::from([(name("bank"), bank.clone() as Arc<dyn Server>)]);
    NewRules(Rules { servers, ..Rules::default() })
}

pub(crate) fn step(names: &[&str]) -> Step {
    let file = |secret: &str| {
        let path = ampoule_spec::SandboxPath::parse(&format!("/run/secrets/{secret}")).unwrap();
        ampoule_spec::Secret { name: name(secret), delivery: Delivery::File(path), on_rotate: None }
    };
    Step {
        job: JobId::parse("01890a5d-ac96-774b-bcce-b302099a8057").unwrap(),
        project: name("web"),
        caller: Caller { means: Means::Peer, subject: "uid:7".to_owned(), claims: BTreeMap::new() },
        profile: name("hermetic"),
        is_signed: false,
        index: 0,
        name: name("deploy"),
        limit: LIMIT,
        secrets: names.iter().map(|name| file(name)).collect(),
    }
}

pub(crate) const ALL: [&str; 4] = ["local", "password", "npm", "user"];

pub(crate) async fn acquire(secrets: &Arc<Secrets>, names: &[&str]) -> Result<Acquired, AcquireError> {
    secrets.acquire(&step(names), &CancellationToken::new()).await
}
