//! What the agent says on a job's control socket besides [`crate::wire::CANCEL`], one packet each.
//!
//! A packet is one byte that says what it is, then JSON; values lie beside it in sealed memory files, one each, in the
//! order of their names. Each is answered by one packet with a [`ControlAnswer`].

use crate::{Code, Name};
use serde::{Deserialize, Serialize};

/// First byte of a packet with a [`StepSecrets`].
pub const SECRETS: u8 = b's';
/// First byte of a packet with a [`RotateSecret`].
pub const ROTATE: u8 = b'r';
/// The largest packet, in bytes.
pub const CONTROL_BYTES_MAX: usize = 8 << 10;
/// The longest message of a [`SecretsFailed`], in bytes.
pub const FAILED_BYTES_MAX: usize = 2 << 10;
/// How long a step waits for its secrets, in seconds.
pub const SECRETS_WAIT_SECONDS: u64 = 300;

/// What becomes of a step that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum StepSecrets {
    /// It has its secrets. A memory file for each.
    Given(GivenSecrets),
    /// It cannot have them, and the job ends.
    Failed(FailedSecrets),
}

/// The values of a step's secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GivenSecrets {
    /// The step's place in the job, from 0.
    pub step: u32,
    /// Its secrets, in the order in which it names them.
    pub values: Vec<SecretValue>,
}

/// One value's name and length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretValue {
    /// The secret.
    pub name: Name,
    /// How many bytes it has.
    pub bytes: u64,
}

/// That a step gets none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailedSecrets {
    /// The step's place in the job, from 0.
    pub step: u32,
    /// Why.
    pub failed: SecretsFailed,
}

/// Why a step gets no secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretsFailed {
    /// [`Code::SecretDenied`] or [`Code::SecretUnavailable`].
    pub code: Code,
    /// For people; no secret, no server and no path.
    pub message: String,
}

/// Another value for a step that runs. One memory file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotateSecret {
    /// The step's place in the job, from 0.
    pub step: u32,
    /// The secret, which the step has as a file.
    pub name: Name,
    /// How many bytes the value has.
    pub bytes: u64,
}

/// What the supervisor answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlAnswer {
    /// It has what was sent, and does as it says. Always true.
    Took(bool),
    /// It has not, and nothing has changed: why.
    Refused(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_what_the_design_says() {
        let read = |text| serde_json::from_str::<StepSecrets>(text);
        let given = read(r#"{"step":1,"values":[{"name":"a","bytes":9}]}"#).unwrap();
        assert!(matches!(given, StepSecrets::Given(GivenSecrets { step: 1, .. })));
        let failed = read(r#"{"step":0,"failed":{"code":"secret.denied","message":"no"}}"#).unwrap();
        assert!(matches!(failed, StepSecrets::Failed(_)));
        for odd in [r#"{"step":1}"#, r#"{"step":1,"values":[],"failed":{"code":"internal","message":""}}"#] {
            assert!(read(odd).is_err(), "{odd}");
        }
        assert_eq!(serde_json::to_string(&ControlAnswer::Took(true)).unwrap(), r#"{"took":true}"#);
        let refused = ControlAnswer::Refused("why".into());
        assert_eq!(serde_json::to_string(&refused).unwrap(), r#"{"refused":"why"}"#);
    }

    #[test]
    fn the_most_secrets_with_the_longest_names_fit_into_a_packet() {
        let name = Name::parse(&"a".repeat(64)).unwrap();
        let values = vec![SecretValue { name, bytes: 65_536 }; crate::SECRETS_MAX];
        let given = GivenSecrets { step: 255, values };
        assert!(serde_json::to_vec(&given).unwrap().len() < CONTROL_BYTES_MAX);
    }
}
