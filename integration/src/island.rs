//! A network namespace with web servers (nginx) in it, and names of its own: nothing in it reaches this host or any other.

use crate::lab::{Call, Lab};
use crate::procs;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The server inside a company: a private address.
pub(crate) const INSIDE: Site = Site { name: "inside", address: "10.1.0.1" };
/// One of the open Internet: an address that is public, and leads nowhere but here.
pub(crate) const OUTSIDE: Site = Site { name: "outside", address: "9.9.1.1" };
/// A cloud's metadata service.
pub(crate) const METADATA: Site = Site { name: "metadata", address: "169.254.169.254" };

/// One web server, on port 80 and, with TLS, 443.
#[derive(Clone, Copy)]
pub(crate) struct Site {
    pub(crate) name: &'static str,
    address: &'static str,
}

/// The namespace, its servers and its `/etc/hosts`. It ends when it is dropped.
pub(crate) struct Island<'a> {
    lab: &'a Lab<'a>,
    holder: Child,
    servers: Vec<Child>,
    /// Where the servers' counters are asked: a socket's path is short.
    counters: tempfile::TempDir,
    /// Our own questions to a server's counter, in the order of [`SITES`].
    questions: [AtomicU32; 3],
}

const SITES: [Site; 3] = [INSIDE, OUTSIDE, METADATA];

/// Readies the namespace and stays in it until its input ends.
const HOLD: &str = "set -eu
PATH=$PATH:/usr/sbin:/sbin
mount --bind \"$1/hosts\" /etc/hosts
ip link set lo up
for address in 10.1.0.1 9.9.1.1 169.254.169.254; do ip address add \"$address/32\" dev lo; done
touch \"$1/ready\"
exec cat";

impl<'a> Island<'a> {
    /// Starts the servers. Each has the files that [`Island::file`] gives it.
    pub(crate) fn start(lab: &'a Lab) -> Result<Self> {
        lab.write("island/hosts", "127.0.0.1 localhost\n")?;
        certificates(lab)?;
        let dir = lab.path("island");
        let mut holder = Command::new("unshare");
        holder
            .args(["-n", "-m", "sh", "-c", HOLD, "sh"])
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        let holder = holder.spawn().context("unshare")?;
        let counters = tempfile::Builder::new().prefix("ampoule-it-").tempdir()?;
        let questions = std::array::from_fn(|_| AtomicU32::new(0));
        let mut island = Self { lab, holder, servers: Vec::new(), counters, questions };
        procs::eventually(Duration::from_secs(20), "the namespace", || dir.join("ready").exists())?;
        for site in SITES {
            let root = island.dir(site);
            fs::create_dir_all(root.join("files"))?;
            fs::write(root.join("nginx.conf"), island.configuration(site))?;
            fs::write(root.join("users"), "builder:{PLAIN}hush\n")?;
            let mut server = island.enter("nginx");
            server.arg("-p").arg(&root).arg("-c").arg(root.join("nginx.conf")).args(["-g", "daemon off;"]);
            let log = fs::File::create(root.join("stderr"))?;
            island.servers.push(
                server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().context("nginx")?,
            );
            procs::eventually(Duration::from_secs(20), "nginx", || island.connections(site).is_ok())
                .with_context(|| fs::read_to_string(root.join("stderr")).unwrap_or_default())?;
        }
        Ok(island)
    }

    fn dir(&self, site: Site) -> PathBuf {
        self.lab.path("island").join(site.name)
    }

    fn counter(&self, site: Site) -> PathBuf {
        self.counters.path().join(site.name)
    }

    fn enter(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.holder.id().to_string(), "-n", "-m", program]);
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    fn configuration(&self, site: Site) -> String {
        let (dir, tls) =
            (self.dir(site).display().to_string(), self.lab.path("island/tls").display().to_string());
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!("{kind}_temp_path {dir}/{kind};\n"))
            .collect();
        format!(
            "user root;\nworker_processes 1;\npid {dir}/pid;\nerror_log {dir}/error.log;\n\
             events {{ worker_connections 64; }}\nhttp {{\n{temporary}\
             log_format heads '$request_method $scheme://$http_host$request_uri $status \"$http_authorization\"';\n\
             access_log {dir}/access.log heads;\n\
             server {{ listen unix:{1}; access_log off; location / {{ stub_status; }} }}\n\
             server {{ listen {0}:80; listen {0}:443 ssl;\nssl_certificate {tls}/leaf.pem; ssl_certificate_key {tls}/leaf.key;\n\
             root {dir}/files;\nlocation /closed/ {{ auth_basic closed; auth_basic_user_file {dir}/users; }}\n\
             location ~ ^/to/(.*)$ {{ return 302 https://$1; }}\n\
             location ~ ^/plain-to/(.*)$ {{ return 302 http://$1; }} }}\n}}\n",
            site.address,
            self.counter(site).display()
        )
    }

    /// What the names in it mean: name and site.
    pub(crate) fn names(&self, names: &[(&str, Site)]) -> Result<()> {
        let lines: String = names.iter().map(|(name, site)| format!("{} {name}\n", site.address)).collect();
        // In place: the file that was bound there is the one that is read.
        fs::write(self.lab.path("island/hosts"), "127.0.0.1 localhost\n".to_owned() + &lines)
            .map_err(Into::into)
    }

    /// Puts a file on a server.
    pub(crate) fn file(&self, site: Site, name: &str, bytes: &str) -> Result<()> {
        let path = self.dir(site).join("files").join(name);
        fs::create_dir_all(path.parent().context("no parent")?)?;
        fs::write(path, bytes).map_err(Into::into)
    }

    /// The certificate authority of the servers.
    pub(crate) fn ca(&self) -> PathBuf {
        self.lab.path("island/tls/ca.pem")
    }

    /// How many connections a server has taken, ours to its counter aside.
    pub(crate) fn connections(&self, site: Site) -> Result<u32> {
        let mut stream = UnixStream::connect(self.counter(site))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let numbers = text.lines().skip_while(|line| !line.starts_with("server accepts")).nth(1);
        let accepts: u32 =
            numbers.and_then(|line| line.split_whitespace().next()).context(text.clone())?.parse()?;
        let at = SITES.iter().position(|other| other.name == site.name).context("no such site")?;
        let own = self.questions[at].fetch_add(1, Ordering::SeqCst) + 1;
        ensure!(accepts >= own, "{text}");
        Ok(accepts - own)
    }

    /// The requests that a server has answered.
    pub(crate) fn log(&self, site: Site) -> Result<String> {
        fs::read_to_string(self.dir(site).join("access.log")).map_err(Into::into)
    }

    /// Has a command begun in the namespace.
    pub(crate) fn within(&self, call: Call<'a>) -> Call<'a> {
        call.through("nsenter", &["-t", &self.holder.id().to_string(), "-n", "-m"])
    }
}

impl Drop for Island<'_> {
    fn drop(&mut self) {
        for server in &mut self.servers {
            // The master ends its workers.
            let _ = procs::signal(server.id().cast_signed(), rustix::process::Signal::TERM);
            let _ = server.wait();
        }
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// An authority, and a certificate of it for every name of the tests.
fn certificates(lab: &Lab) -> Result<()> {
    let script = "set -e; mkdir \"$1/tls\"; cd \"$1/tls\"
new() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \"$@\"; }
new -x509 -days 2 -keyout ca.key -out ca.pem -subj /CN=authority
new -keyout leaf.key -out leaf.csr -subj /CN=leaf
echo 'subjectAltName=DNS:pkg.corp.test,DNS:registry.public.test' > ext
openssl x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out leaf.pem";
    let made =
        Command::new("sh").args(["-c", script, "sh"]).arg(lab.path("island")).output().context("sh")?;
    ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    Ok(())
}
