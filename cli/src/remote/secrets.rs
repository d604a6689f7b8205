//! `ampoule secrets leases`, `revoke` and `check`.

use super::Remote;
use super::args::{SecretsCheckArgs, SecretsLeasesArgs, SecretsRevokeArgs};
use super::printer::time;
use crate::failure::Failed;
use crate::show;
use ampoule_evidence::escape;
use ampoule_proto::v1 as proto;
use ampoule_proto::v1::FindingState;
use ampoule_proto::v1::revoke_leases_request::Of;
use ampoule_spec::{Code, Exit};
use serde_json::{Value, json};

/// Grants in one page.
const PAGE: u32 = 1000;
/// The head of the table of grants.
const COLUMNS: [&str; 9] =
    ["grant", "project", "job", "step", "server", "leases", "since", "revoking", "tries"];

/// Lists what steps have of secrets and is not given back yet, the oldest first.
pub(crate) fn leases(args: &SecretsLeasesArgs) -> Result<u8, Failed> {
    let remote = Remote::new(&args.server)?;
    let mut request = proto::ListLeasesRequest {
        project: args.project.clone().unwrap_or_default(),
        job_id: args.job.clone().unwrap_or_default(),
        server: args.of.clone().unwrap_or_default(),
        pending: args.pending,
        ..proto::ListLeasesRequest::default()
    };
    let (mut left, mut rows) = (args.limit, Vec::new());
    while left > 0 {
        request.page_size = left.min(PAGE);
        let page = remote.ask(remote.client.leases(&request))?;
        left = left.saturating_sub(u32::try_from(page.grants.len()).unwrap_or(u32::MAX));
        let is_last = page.next_page_token.is_empty() || page.grants.is_empty();
        if args.json {
            page.grants.iter().for_each(|grant| show::json(&grant_json(grant)));
        } else {
            rows.extend(page.grants);
        }
        if is_last {
            break;
        }
        request.page_token = page.next_page_token;
    }
    if !args.json {
        table(&rows).iter().for_each(|line| show::data(line));
    }
    Ok(Exit::Success as u8)
}

fn grant_json(grant: &proto::SecretGrant) -> Value {
    json!({
        "grant": grant.id, "project": grant.project, "job": grant.job_id, "step": grant.step, "step_name": grant.step_name,
        "server": grant.server, "secrets": grant.secrets, "accessor_sha256": grant.accessor_sha256, "leases": grant.leases,
        "minted_at": time(grant.minted_at.as_ref()), "handed_over_at": time(grant.handed_over_at.as_ref()),
        "until": time(grant.until.as_ref()), "revoking_since": time(grant.revoking_since.as_ref()), "tries": grant.tries,
        "last_error": grant.last_error,
    })
}

/// A line for each grant below the head, and one more for why it is not back yet. Without grants nothing.
fn table(grants: &[proto::SecretGrant]) -> Vec<String> {
    if grants.is_empty() {
        return Vec::new();
    }
    let head = COLUMNS.map(str::to_owned);
    let rows: Vec<[String; 9]> = std::iter::once(head).chain(grants.iter().map(row)).collect();
    let mut widths = [0; 9];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &[String; 9]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = Vec::new();
    for (at, row) in rows.iter().enumerate() {
        lines.push(line(row));
        let grant = at.checked_sub(1).and_then(|at| grants.get(at));
        if let Some(grant) = grant.filter(|grant| !grant.last_error.is_empty()) {
            lines.push(escape(&format!("    {}", grant.last_error)));
        }
    }
    lines
}

fn row(grant: &proto::SecretGrant) -> [String; 9] {
    let shown = |at: &Option<prost_types::Timestamp>| at.map_or_else(|| "-".to_owned(), |at| at.to_string());
    [
        grant.id.to_string(),
        escape(&grant.project),
        escape(&grant.job_id),
        escape(&grant.step_name),
        if grant.server.is_empty() { "-".to_owned() } else { escape(&grant.server) },
        grant.leases.to_string(),
        shown(&grant.minted_at),
        shown(&grant.revoking_since),
        grant.tries.to_string(),
    ]
}

/// Has something taken back now; 75 if it is not yet.
pub(crate) fn revoke(args: &SecretsRevokeArgs) -> Result<u8, Failed> {
    let remote = Remote::new(&args.server)?;
    let of = match (&args.job, args.grant) {
        (Some(job), None) => Of::JobId(job.clone()),
        (None, Some(grant)) => Of::Grant(grant),
        _ => return Err(Failed::new(Code::Usage, "name a job, or a grant by --grant")),
    };
    let answer = remote.ask(remote.client.revoke(&proto::RevokeLeasesRequest { of: Some(of) }))?;
    if args.json {
        show::json(&json!({"asked": answer.asked, "open": answer.open}));
    } else {
        show::data(&said(&answer));
    }
    Ok(if answer.open == 0 { Exit::Success as u8 } else { Exit::TryAgain as u8 })
}

fn said(answer: &proto::RevokeLeasesResponse) -> String {
    match (answer.asked, answer.open) {
        (0, _) => "nothing of it is open".to_owned(),
        (asked, 0) => format!("{asked} taken back"),
        (asked, open) => format!(
            "{} of {asked} taken back; the rest is tried until the server agrees: ampoule secrets leases --pending says why it does not",
            asked.saturating_sub(open)
        ),
    }
}

/// Has the servers looked at; 64 if something is wrong, 75 if that may be otherwise later.
pub(crate) fn check(args: &SecretsCheckArgs) -> Result<u8, Failed> {
    let remote = Remote::new(&args.server)?;
    let request = proto::CheckSecretsRequest { project: args.project.clone().unwrap_or_default() };
    let answer = remote.ask(remote.client.check_secrets(&request))?;
    if args.json {
        show::json(&check_json(&answer));
    } else {
        check_lines(&answer).iter().for_each(|line| show::data(line));
        show::line(&verdict(&answer));
    }
    Ok(status(&answer))
}

fn findings(answer: &proto::CheckSecretsResponse) -> impl Iterator<Item = &proto::Finding> {
    let of_servers = answer.servers.iter().flat_map(|server| &server.findings);
    answer
        .configuration
        .iter()
        .chain(of_servers)
        .chain(answer.rules.iter().filter_map(|rule| rule.finding.as_ref()))
}

fn status(answer: &proto::CheckSecretsResponse) -> u8 {
    let mut failed = findings(answer).filter(|finding| is_failed(finding)).peekable();
    match (failed.peek().is_some(), failed.all(|finding| finding.passes)) {
        (false, _) => Exit::Success as u8,
        (true, true) => Exit::TryAgain as u8,
        (true, false) => Exit::Usage as u8,
    }
}

/// What a newer daemon says in words that this build does not know is no good word.
fn is_failed(finding: &proto::Finding) -> bool {
    !matches!(finding.state(), FindingState::Ok | FindingState::Warning | FindingState::Unknown)
}

fn word(finding: &proto::Finding) -> &'static str {
    match finding.state() {
        FindingState::Ok => "ok",
        FindingState::Warning => "warning",
        FindingState::Unknown => "unknown",
        FindingState::Failed | FindingState::Unspecified => "FAILED",
    }
}

fn finding_json(finding: &proto::Finding) -> Value {
    let state = word(finding).to_lowercase();
    json!({"what": finding.what, "state": state, "detail": finding.detail, "retryable": finding.passes})
}

fn check_json(answer: &proto::CheckSecretsResponse) -> Value {
    let servers = answer.servers.iter().map(|server| {
        let findings: Vec<_> = server.findings.iter().map(finding_json).collect();
        json!({"server": server.server, "findings": findings})
    });
    let rules = answer.rules.iter().map(|rule| {
        let finding = rule.finding.as_ref().map(finding_json);
        json!({"project": rule.project, "name": rule.name, "provider": rule.provider, "finding": finding})
    });
    let configuration = answer.configuration.as_ref().map(finding_json);
    json!({
        "exit": status(answer), "configuration": configuration, "servers": servers.collect::<Vec<_>>(), "rules": rules.collect::<Vec<_>>(),
        "rules_left_out": answer.rules_left_out,
    })
}

fn check_lines(answer: &proto::CheckSecretsResponse) -> Vec<String> {
    let line = |of: &str, finding: &proto::Finding| {
        escape(&format!("{:<7}  {of:<32} {:<10} {}", word(finding), finding.what, finding.detail))
    };
    let servers = answer.servers.iter();
    let servers = servers
        .flat_map(|of| of.findings.iter().map(move |finding| (format!("server {}", of.server), finding)));
    let rules = answer.rules.iter();
    let rules = rules.filter_map(|of| Some((format!("{}/{}", of.project, of.name), of.finding.as_ref()?)));
    let configuration = answer.configuration.iter().map(|finding| ("configuration".to_owned(), finding));
    configuration.chain(servers).chain(rules).map(|(of, finding)| line(&of, finding)).collect()
}

fn verdict(answer: &proto::CheckSecretsResponse) -> String {
    let count = |state: FindingState| findings(answer).filter(|finding| finding.state() == state).count();
    let failed = findings(answer).filter(|finding| is_failed(finding)).count();
    let more = match answer.rules_left_out {
        0 => String::new(),
        more => format!("; {more} secrets more are as they should be"),
    };
    format!(
        "{}, {}: {failed} failed, {}, {} not known{more}",
        counted(answer.servers.len(), "server"),
        counted(answer.rules.len(), "secret"),
        counted(count(FindingState::Warning), "warning"),
        count(FindingState::Unknown),
    )
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(state: FindingState, passes: bool) -> proto::Finding {
        proto::Finding {
            what: "login".to_owned(),
            state: state.into(),
            detail: "x\u{1b}[2J".to_owned(),
            passes,
        }
    }

    fn answer(all: &[(FindingState, bool)]) -> proto::CheckSecretsResponse {
        let findings = all.iter().map(|(state, passes)| finding(*state, *passes)).collect();
        let server = proto::SecretServerCheck { server: "main".to_owned(), findings };
        proto::CheckSecretsResponse { servers: vec![server], ..Default::default() }
    }

    #[test]
    fn check_ends_with_64_if_somebody_has_to_act_and_with_75_if_time_may_help() {
        use FindingState::{Failed, Ok, Unknown, Unspecified, Warning};
        for (all, exit) in [
            (&[(Ok, false), (Warning, false), (Unknown, false)][..], 0),
            (&[(Failed, true), (Ok, false)], 75),
            (&[(Failed, true), (Failed, false)], 64),
            (&[(Unspecified, false)], 64),
            (&[], 0),
        ] {
            assert_eq!(status(&answer(all)), exit, "{all:?}");
            assert_eq!(check_json(&answer(all))["exit"], exit);
        }
        let rule = proto::SecretRuleCheck { finding: Some(finding(Failed, false)), ..Default::default() };
        let of_rule = proto::CheckSecretsResponse { rules: vec![rule], ..answer(&[(Ok, false)]) };
        assert_eq!(status(&of_rule), 64);
        assert!(verdict(&of_rule).contains("1 failed"), "{}", verdict(&of_rule));
        let refused = finding(Failed, false);
        let refused = proto::CheckSecretsResponse { configuration: Some(refused), ..answer(&[(Ok, false)]) };
        assert_eq!(
            (status(&refused), check_json(&refused)["configuration"]["state"].as_str()),
            (64, Some("failed"))
        );
        assert!(
            check_lines(&refused)[0].starts_with("FAILED   configuration"),
            "{:?}",
            check_lines(&refused)
        );
        assert!(verdict(&refused).contains("1 failed"));
    }

    #[test]
    fn tables_drive_no_terminal_and_say_why_something_is_not_back() {
        let grant = proto::SecretGrant {
            id: 7,
            project: "app\u{1b}[31m".to_owned(),
            revoking_since: Some(prost_types::Timestamp { seconds: 1_767_323_045, nanos: 0 }),
            tries: 3,
            last_error: "the server is sealed\u{202e}\n".to_owned(),
            ..Default::default()
        };
        let lines = table(&[grant.clone(), proto::SecretGrant::default()]);
        assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), COLUMNS);
        assert!(lines[1].contains("2026-01-02T03:04:05Z") && lines[2].contains("sealed"), "{lines:?}");
        assert_eq!(lines.len(), 4, "one line for each, and one for the reason");
        let check = check_lines(&answer(&[(FindingState::Failed, false)]));
        let all = lines.iter().chain(&check);
        assert!(
            all.clone().all(|line| line.chars().all(|c| c.is_ascii_graphic() || c == ' ')),
            "{lines:?} {check:?}"
        );
        assert!(table(&[]).is_empty());
        assert_eq!(grant_json(&grant)["revoking_since"], "2026-01-02T03:04:05Z");
        assert_eq!(grant_json(&grant)["handed_over_at"], Value::Null);
    }

    #[test]
    fn revoke_says_what_is_back_and_what_is_not() {
        let said = |asked, open| said(&proto::RevokeLeasesResponse { asked, open });
        assert_eq!((said(0, 0).as_str(), said(2, 0).as_str()), ("nothing of it is open", "2 taken back"));
        assert!(said(2, 1).starts_with("1 of 2 taken back"));
    }
}
