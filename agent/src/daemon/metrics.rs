//! What is counted: OpenMetrics, in a registry of the daemon's own.
//!
//! What is guaranteed: no label holds a job, a project or a caller, so the number of series does not grow with use. (Servers of secrets are as
//! many as the configuration names.)

use crate::secrets;
use crate::traces::Counts;
use ampoule_spec::{Code, Outcome};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::time::Duration;

/// What [`Metrics::text`] is, as a media type (OpenMetrics 1.0).
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One label with values that are known beforehand.
type By<M> = Family<[(&'static str, &'static str); 1], M>;

/// Every outcome.
const OUTCOMES: [Outcome; 7] = [
    Outcome::Succeeded,
    Outcome::Failed,
    Outcome::TimedOut,
    Outcome::KilledByLimit,
    Outcome::Cancelled,
    Outcome::Aborted,
    Outcome::Quarantined,
];

/// Upper bounds of times, in seconds: from a sandbox out of the pool to a build of a day.
const SECONDS: [f64; 14] =
    [0.005, 0.02, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0];

/// A part of a job's life in the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// It waits.
    Queued,
    /// Its inputs are fetched and imported.
    Preparing,
    /// The runner has it.
    Running,
    /// Its evidence is made.
    Attesting,
}

impl Part {
    const ALL: [Self; 4] = [Self::Queued, Self::Preparing, Self::Running, Self::Attesting];

    fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Preparing => "preparing",
            Self::Running => "running",
            Self::Attesting => "attesting",
        }
    }
}

/// What is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    finished: By<Counter>,
    failures: By<Counter>,
    parts: By<Histogram>,
    reloads: By<Counter>,
    /// Jobs that were acknowledged.
    pub submitted: Counter,
    /// Jobs that wait.
    pub queued: Gauge,
    /// Jobs that run.
    pub running: Gauge,
    /// 1 while new jobs are taken.
    pub accepting: Gauge,
    /// 1 while the launcher answers.
    pub launcher_up: Gauge,
    /// Imports into the store.
    pub imports: Counter,
    /// Bytes of those imports.
    pub import_bytes: Counter,
    /// Bytes that clients have uploaded.
    pub upload_bytes: Counter,
    /// Records added to the audit log.
    pub audit_appends: Counter,
    /// Records that could not be added.
    pub audit_failures: Counter,
    /// Calls without an identity that holds.
    pub auth_failures: Counter,
    /// Calls that the policy denied.
    pub denied: Counter,
    /// Spans that a collector has taken, and those that were dropped.
    pub spans: Counts,
    /// What steps have of secrets.
    pub secrets: secrets::Counts,
    /// Facts of the host that are not those of the baseline.
    pub host_drift: Gauge,
    /// Defects that were caught.
    pub panics: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A registry in which everything is zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("ampoule"),
            finished: By::default(),
            failures: By::default(),
            parts: By::new_with_constructor(|| Histogram::new(SECONDS)),
            reloads: By::default(),
            submitted: Counter::default(),
            queued: Gauge::default(),
            running: Gauge::default(),
            accepting: Gauge::default(),
            launcher_up: Gauge::default(),
            imports: Counter::default(),
            import_bytes: Counter::default(),
            upload_bytes: Counter::default(),
            audit_appends: Counter::default(),
            audit_failures: Counter::default(),
            auth_failures: Counter::default(),
            denied: Counter::default(),
            spans: Counts::default(),
            secrets: secrets::Counts::default(),
            host_drift: Gauge::default(),
            panics: Counter::default(),
        };
        metrics.register();
        metrics.register_secrets();
        metrics.register_families();
        metrics
    }

    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("jobs_submitted", "Jobs that were acknowledged", self.submitted.clone());
        r.register("jobs_queued", "Jobs that wait", self.queued.clone());
        r.register("jobs_running", "Jobs that are prepared, run or attested", self.running.clone());
        r.register("accepting", "1 while new jobs are taken", self.accepting.clone());
        r.register("launcher_up", "1 while the launcher answers", self.launcher_up.clone());
        r.register("imports", "Imports into the store", self.imports.clone());
        let bytes = "Bytes of those imports";
        r.register_with_unit("import", bytes, Unit::Bytes, self.import_bytes.clone());
        let bytes = "Bytes that clients have uploaded";
        r.register_with_unit("upload", bytes, Unit::Bytes, self.upload_bytes.clone());
        r.register("audit_appends", "Records added to the audit log", self.audit_appends.clone());
        let failures = "Records that could not be added to the audit log";
        r.register("audit_append_failures", failures, self.audit_failures.clone());
        r.register("trace_spans_sent", "Spans that the collector has taken", self.spans.sent.clone());
        let dropped = "Spans that the collector did not take in time, or for which there was no room";
        r.register("trace_spans_dropped", dropped, self.spans.dropped.clone());
        let failures = "Calls without an identity that holds";
        r.register("auth_failures", failures, self.auth_failures.clone());
        r.register("calls_denied", "Calls that the policy denied", self.denied.clone());
        let drift = "Facts of the host that are not those of the baseline";
        r.register("host_drift_facts", drift, self.host_drift.clone());
        r.register("panics", "Defects that were caught", self.panics.clone());
    }

    fn register_secrets(&mut self) {
        let (r, of) = (&mut self.registry, &self.secrets);
        r.register("secret_grants_open", "What was taken for steps and is not revoked yet", of.open.clone());
        let pending = "What of that is to be revoked and is not yet";
        r.register("secret_revokes_pending", pending, of.pending.clone());
        r.register("secret_grants", "What steps were given", of.granted.clone());
        let denied = "Submissions and steps that the rules gave nothing";
        r.register("secrets_denied", denied, of.denied.clone());
        let unavailable = "Steps whose secrets could not be had";
        r.register("secrets_unavailable", unavailable, of.unavailable.clone());
        let up = "1 while the agent is logged in at a server of secrets, and it serves";
        r.register("secret_server_up", up, of.up.clone());
        r.register("secret_revoke_failures", "Revokes that are tried again", of.revoke_failures.clone());
        r.register("secret_renew_failures", "Renewals that are tried again", of.renew_failures.clone());
    }

    fn register_families(&mut self) {
        for outcome in OUTCOMES {
            let _ = self.finished.get_or_create(&[("outcome", outcome.as_str())]);
        }
        for code in Code::ALL {
            let _ = self.failures.get_or_create(&[("code", code.as_str())]);
        }
        for part in Part::ALL {
            let _ = self.parts.get_or_create(&[("part", part.as_str())]);
        }
        for result in ["taken", "refused"] {
            let _ = self.reloads.get_or_create(&[("result", result)]);
        }
        let build: By<Gauge> = By::default();
        build.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
        let r = &mut self.registry;
        r.register("build_info", "The version that runs", build);
        r.register("jobs_finished", "Jobs that have a signed record, by outcome", self.finished.clone());
        let codes = "Jobs that did not succeed, by the code of the failure";
        r.register("job_failures", codes, self.failures.clone());
        let parts = "Time that jobs spent in each part of their life";
        r.register_with_unit("job_part", parts, Unit::Seconds, self.parts.clone());
        r.register("reloads", "Configurations that were read again", self.reloads.clone());
    }

    /// A job has its signed record.
    pub fn job_finished(&self, outcome: Outcome, code: Option<Code>) {
        self.finished.get_or_create(&[("outcome", outcome.as_str())]).inc();
        if let Some(code) = code {
            self.failures.get_or_create(&[("code", code.as_str())]).inc();
        }
    }

    /// A job has left a part of its life.
    pub fn part_ended(&self, part: Part, took: Duration) {
        self.parts.get_or_create(&[("part", part.as_str())]).observe(took.as_secs_f64());
    }

    /// The configuration was read again.
    pub fn reloaded(&self, taken: bool) {
        let result = if taken { "taken" } else { "refused" };
        self.reloads.get_or_create(&[("result", result)]).inc();
    }

    /// Everything, as OpenMetrics text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // A String takes everything that is written to it.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_openmetrics_with_every_series_from_the_start() {
        let metrics = Metrics::new();
        let text = metrics.text();
        assert!(text.ends_with("# EOF\n"));
        for line in [
            "ampoule_jobs_finished_total{outcome=\"quarantined\"} 0",
            "ampoule_job_failures_total{code=\"limit.oom\"} 0",
            "ampoule_job_part_seconds_count{part=\"queued\"} 0",
            "ampoule_jobs_queued 0",
            "ampoule_launcher_up 0",
            "ampoule_import_bytes_total 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn number_of_series_does_not_grow_with_use() {
        let metrics = Metrics::new();
        let before = metrics.text().lines().count();
        for n in 0..1000 {
            metrics.job_finished(OUTCOMES[n % 7], Some(Code::ALL[n % Code::ALL.len()]));
            metrics.part_ended(Part::ALL[n % 4], Duration::from_millis(n as u64));
            metrics.reloaded(n % 2 == 0);
        }
        let text = metrics.text();
        assert_eq!(text.lines().count(), before);
        assert!(text.contains("ampoule_jobs_finished_total{outcome=\"succeeded\"} 143\n"));
    }

    /// `ampoule_…` names with their label matchers, as in `name{a="b"}`.
    fn named(text: &str) -> Vec<(String, Vec<(String, String)>)> {
        let of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let mut found = Vec::new();
        for (at, _) in text.match_indices("ampoule_") {
            let rest = &text[at..];
            let end = rest.find(|c| !of_name(c)).unwrap_or(rest.len());
            let (name, rest) = rest.split_at(end);
            let labels = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(l, _)| l);
            let labels = labels.split(',').filter_map(|pair| pair.split_once('='));
            let labels = labels.filter(|(_, value)| !value.starts_with('~'));
            let clean = |text: &str| text.trim_matches(|c| matches!(c, '"' | '\\' | ' ')).to_owned();
            found.push((name.to_owned(), labels.map(|(k, v)| (clean(k), clean(v))).collect()));
        }
        found
    }

    #[test]
    fn every_metric_of_the_dashboard_and_the_alerts_exists() {
        let metrics = Metrics::new();
        metrics.secrets.up.get_or_create(&[("server", "main".to_owned())]).set(1);
        let text = metrics.text();
        let contrib = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib");
        for (file, least) in [("alerts.yml", 10), ("dashboard.json", 15)] {
            let named = named(&std::fs::read_to_string(contrib.join(file)).unwrap());
            assert!(named.len() >= least, "{file}: {named:?}");
            for (name, labels) in named {
                let has = |line: &str| {
                    let rest = line.strip_prefix(name.as_str());
                    rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
                        && labels.iter().all(|(key, value)| line.contains(&format!("{key}=\"{value}\"")))
                };
                assert!(text.lines().any(has), "{file}: there is no {name} with {labels:?}");
            }
        }
        let wrong = named("rate(ampoule_jobs_finished_total{outcome=\\\"x\\\",instance=~\"a\"}[5m])");
        assert_eq!(
            wrong,
            [("ampoule_jobs_finished_total".to_owned(), vec![("outcome".to_owned(), "x".to_owned())])]
        );
    }
}
