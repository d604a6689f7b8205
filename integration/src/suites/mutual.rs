//! `ampoule submit` over a network: client and daemon know each other by certificates that are made here.

use super::{output, sh};
use crate::ampouled::{Ampouled, Listen};
use crate::certificates::{Authority, Pair};
use crate::check::{Ending, equal};
use crate::harness::Test;
use crate::lab::{Call, Lab};
use crate::procs::eventually;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(super) const TESTS: &[Test] = &[
    Test::root("who_is_not_believed_hears_why", refused),
    Test::root("certificates_change_in_flight", reloaded),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const CI: &str = "spiffe://ampoule.test/ci";
/// A refusal that is final takes no patience: a client tries a daemon that is away for ten minutes.
const AT_ONCE: Duration = Duration::from_secs(20);

/// A daemon with a listener that wants certificates.
struct Mutual<'l> {
    lab: &'l Lab<'l>,
    daemon: Ampouled<'l>,
    server: String,
    /// Who has certified its clients.
    clients: Authority,
}

impl<'l> Mutual<'l> {
    fn start(lab: &'l Lab<'l>) -> Result<Self> {
        let (own, clients) = (Authority::new("own")?, Authority::new("clients")?);
        fs::create_dir(lab.path("tls"))?;
        own.server(ADDRESS, &lab.path("tls/server"))?;
        fs::write(lab.path("tls/own.ca"), own.pem())?;
        fs::write(lab.path("tls/clients.ca"), clients.pem())?;
        lab.write("identities.toml", format!("format = 1\ncertificates = [\"{CI}\"]\n"))?;
        let tls = "certificate = 'tls/server.pem'\nkey = 'tls/server.key'\nclient_ca = 'tls/clients.ca'\n";
        // Free now; whoever takes it in between has the daemon not start.
        let port = TcpListener::bind((ADDRESS, 0))?.local_addr()?.port();
        let listen = Listen { tcp: format!("{ADDRESS}:{port}"), tls: tls.to_owned(), subject: CI.to_owned() };
        let daemon = Ampouled::start_listening(lab, &listen)?;
        Ok(Self { lab, daemon, server: format!("https://{ADDRESS}:{port}"), clients })
    }

    /// A command that asks it over the network.
    fn ampoule(&self, command: &str, ca: &Path, pair: Option<&Pair>) -> Call<'l> {
        let call = self.lab.ampoule().arg(command).args(["--server", &self.server]);
        let call = call.env("AMPOULE_CA", ca);
        match pair {
            Some(pair) => call.env("AMPOULE_CERT", &pair.certificate).env("AMPOULE_KEY", &pair.key),
            None => call,
        }
    }

    fn ca(&self) -> PathBuf {
        self.lab.path("tls/own.ca")
    }

    /// The answer to a question, and that it did not take the patience for a daemon that is away.
    fn hears(&self, what: &str, ca: &Path, pair: Option<&Pair>, exit: i32, text: &str) -> Result<()> {
        let begun = Instant::now();
        let ran = self.ampoule("list", ca, pair).end()?;
        ran.exits(exit).and_then(|ran| ran.says(&[text]).map(drop)).context(what.to_owned())?;
        ensure!(begun.elapsed() < AT_ONCE, "{what}: it took {:?}", begun.elapsed());
        Ok(())
    }
}

fn refused(lab: &Lab) -> Result<()> {
    let it = Mutual::start(lab)?;
    let at = |name: &str| lab.path(&format!("tls/{name}"));
    let known = it.clients.client(CI, &at("ci"))?;
    let job = lab.job(&(sh("s", "echo x > /build/out") + &output("out", "/build/out")))?;
    let out = lab.path("by-certificate");
    let call = it.ampoule("submit", &it.ca(), Some(&known)).arg(&job).arg("--wait").arg("--out").arg(&out);
    let ran = it.daemon.ended(call.out(out).start()?)?.ended(&SUCCEEDED)?;
    equal("out", &ran.output_text("out")?, &"x\n".to_owned())?;
    ran.verifies_output("out")?;
    it.hears("one that is known", &it.ca(), Some(&known), 0, "")?;

    let other = Authority::new("other")?;
    fs::write(at("other.ca"), other.pem())?;
    let unlisted = it.clients.client("spiffe://ampoule.test/other", &at("unlisted"))?;
    let expired = it.clients.expired(CI, &at("expired"))?;
    let strange = other.client(CI, &at("strange"))?;
    let cases = [
        (
            "another authority of the daemon's",
            at("other.ca"),
            Some(&known),
            2,
            "the daemon's certificate is refused",
        ),
        ("no certificate", it.ca(), None, 77, "none was shown, and it wants one; set AMPOULE_CERT"),
        ("one that has expired", it.ca(), Some(&expired), 77, "it has expired"),
        (
            "one of another authority",
            it.ca(),
            Some(&strange),
            77,
            "from no authority that the daemon believes",
        ),
        ("one that is not in the list", it.ca(), Some(&unlisted), 77, "it is not known who calls"),
    ];
    for (what, ca, pair, exit, text) in cases {
        // Again and again: what is said must not depend on who closes first.
        for _ in 0..5 {
            it.hears(what, &ca, pair, exit, text)?;
        }
    }
    it.daemon.stop()
}

fn reloaded(lab: &Lab) -> Result<()> {
    let it = Mutual::start(lab)?;
    let at = |name: &str| lab.path(&format!("tls/{name}"));
    let known = it.clients.client(CI, &at("ci"))?;
    it.hears("before", &it.ca(), Some(&known), 0, "")?;
    // What cannot be used is not taken.
    let good = fs::read(at("server.pem"))?;
    fs::write(at("server.pem"), "no certificate")?;
    it.daemon.signal(Signal::HUP)?;
    it.daemon.says("was not taken")?;
    it.hears("with a broken one", &it.ca(), Some(&known), 0, "")?;
    fs::write(at("server.pem"), good)?;
    // Another authority for clients, and a certificate of another for the daemon.
    let (own, clients) = (Authority::new("own again")?, Authority::new("clients again")?);
    own.server(ADDRESS, &at("server"))?;
    fs::write(at("clients.ca"), clients.pem())?;
    fs::write(at("new.ca"), own.pem())?;
    let renewed = clients.client(CI, &at("renewed"))?;
    it.daemon.signal(Signal::HUP)?;
    eventually(AT_ONCE, "the new ones are in force", || {
        it.ampoule("list", &at("new.ca"), Some(&renewed)).end().is_ok_and(|ran| ran.status == Some(0))
    })?;
    it.hears(
        "the daemon's old authority",
        &it.ca(),
        Some(&renewed),
        2,
        "the daemon's certificate is refused",
    )?;
    it.hears("an old client", &at("new.ca"), Some(&known), 77, "from no authority that the daemon believes")?;
    // Not one of the daemon's before: it is the same process.
    let listed = it.daemon.ampoule("list").end()?.exits(0)?.stdout_text();
    equal("jobs", &listed.lines().count(), &0)?;
    it.daemon.stop()
}
