//! What operators ask about secrets: what is open, its revoke, and whether steps could have theirs.

use super::error::ApiError;
use super::show::time;
use super::submit;
use crate::secrets::{
    Asked, Busy, Checked, CheckedRule, CheckedServer, Finding, FindingState, Held, Secrets, Shown,
    WantedLeases, Which,
};
use ampoule_proto::v1 as wire;
use ampoule_spec::{Code, JobId, Name};
use prost::Message as _;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// Grants on a page if the request says nothing.
const PAGE_DEFAULT: u32 = 100;
/// The most grants on a page.
const PAGE_MAX: u32 = 1000;
/// An answer ends when it has so many bytes: clients take messages of 4 MiB by default.
pub(super) const ANSWER_BYTES_MAX: usize = 3 << 20;
/// The most characters of what is said about one thing.
const DETAIL_CHARS_MAX: usize = 1000;
/// When whoever was not the one to check asks again.
const CHECK_AGAIN: Duration = Duration::from_secs(5);

/// Knows what steps have.
pub trait Leases: Send + Sync + 'static {
    /// What is open, by number.
    fn held(&self, wanted: &WantedLeases) -> Held;
    /// Of which project and job something open is.
    fn whose(&self, which: &Which) -> Option<(Name, JobId)>;
    /// Has something taken back now.
    fn revoke(self: Arc<Self>, which: Which) -> impl Future<Output = Asked> + Send;
    /// Looks whether steps could have their secrets.
    fn look(self: Arc<Self>, project: Option<Name>) -> impl Future<Output = Result<Checked, Busy>> + Send;
}

impl Leases for Secrets {
    fn held(&self, wanted: &WantedLeases) -> Held {
        Self::held(self, wanted)
    }

    fn whose(&self, which: &Which) -> Option<(Name, JobId)> {
        Self::whose(self, which)
    }

    async fn revoke(self: Arc<Self>, which: Which) -> Asked {
        self.revoke_now(&which).await
    }

    async fn look(self: Arc<Self>, project: Option<Name>) -> Result<Checked, Busy> {
        self.look_at_servers(project.as_ref()).await
    }
}

/// Checks what is asked of a list.
pub(super) fn wanted(request: &wire::ListLeasesRequest) -> Result<WantedLeases, ApiError> {
    let limit = match request.page_size {
        0 => PAGE_DEFAULT,
        size @ 1..=PAGE_MAX => size,
        _ => return Err(ApiError::field("page_size", format!("at most {PAGE_MAX}"))),
    };
    let after = match request.page_token.as_str() {
        "" => None,
        token => {
            Some(token.parse().map_err(|_| ApiError::field("page_token", "not one that an answer had"))?)
        }
    };
    let server = match request.server.as_str() {
        "" => None,
        text => Some(Name::parse(text).map_err(|e| ApiError::field("server", e))?),
    };
    let job = match request.job_id.as_str() {
        "" => None,
        text => Some(job(text)?),
    };
    let (project, pending) = (project(&request.project)?, request.pending);
    Ok(WantedLeases { project, job, server, pending, after, limit: limit as usize })
}

pub(super) fn project(text: &str) -> Result<Option<Name>, ApiError> {
    if text.is_empty() { Ok(None) } else { submit::project(text).map(Some) }
}

fn job(text: &str) -> Result<JobId, ApiError> {
    JobId::parse(text).map_err(|e| ApiError::field("job_id", e))
}

/// Checks what is to be revoked.
pub(super) fn which(request: &wire::RevokeLeasesRequest) -> Result<Which, ApiError> {
    match &request.of {
        Some(wire::revoke_leases_request::Of::JobId(text)) => Ok(Which::Job(job(text)?)),
        Some(wire::revoke_leases_request::Of::Grant(id)) => Ok(Which::Grant(*id)),
        None => Err(ApiError::field("of", "missing; name a job, or a grant by its number")),
    }
}

/// Somebody else has the servers looked at.
pub(super) fn busy(_: Busy) -> ApiError {
    ApiError::later(Code::CallBusy, "the servers are being looked at for somebody else", CHECK_AGAIN)
}

/// A page as the wire has it.
pub(super) fn page(held: Held) -> wire::ListLeasesResponse {
    let mut answer = wire::ListLeasesResponse::default();
    let (count, mut bytes, mut last) = (held.grants.len(), 0, None);
    for grant in held.grants {
        let (id, shown) = (grant.id, grant_of(grant));
        bytes += shown.encoded_len() + 8;
        if bytes > ANSWER_BYTES_MAX && last.is_some() {
            break;
        }
        last = Some(id);
        answer.grants.push(shown);
    }
    if held.more || answer.grants.len() < count {
        answer.next_page_token = last.map(|id| id.to_string()).unwrap_or_default();
    }
    answer
}

fn grant_of(grant: Shown) -> wire::SecretGrant {
    wire::SecretGrant {
        id: grant.id,
        project: grant.project.to_string(),
        job_id: grant.job.to_string(),
        step: grant.step,
        step_name: grant.step_name.to_string(),
        server: grant.server.map(|name| name.to_string()).unwrap_or_default(),
        secrets: grant.secrets,
        accessor_sha256: grant.accessor_sha256.unwrap_or_default(),
        leases: u32::try_from(grant.leases).unwrap_or(u32::MAX),
        minted_at: Some(time(grant.minted_at)),
        handed_over_at: grant.given_at.map(time),
        until: Some(time(grant.until)),
        revoking_since: grant.revoking_at.map(time),
        tries: grant.tries,
        last_error: grant.last_error.unwrap_or_default(),
    }
}

/// What was found, as the wire has it: what is not as it should be first, where not all of it has room.
pub(super) fn checked(checked: Checked) -> wire::CheckSecretsResponse {
    let servers = checked.servers.into_iter().map(|CheckedServer { server, findings }| {
        let findings = findings.into_iter().map(finding).collect();
        wire::SecretServerCheck { server: server.to_string(), findings }
    });
    let servers: Vec<_> = servers.collect();
    let mut bytes: usize = servers.iter().map(|server| server.encoded_len() + 8).sum();
    let (mut good, bad): (Vec<_>, Vec<_>) =
        checked.rules.into_iter().partition(|rule| rule.finding.state == FindingState::Ok);
    let count = good.len() + bad.len();
    let mut rules = Vec::new();
    for rule in bad.into_iter().chain(good.drain(..)) {
        let rule = rule_of(rule);
        bytes += rule.encoded_len() + 8;
        if bytes > ANSWER_BYTES_MAX {
            break;
        }
        rules.push(rule);
    }
    let rules_left_out = u32::try_from(count - rules.len()).unwrap_or(u32::MAX);
    rules.sort_by(|a, b| (&a.project, &a.name).cmp(&(&b.project, &b.name)));
    let configuration = checked.configuration.map(finding);
    wire::CheckSecretsResponse { servers, rules, rules_left_out, configuration }
}

fn rule_of(rule: CheckedRule) -> wire::SecretRuleCheck {
    wire::SecretRuleCheck {
        project: rule.project.to_string(),
        name: rule.name.to_string(),
        provider: rule.provider,
        finding: Some(finding(rule.finding)),
    }
}

fn finding(finding: Finding) -> wire::Finding {
    let state = match finding.state {
        FindingState::Ok => wire::FindingState::Ok,
        FindingState::Warning => wire::FindingState::Warning,
        FindingState::Failed => wire::FindingState::Failed,
        FindingState::Unknown => wire::FindingState::Unknown,
    };
    wire::Finding {
        what: finding.what.to_owned(),
        state: state.into(),
        detail: finding.detail.chars().take(DETAIL_CHARS_MAX).collect(),
        passes: finding.passes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_room_is_what_is_as_it_should_be_and_is_counted() {
        let rule = |number: usize, state| CheckedRule {
            project: Name::parse("p").unwrap(),
            name: Name::parse(&format!("n{number:05}")).unwrap(),
            provider: "vault:main".to_owned(),
            finding: Finding { what: "source", state, detail: "x".repeat(5000), passes: false },
        };
        let good = (0..9000).map(|number| rule(number, FindingState::Ok));
        let rules = good.chain([rule(9999, FindingState::Failed)]).collect();
        let answer = checked(Checked { rules, ..Checked::default() });
        assert!(answer.encoded_len() < 4 << 20 && answer.rules_left_out > 0);
        assert_eq!(answer.rules.len() + answer.rules_left_out as usize, 9001);
        assert_eq!(answer.rules.last().unwrap().name, "n09999");
        let few = checked(Checked { rules: vec![rule(1, FindingState::Ok)], ..Checked::default() });
        assert_eq!((few.rules.len(), few.rules_left_out), (1, 0));
    }

    #[test]
    fn questions_name_the_field_that_is_wrong() {
        let list = |change: fn(&mut wire::ListLeasesRequest)| {
            let mut request = wire::ListLeasesRequest::default();
            change(&mut request);
            wanted(&request).map_err(|error| error.field.unwrap())
        };
        assert_eq!(list(|_| {}), Ok(WantedLeases { limit: 100, ..WantedLeases::default() }));
        assert_eq!(list(|of| of.page_size = 1001).unwrap_err(), "page_size");
        assert_eq!(list(|of| of.page_token = "x".to_owned()).unwrap_err(), "page_token");
        assert_eq!(list(|of| of.job_id = "x".to_owned()).unwrap_err(), "job_id");
        assert_eq!(list(|of| of.server = "a/b".to_owned()).unwrap_err(), "server");
        assert_eq!(list(|of| of.project = "a/b".to_owned()).unwrap_err(), "project");
        assert_eq!(which(&wire::RevokeLeasesRequest::default()).unwrap_err().field.unwrap(), "of");
    }
}
