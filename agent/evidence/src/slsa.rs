//! The SLSA provenance v1 predicate: exactly its fields (slsa.dev/spec/v1.2/build-provenance).

use crate::statement::{ResourceDescriptor, Statement};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The predicate type of SLSA provenance v1.
pub const PROVENANCE_PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";

/// A provenance statement.
pub type ProvenanceStatement = Statement<ProvenancePredicate>;

/// How an artifact was built.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProvenancePredicate {
    /// What was asked for and what it was built from.
    pub build_definition: BuildDefinition,
    /// Who built it, and when.
    pub run_details: RunDetails,
}

/// What was asked for and what it was built from. No job id, attempt, user id or time is in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BuildDefinition {
    /// Names the schema of both parameter objects.
    pub build_type: String,
    /// Everything the tenant chose: [`crate::ExternalParameters`].
    pub external_parameters: Map<String, Value>,
    /// What the daemon chose: [`crate::InternalParameters`].
    pub internal_parameters: Map<String, Value>,
    /// The image first, then the inputs in the job's order.
    pub resolved_dependencies: Vec<ResourceDescriptor>,
}

/// Who built it, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunDetails {
    /// Who.
    pub builder: Builder,
    /// When, and in which run.
    pub metadata: Metadata,
    /// Logs, reports and the teardown record.
    pub byproducts: Vec<ResourceDescriptor>,
}

/// Who built it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Builder {
    /// The builder and its mode.
    pub id: String,
    /// Versions of what the builder is made of.
    pub version: BTreeMap<String, String>,
    /// The runner's executable, where its digest is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub builder_dependencies: Vec<ResourceDescriptor>,
}

/// When, and in which run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// `urn:uuid:` and the job's id: another one for each attempt.
    pub invocation_id: String,
    /// When the first step's process began.
    pub started_on: String,
    /// When the last step's last process ended.
    pub finished_on: String,
}
