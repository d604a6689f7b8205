//! Evidence of a job: statements, envelopes, bundles and their verification.
//!
//! Everything here is a function of its arguments: the crate reads no clock, draws no randomness, opens no
//! file and no socket. Callers pass bytes, keys and a [`Signer`].
//!
//! What it guarantees: a provenance statement can be made only from a [`CleanRun`], only statements that
//! this crate made can be given to [`seal`], and [`verify`] accepts nothing that breaks a rule of
//! `docs/provenance.md` or `docs/run-attestation.md`. What it does not: that the report says the truth.
//! The runner that wrote the report is trusted for that.

mod authority;
mod bundle;
mod canonical;
mod clean;
mod dependencies;
mod dsse;
mod git;
mod inspect;
mod key;
mod made_by;
mod parameters;
mod parameters_back;
mod provenance;
mod record;
mod rules;
mod run;
mod run_build;
mod seal;
mod secrets;
mod slsa;
mod statement;
mod strict;
mod time;
pub mod tlog;
mod trust;
mod uri;
mod verify;

pub use authority::{Authority, AuthorityError, BuilderMode, Issuer, UnknownProfile};
pub use bundle::{BUNDLE_MEDIA_TYPE, Bundle};
pub use canonical::{NotCanonical, canonical_json};
pub use clean::{CleanRun, Unclean};
pub use dsse::{Envelope, EnvelopeError, PAYLOAD_TYPE, Signature, pae};
pub use inspect::{Inspection, escape, inspect};
pub use key::{KeyError, PublicKey, SignatureRefused};
pub use made_by::{Made, MadeByError, MadeByRequest, made_by};
pub use parameters::{ExternalParameters, InternalParameters};
pub use provenance::{ProvenanceRefused, provenance};
pub use record::{JobRecord, RecordError, Unstarted};
pub use rules::{FieldError, SubjectError};
pub use run::{AgentClaims, RunPredicate, RunSandbox, RunStatement};
pub use run_build::{RunRefused, RunRequest, run_attestation};
pub use seal::{SealError, Sealed, Signer, SignerError, seal};
pub use secrets::SecretParameter;
pub use slsa::{PROVENANCE_PREDICATE_TYPE, ProvenancePredicate, ProvenanceStatement};
pub use statement::{Kind, ResourceDescriptor, STATEMENT_TYPE, Statement, UnsignedStatement};
pub use strict::{StrictError, parse_strict};
pub use time::format as rfc3339;
pub use trust::{TrustError, TrustFile, TrustedKey};
pub use uri::{UriError, check_uris};
pub use verify::{ATTESTATION_BYTES_MAX, Verified, VerifyError, VerifyRequest, verify};

#[cfg(test)]
mod tests;
