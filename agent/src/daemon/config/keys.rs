//! Every key of the configuration. The reader knows no others, and the reference in `docs/operations.md` is this table.

/// A key.
#[derive(Debug)]
pub(crate) struct Key {
    /// The table that it stands in; empty for the top of the file. `project.NAME` is for any project.
    pub(crate) section: &'static str,
    /// Its name.
    pub(crate) name: &'static str,
    /// What is used when it is not there.
    pub(crate) default: &'static str,
    /// A value as it is written.
    pub(crate) example: &'static str,
    /// What it says.
    pub(crate) about: &'static str,
}

/// The header of each table, in the order of the reference.
pub(crate) const SECTIONS: &[&str] = &[
    "",
    "listen",
    "tls",
    "runner",
    "limits",
    "quota",
    "project.NAME",
    "retention",
    "signing",
    "secrets",
    "audit",
    "metrics",
    "traces",
    "log",
    "drain",
    "host",
];

const fn key(
    section: &'static str,
    name: &'static str,
    default: &'static str,
    example: &'static str,
    about: &'static str,
) -> Key {
    Key { section, name, default, example, about }
}

/// The keys.
#[rustfmt::skip]
pub(crate) const KEYS: &[Key] = &[
    key("", "dev", "false", "true", "for trying things out: the example authority and a key made on first use are taken; statements say `dev`"),
    key("", "authority", "none", "\"https://builds.corp.example\"", "base of builder ids and type URIs; must be there unless `dev`"),
    key("", "state", "`/var/lib/ampouled`", "\"/var/lib/ampouled\"", "the daemon's own directory: ledger, records, uploads, audit log"),
    key("", "audit_origin", "`audit.` and the authority's host", "\"audit.build7.corp.example\"", "the audit log's name for good, in its checkpoints"),
    key("", "policy", "`policy`", "\"/etc/ampoule/policy\"", "directory of the Rego policy that decides each call"),
    key("", "sources", "none", "\"/etc/ampoule/sources.toml\"", "[where inputs may come from](sources.md); none: content is uploaded, nothing is fetched"),
    key("", "identities", "`identities.toml`", "\"/etc/ampoule/identities.toml\"", "who is known by certificate or token; without the file only local peers are"),
    key("", "profiles", "`[\"hermetic\"]`", "[\"hermetic\", \"fetch\"]", "profiles that jobs may ask for, of those that the launcher has and the host meets"),
    key("listen", "unix", "none", "\"/run/ampoule/agent.sock\"", "a local socket, mode 0660 and of the daemon's group; callers are known by their uid"),
    key("listen", "tcp", "none", "\"10.0.0.5:7443\"", "an address and port; needs `[tls]`"),
    key("listen", "systemd", "`[]`", "[\"agent\"]", "sockets of the unit, by `FileDescriptorName=`; one that is TCP needs `[tls]`"),
    key("listen", "reflection", "false", "true", "whether the schema can be asked for (gRPC server reflection)"),
    key("tls", "certificate", "none", "\"tls/agent.pem\"", "certificate chain, PEM"),
    key("tls", "key", "none", "\"tls/agent.key\"", "its private key, PEM, for the daemon's eyes only"),
    key("tls", "client_ca", "none", "\"tls/clients.pem\"", "authorities of client certificates, PEM; without it callers need a token"),
    key("tls", "tokens", "false", "true", "whether a caller without a certificate may try it with a token"),
    key("runner", "socket", "`/run/ampoule/runner.sock`", "\"/run/ampoule/runner.sock\"", "where `ampoule-runner listen` listens"),
    key("runner", "state", "`/var/lib/ampoule`", "\"/var/lib/ampoule\"", "its state directory, of which job directories are read"),
    key("limits", "queue", "`10000`", "500", "jobs that wait, at most"),
    key("limits", "running", "`64`", "8", "jobs that are prepared, run or attested at once, at most"),
    key("limits", "patience", "`16`", "4", "how many starts may pass a job that does not fit yet"),
    key("limits", "cpus", "the host's", "7.5", "processors that jobs are promised together"),
    key("limits", "memory", "the host's, less a tenth", "\"48GiB\"", "memory that jobs are promised together"),
    key("limits", "disk", "what `runner.state` has free at start, less a tenth", "\"400GiB\"", "disk that jobs are promised together"),
    key("limits", "uploads", "`64GiB`", "\"20GiB\"", "disk for uploads that are not complete yet"),
    key("quota", "queue", "`1000`", "100", "jobs of one project that wait, at most"),
    key("quota", "running", "`64`", "4", "jobs of one project that run at once, at most"),
    key("project.NAME", "weight", "1", "3", "its share among projects: with twice the weight it runs twice as much"),
    key("project.NAME", "queue", "as `quota`", "200", "its own quota"),
    key("project.NAME", "running", "as `quota`", "6", "its own quota"),
    key("project.NAME", "registry_auth", "none", "\"registry-auth.json\"", "credentials that its images are fetched with; a project without the key has none"),
    key("project.NAME", "allowed_signers", "none", "\"allowed-signers\"", "who may sign its commits, in the form of ssh-keygen(1): what a job's `allowed_signers` must be"),
    key("project.NAME", "trust", "none", "\"trust.json\"", "whose provenance its jobs believe for `attestation` inputs, in the form of `ampoule verify --trust`; a project without the key has no such inputs"),
    key("retention", "jobs", "`168h`", "\"72h\"", "how long logs and outputs of a finished job are kept"),
    key("retention", "bytes", "`20GiB`", "\"200GiB\"", "how many bytes of logs and outputs are kept at most; of the project that has the most, the oldest go first"),
    key("retention", "records", "`720h`", "\"8760h\"", "how long its signed record is kept at most"),
    key("retention", "least", "`1h`", "\"24h\"", "how long it is kept at least: a project that has more than `count` and `record_bytes` within that is refused"),
    key("retention", "count", "`10000`", "500", "how many records of one project are kept; its oldest go first"),
    key("retention", "record_bytes", "`4GiB`", "\"20GiB\"", "how many bytes of records of one project are kept; its oldest go first"),
    key("signing", "key", "none", "\"provenance.key\"", "[the signing key](#keys), PKCS#8 PEM"),
    key("signing", "credential", "none", "\"provenance-key\"", "or its name in the unit's `LoadCredential=`"),
    key("signing", "transit", "none", "\"transit.toml\"", "or a file that names [a key of Vault's Transit](#signing-by-vault)"),
    key("secrets", "file", "none: no step has a secret", "\"secrets.toml\"", "[which secrets projects have](secrets.md), and from where"),
    key("audit", "rate", "`20`", "5", "entries of the audit log that one caller may have written each second, for good; reading the same again within a minute is counted instead"),
    key("audit", "burst", "`10000`", "1000", "how many of them at once, after a while without any"),
    key("metrics", "listen", "`127.0.0.1:9464`", "\"/run/ampoule/metrics.sock\"", "a loopback address and port, or a path for a local socket; `off` for none"),
    key("traces", "endpoint", "none: no spans are made", "\"https://collector.corp.example:4317\"", "where [spans of calls and jobs](#traces) go, by OTLP over gRPC; without TLS (`http:`) to a loopback address alone"),
    key("traces", "ca", "none", "\"tls/collector-ca.pem\"", "authorities of the collector's certificate, PEM; needed for `https:`"),
    key("traces", "certificate", "none", "\"tls/agent-traces.pem\"", "certificate chain that is shown to the collector, PEM"),
    key("traces", "key", "none", "\"tls/agent-traces.key\"", "its private key, PEM"),
    key("log", "format", "`json`", "\"text\"", "`json` and `text` go to stderr, `journal` to journald with fields"),
    key("log", "level", "`info`", "\"info,ampoule_agent::job=debug\"", "what is told: `error`, `warn`, `info`, `debug`, `trace`, also by module"),
    key("drain", "deadline", "`30s`", "\"2m\"", "how long calls in flight may take when the daemon ends; jobs go on without it"),
    key("host", "baseline", "none", "\"/etc/ampoule/baseline.json\"", "[what the host must stay](#host-drift), as `ampouled --record-baseline` writes it"),
    key("host", "every", "`10m`", "\"1h\"", "how often the host is compared with it"),
    key("host", "refuse_on_drift", "false", "true", "whether drift ends the intake, and jobs that wait go on waiting"),
];

/// The names of a table's keys.
pub(crate) fn known(section: &str) -> Vec<&'static str> {
    KEYS.iter().filter(|key| key.section == section).map(|key| key.name).collect()
}

/// An example of a key as a message shows it.
pub(crate) fn example(section: &str, name: &str) -> &'static str {
    KEYS.iter().find(|key| key.section == section && key.name == name).map_or("", |key| key.example)
}

/// The reference: a table in Markdown.
pub fn reference() -> String {
    let mut text = String::from("| key | default | as in | says |\n|---|---|---|---|\n");
    for key in KEYS {
        let dot = if key.section.is_empty() { "" } else { "." };
        text.push_str(&format!(
            "| `{}{dot}{}` | {} | `{}` | {} |\n",
            key.section, key.name, key.default, key.example, key.about
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_in_the_operations_page_is_this_table() {
        let page = std::fs::read_to_string(
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md"),
        );
        let table = reference();
        assert!(page.unwrap().contains(&table), "docs/operations.md lacks this table:\n{table}");
    }

    #[test]
    fn every_key_stands_in_a_known_table_once() {
        for key in KEYS {
            assert!(SECTIONS.contains(&key.section), "{}", key.section);
            let same = KEYS.iter().filter(|other| (other.section, other.name) == (key.section, key.name));
            assert_eq!(same.count(), 1, "{}.{}", key.section, key.name);
        }
        assert!(SECTIONS.iter().all(|section| !known(section).is_empty()));
    }
}
