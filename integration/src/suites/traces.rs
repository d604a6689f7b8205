//! Spans of calls and jobs, as somebody else's collector has them: OpenTelemetry's own messages, in Python.

use super::python::script;
use super::tools::{COLLECTOR, interpreter};
use super::{output, sh};
use crate::ampouled::Ampouled;
use crate::certificates::Authority;
use crate::check::equal;
use crate::harness::Test;
use crate::lab::{Lab, Live};
use crate::procs::eventually;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

/// What a machine may lack for all of these.
const PACKAGES: &str = "a Python with integration/requirements.txt that this user may run";

pub(super) const TESTS: &[Test] = &[
    Test::root("spans_of_a_call_and_of_its_job_stand_below_the_callers", below).may_lack(PACKAGES),
    Test::root("collector_is_believed_by_tls_and_holds_nothing_up", tls).may_lack(PACKAGES),
];

const SOON: Duration = Duration::from_secs(30);
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// What a caller says that it does (W3C Trace Context).
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A collector, and what it was told.
struct Collector<'l> {
    port: u16,
    file: PathBuf,
    live: Live<'l>,
}

impl<'l> Collector<'l> {
    fn start(lab: &'l Lab<'l>, pair: &[PathBuf]) -> Result<Self> {
        // Free now; whoever takes it in between has the collector not start.
        let port = TcpListener::bind((ADDRESS, 0))?.local_addr()?.port();
        let file = lab.write("spans", "")?;
        let call =
            lab.call(interpreter(lab, &COLLECTOR)?).arg(lab.repository("integration/python/collector.py"));
        let mut live = call.arg(&file).arg(port.to_string()).args(pair).start()?;
        live.until_says("listening")?;
        Ok(Self { port, file, live })
    }

    fn spans(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(&self.file)?;
        text.lines().map(|line| serde_json::from_str(line).context("a span")).collect()
    }

    /// All spans, when that of a job's life with this outcome is among them.
    fn until_ended(&self, outcome: &str) -> Result<(Vec<Value>, Value)> {
        let of = |span: &Value| span["name"] == "job" && span["attributes"]["ampoule.outcome"] == outcome;
        eventually(SOON, "the span of the job", || self.spans().is_ok_and(|spans| spans.iter().any(of)))?;
        let spans = self.spans()?;
        let job = spans.iter().find(|span| of(span)).cloned().context("no job")?;
        Ok((spans, job))
    }
}

impl Drop for Collector<'_> {
    fn drop(&mut self) {
        self.live.kill();
    }
}

fn one(spans: &[Value], is_it: impl Fn(&Value) -> bool) -> Result<&Value> {
    let found: Vec<_> = spans.iter().filter(|span| is_it(span)).collect();
    let [span] = found.as_slice() else { anyhow::bail!("{} spans: {spans:#?}", found.len()) };
    Ok(span)
}

fn below(lab: &Lab) -> Result<()> {
    let submits = script(lab, "integration/python/traced.py")?;
    let collector = Collector::start(lab, &[])?;
    let tables = format!("[traces]\nendpoint = \"http://{ADDRESS}:{}\"\n", collector.port);
    let daemon = Ampouled::start_with(lab, &tables)?;
    submits.arg(daemon.socket()).arg(format!("00-{TRACE}-{PARENT}-01")).end()?.exits(0)?;
    let (spans, job) = collector.until_ended("succeeded")?;
    let call = one(&spans, |span| span["attributes"]["rpc.method"] == "SubmitJob")?;
    equal("trace", &call["trace"], &Value::from(TRACE))?;
    equal("parent of the call", &call["parent"], &Value::from(PARENT))?;
    equal("kind of the call: a server's", &call["kind"], &Value::from(2))?;
    equal("code of the call", &call["attributes"]["rpc.grpc.status_code"], &Value::from(0))?;
    equal("service", &call["resource"]["service.name"], &Value::from("ampouled"))?;
    equal("trace of the job", &job["trace"], &Value::from(TRACE))?;
    equal("parent of the job", &job["parent"], &call["span"])?;
    for attribute in ["ampoule.job.id", "ampoule.project"] {
        equal(attribute, &job["attributes"][attribute], &call["attributes"][attribute])?;
    }
    equal("project", &job["attributes"]["ampoule.project"], &Value::from("traced"))?;
    equal("status", &job["status"], &Value::from(0))?;
    let mut until = job["begun"].as_u64();
    for part in ["queued", "preparing", "running", "attesting"] {
        let span = one(&spans, |span| span["name"] == part && span["parent"] == job["span"])?;
        ensure!(
            span["begun"].as_u64() >= until && span["ended"].as_u64() >= span["begun"].as_u64(),
            "{span}"
        );
        until = span["begun"].as_u64();
    }
    // Another caller's calls are no part of that, and what a step prints is told nowhere.
    let ran = daemon.ended(daemon.submit(&lab.job(&sh("s", "echo a-secret; exit 7"))?, "k").start()?)?;
    ran.exits(1)?;
    let (spans, job) = collector.until_ended("failed")?;
    let call =
        one(&spans, |span| span["attributes"]["rpc.method"] == "SubmitJob" && span["trace"] == job["trace"])?;
    ensure!(job["trace"] != TRACE && call["parent"] == "", "{call}");
    equal("status", &job["status"], &Value::from(2))?;
    equal("code", &job["attributes"]["ampoule.failure.code"], &Value::from("step.exit_nonzero"))?;
    ensure!(!fs::read_to_string(&collector.file)?.contains("a-secret"), "a log is in the spans");
    // What ends with the daemon is told before it has ended.
    let gets = |spans: &[Value]| spans.iter().filter(|s| s["attributes"]["rpc.method"] == "GetJob").count();
    let before = gets(&collector.spans()?);
    let id = job["attributes"]["ampoule.job.id"].as_str().context("no id")?;
    daemon.ampoule("get").arg(id).end()?;
    daemon.stop()?;
    ensure!(gets(&collector.spans()?) > before, "{:#?}", collector.spans()?);
    Ok(())
}

fn tls(lab: &Lab) -> Result<()> {
    let (own, other) = (Authority::new("own")?, Authority::new("other")?);
    let pair = own.server(ADDRESS, &lab.path("collector"))?;
    let (ca, wrong) = (lab.write("ca.pem", own.pem())?, lab.write("other.pem", other.pem())?);
    let collector = Collector::start(lab, &[pair.certificate, pair.key])?;
    let tables = |ca: &PathBuf| {
        let endpoint = format!("endpoint = \"https://{ADDRESS}:{}\"", collector.port);
        format!("[traces]\n{endpoint}\nca = \"{}\"\n", ca.display())
    };
    let job = lab.job(&(sh("s", "echo x > /build/out") + &output("out", "/build/out")))?;
    let daemon = Ampouled::start_with(lab, &tables(&wrong))?;
    daemon.ampoule("submit").arg(&job).arg("--wait").end()?.exits(0)?;
    daemon.says("the collector of traces takes no spans")?;
    daemon.stop()?;
    equal("spans", &collector.spans()?.len(), &0)?;
    let daemon = Ampouled::start_with(lab, &tables(&ca))?;
    daemon.ampoule("submit").arg(&job).arg("--wait").end()?.exits(0)?;
    collector.until_ended("succeeded")?;
    daemon.stop()
}
