//! Debian's docker-registry on the loopback interface: TLS with an authority of the test's own, and credentials.

use crate::check::Ran;
use crate::lab::{Call, Lab};
use crate::procs;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long a server may take to answer its first connection.
const START: Duration = Duration::from_secs(30);
const HTTPS: &str = include_str!("registry/https.py");
/// The user and password that servers of the tests know.
pub(crate) const LOGIN: &str = "me:s3cret";

/// What a registry wants from whoever comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wants {
    Password,
    /// A token of a service on another port.
    Token,
}

/// Where blobs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blobs {
    Here,
    /// On another host, to which it redirects.
    Elsewhere,
}

/// A running registry; it ends when it is dropped.
pub(crate) struct Registry<'a> {
    lab: &'a Lab<'a>,
    dir: PathBuf,
    port: u16,
    servers: Vec<Child>,
    /// Ports of the servers beside it.
    beside: Vec<u16>,
}

impl<'a> Registry<'a> {
    /// Starts one in the test's directory, and lists it (and nothing beside it) as a source.
    pub(crate) fn start(lab: &'a Lab<'a>, wants: Wants, blobs: Blobs) -> Result<Self> {
        let dir = lab.path("registry");
        fs::create_dir(&dir)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut registry = Self { lab, dir, port, servers: Vec::new(), beside: Vec::new() };
        registry.make_certificates()?;
        let password = lab.call("htpasswd").args(["-Bbn", "me", "s3cret"]).end()?.exits(0)?.stdout;
        fs::write(registry.dir.join("htpasswd"), password)?;
        let auth = match wants {
            Wants::Password => {
                format!("htpasswd: {{realm: test, path: {}}}", registry.dir.join("htpasswd").display())
            }
            Wants::Token => {
                let service = registry.beside("tokens")?;
                format!(
                    "token: {{realm: 'https://localhost:{service}/token', service: 'the registry', issuer: test, \
                     rootcertbundle: {}}}",
                    registry.dir.join("token.pem").display()
                )
            }
        };
        let redirect = match blobs {
            Blobs::Here => String::new(),
            Blobs::Elsewhere => {
                let files = registry.beside("files")?;
                format!(
                    "middleware: {{storage: [{{name: redirect, options: {{baseurl: 'https://localhost:{files}/'}}}}]}}\n"
                )
            }
        };
        let at = registry.dir.display();
        let text = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {at}/data}}}}\n\
             http: {{addr: '127.0.0.1:{port}', secret: x, tls: {{certificate: {at}/leaf.pem, key: {at}/leaf.key}}}}\n\
             compatibility: {{schema1: {{enabled: true}}}}\nauth: {{{auth}}}\n{redirect}"
        );
        fs::write(registry.dir.join("config.yml"), text)?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(registry.dir.join("config.yml"));
        command.stdout(File::create(registry.dir.join("access"))?);
        let config = registry.dir.join("auth.json");
        fs::write(&config, registry.credentials(LOGIN))?;
        fs::set_permissions(&config, fs::Permissions::from_mode(0o600))?;
        fs::create_dir(registry.dir.join("certs"))?;
        fs::copy(registry.dir.join("ca.pem"), registry.dir.join("certs/ca.crt"))?;
        registry.spawn(command)?;
        procs::eventually(START, "docker-registry answers", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        })?;
        registry.list(&[])?;
        Ok(registry)
    }

    fn spawn(&mut self, mut command: Command) -> Result<()> {
        let errors = File::create(self.dir.join(format!("errors-{}", self.servers.len())))?;
        command.stdin(Stdio::null()).stderr(errors);
        let child = command.spawn().with_context(|| format!("{:?}", command.get_program()))?;
        self.servers.push(child);
        Ok(())
    }

    /// Starts a server of https.py and gives its port.
    fn beside(&mut self, mode: &str) -> Result<u16> {
        let script = self.dir.join("https.py");
        fs::write(&script, HTTPS)?;
        let mut command = Command::new("/usr/bin/python3");
        command.arg("-I").arg(script).arg(&self.dir).arg(mode).stdout(Stdio::null());
        self.spawn(command)?;
        let file = self.dir.join(format!("{mode}.port"));
        procs::eventually(START, "https.py answers", || file.exists())?;
        let port = fs::read_to_string(file)?.parse()?;
        self.beside.push(port);
        Ok(port)
    }

    fn make_certificates(&self) -> Result<()> {
        let script = r#"
            openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 30 -subj /CN=authority \
                -addext basicConstraints=critical,CA:TRUE
            openssl req -x509 -newkey rsa:2048 -nodes -keyout token.key -out token.pem -days 30 -subj /CN=tokens
            openssl req -newkey rsa:2048 -nodes -keyout leaf.key -out leaf.csr -subj /CN=localhost
            printf 'subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth\n' > extensions
            openssl x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile extensions -out leaf.pem
        "#;
        self.lab.call("sh").args(["-euc", script]).within(&self.dir).end()?.exits(0).map(drop)
    }

    /// Lists the registry as a source, and these of the servers beside it.
    pub(crate) fn list(&self, beside: &[u16]) -> Result<()> {
        let names: String = beside.iter().map(|port| format!(", \"p{port}\"")).collect();
        let rest = "addresses = [\"127.0.0.1\", \"::1\"]\nca = \"registry/ca.pem\"\n";
        let mut text = format!(
            "sources = 1\n[project.default]\nallow = [\"registry\"{names}]\n\
             [origin.registry]\nregistry = \"{}\"\n{rest}",
            self.host()
        );
        for port in beside {
            text += &format!("[origin.p{port}]\nurl = \"https://localhost:{port}/\"\n{rest}");
        }
        fs::write(self.lab.sources(), text)?;
        Ok(())
    }

    /// Lists everything that belongs to it.
    pub(crate) fn list_all(&self) -> Result<()> {
        self.list(&self.beside)
    }

    pub(crate) fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// An auth.json for this registry.
    pub(crate) fn credentials(&self, login: &str) -> String {
        use base64::Engine as _;
        let coded = base64::prelude::BASE64_STANDARD.encode(login);
        format!("{{\"auths\": {{\"{}\": {{\"auth\": \"{coded}\"}}}}}}", self.host())
    }

    /// Copies an image with skopeo; gives the digest that it has on the registry.
    pub(crate) fn copy(&self, from: &str, to: &str, flags: &[&str]) -> Result<String> {
        let digest = self.dir.join("digest");
        self.lab
            .call("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", "--dest-creds", LOGIN, "--dest-cert-dir"])
            .arg(self.dir.join("certs"))
            .arg("--digestfile")
            .arg(&digest)
            .args(flags)
            .arg(from)
            .arg(format!("docker://{}/{to}", self.host()))
            .env("TMPDIR", &self.dir)
            .end()?
            .exits(0)?;
        let digest = fs::read_to_string(digest)?;
        Ok(digest.trim().trim_start_matches("sha256:").to_owned())
    }

    /// Another command of skopeo's on something of this registry.
    pub(crate) fn skopeo(&self, args: &[&str]) -> Result<Ran> {
        let call = self.lab.call("skopeo").arg("--insecure-policy").args(args);
        call.env("SSL_CERT_FILE", self.dir.join("ca.pem")).env("TMPDIR", &self.dir).end()
    }

    /// Something of the registry, with curl.
    pub(crate) fn get(&self, path: &str) -> Result<Vec<u8>> {
        let types = "Accept: application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
                     application/vnd.docker.distribution.manifest.v2+json";
        let call =
            self.lab.call("curl").args(["--silent", "--show-error", "--fail", "--location", "--user", LOGIN]);
        let call = call.arg("--cacert").arg(self.dir.join("ca.pem")).args(["--header", types]);
        Ok(call.arg(format!("https://{}/v2/{path}", self.host())).end()?.exits(0)?.stdout)
    }

    /// `ampoule run` with the credentials.
    pub(crate) fn run(&self, job: &Path) -> Call<'a> {
        self.lab.run(job).arg("--registry-auth").arg(self.dir.join("auth.json"))
    }

    /// `ampoule push` with the credentials.
    pub(crate) fn push(&self, out: &Path, to: &str) -> Call<'a> {
        let call = self.lab.ampoule().arg("push").arg(out).arg(to).arg("--sources").arg(self.lab.sources());
        call.arg("--registry-auth").arg(self.dir.join("auth.json"))
    }

    /// What `ampoule` asked, as `METHOD PATH STATUS`, in the order in which it was answered.
    pub(crate) fn asked(&self) -> Result<Vec<String>> {
        let log = fs::read_to_string(self.dir.join("access"))?;
        let ours = log.lines().filter(|line| line.contains("\"ampoule/"));
        ours.map(|line| {
            let mut words = line.split('"').skip(1);
            let request = words.next().unwrap_or_default().rsplit_once(' ').unwrap_or_default().0;
            let status = words.next().and_then(|rest| rest.split_whitespace().next()).context("no status")?;
            Ok(format!("{request} {status}"))
        })
        .collect()
    }

    /// What was asked of a server beside it: path and `Authorization`.
    pub(crate) fn asked_beside(&self, mode: &str) -> Result<Vec<(String, String)>> {
        let log = fs::read_to_string(self.dir.join(format!("{mode}.log"))).unwrap_or_default();
        let pairs = log.lines().map(|line| line.split_once('\t').context("no line of https.py"));
        pairs.map(|pair| pair.map(|(path, shown)| (path.to_owned(), shown.to_owned()))).collect()
    }

    /// Stops the registry, or has it go on.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let server = self.servers.last().context("no registry")?;
        procs::signal(server.id().cast_signed(), signal)
    }

    /// Where the registry keeps a blob.
    pub(crate) fn blob(&self, digest: &str) -> Result<PathBuf> {
        let start = digest.get(..2).context("no digest")?;
        let path = self.dir.join(format!("data/docker/registry/v2/blobs/sha256/{start}/{digest}/data"));
        ensure!(path.exists(), "{} is not there", path.display());
        Ok(path)
    }
}

impl Drop for Registry<'_> {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}
