//! What a step's names come to by the operator's rules: which server is asked for what, once for each path.

use super::acquire::{AcquireError, Step};
use super::mapping::{Source, Wanted};
use super::service::Secrets;
use crate::vault::Read;
use ampoule_spec::Name;
use std::collections::BTreeMap;
use std::time::Duration;

/// One field of one read, and which of the step's secrets it is.
#[derive(Debug, Clone)]
pub(super) struct Field {
    pub(super) at: usize,
    pub(super) name: Name,
    pub(super) field: Option<String>,
}

/// What one token of one server gives.
pub(super) type Reads = BTreeMap<Read, Vec<Field>>;

/// What is to be taken, by where: fields of one path are one read, so that a user and its password belong together.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// By server, and by how often it is looked for again.
    pub(super) servers: BTreeMap<(Name, Option<Duration>), Reads>,
    pub(super) host: Vec<(usize, Name, Source)>,
}

impl Plan {
    pub(super) fn rotates(&self) -> Option<Duration> {
        self.servers.keys().filter_map(|(_, rotate)| *rotate).min()
    }
}

impl Secrets {
    /// How often some of a step's values are looked for again; none: never.
    pub fn rotates(&self, step: &Step) -> Option<Duration> {
        self.plan(step).ok().and_then(|plan| plan.rotates())
    }

    pub(super) fn plan(&self, step: &Step) -> Result<Plan, AcquireError> {
        let rules = self.rules();
        let mut plan = Plan::default();
        for (at, secret) in step.secrets.iter().enumerate() {
            let wanted = Wanted {
                project: &step.project,
                name: &secret.name,
                caller: &step.caller,
                profile: &step.profile,
                is_signed: step.is_signed,
                delivery: &secret.delivery,
            };
            let rule = rules.mapping.decide(&wanted).map_err(AcquireError::Denied)?;
            match &rule.source {
                Source::Vault { server, read, field, rotate } => {
                    // Only a file can have another value while its step runs.
                    let is_file = matches!(secret.delivery, ampoule_spec::Delivery::File(_));
                    let reads = plan.servers.entry((server.clone(), rotate.filter(|_| is_file))).or_default();
                    let field = Field { at, name: secret.name.clone(), field: field.clone() };
                    reads.entry(read.clone()).or_default().push(field);
                }
                source => plan.host.push((at, secret.name.clone(), source.clone())),
            }
        }
        Ok(plan)
    }
}
