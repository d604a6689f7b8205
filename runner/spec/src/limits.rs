//! What a job may use. Every quantity carries its unit in its name.

use serde::{Deserialize, Serialize};

macro_rules! limits {
    ($($(#[$doc:meta])* $field:ident >= $floor:literal,)+) => {
        /// The limits in force for one job: all of them, always.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Limits { $($(#[$doc])* pub $field: u64,)+ }

        /// What a job asks for; what it leaves out comes from the profile.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct LimitsRequest {
            $($(#[$doc])* #[serde(default, skip_serializing_if = "Option::is_none")] pub $field: Option<u64>,)+
        }

        impl LimitsRequest {
            /// Fills in the profile's defaults and holds the result against its ceiling.
            ///
            /// # Errors
            /// The name of the first limit that is below what a sandbox needs or above the ceiling, with what
            /// was asked and what is allowed.
            pub fn resolve(&self, default: &Limits, ceiling: &Limits) -> Result<Limits, LimitRefused> {
                Ok(Limits {
                    $($field: {
                        let asked = self.$field.unwrap_or(default.$field);
                        if asked < $floor || asked > ceiling.$field {
                            return Err(LimitRefused {
                                limit: stringify!($field), asked, least: $floor, most: ceiling.$field,
                            });
                        }
                        asked
                    },)+
                })
            }
        }

        impl Limits {
            /// Every limit by name, in a fixed order.
            pub fn entries(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($field), self.$field),)+]
            }
        }
    };
}

limits! {
    /// Memory of all processes together, page cache included, in bytes; swap is off.
    memory_bytes >= 4_194_304,
    /// Processor time per second, in thousandths of a processor.
    cpu_millis >= 10,
    /// Processes and threads together.
    pids >= 1,
    /// Bytes in the writable layer.
    disk_bytes >= 1_048_576,
    /// Files, directories and links in the writable layer.
    disk_inodes >= 200,
    /// Log bytes kept for each step and stream; the middle is cut beyond it.
    log_bytes >= 1_024,
    /// Wall-clock time of all steps together, in milliseconds.
    timeout_ms >= 1,
    /// Open descriptors of one process.
    open_files >= 16,
}

/// A limit that a profile does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("limits.{limit}: {asked} is not allowed; ask for {least} to {most}")]
pub struct LimitRefused {
    /// The limit's name.
    pub limit: &'static str,
    /// What the job asks for.
    pub asked: u64,
    /// The least that a sandbox can be made with.
    pub least: u64,
    /// The most that the profile allows.
    pub most: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(value: u64) -> Limits {
        let json: serde_json::Map<String, serde_json::Value> =
            LimitsRequest::default().resolve_names().into_iter().map(|n| (n.into(), value.into())).collect();
        serde_json::from_value(json.into()).unwrap()
    }

    impl LimitsRequest {
        fn resolve_names(&self) -> Vec<&'static str> {
            vec![
                "memory_bytes",
                "cpu_millis",
                "pids",
                "disk_bytes",
                "disk_inodes",
                "log_bytes",
                "timeout_ms",
                "open_files",
            ]
        }
    }

    #[test]
    fn resolve_takes_default_then_request_and_refuses_above_ceiling() {
        let request = LimitsRequest { pids: Some(7), ..LimitsRequest::default() };
        let (low, high) = (all(5_000_000), all(9_000_000));
        let limits = request.resolve(&low, &high).unwrap();
        assert_eq!((limits.pids, limits.memory_bytes), (7, 5_000_000));
        let request = LimitsRequest { pids: Some(9_000_001), ..LimitsRequest::default() };
        assert_eq!(request.resolve(&low, &high).unwrap_err().limit, "pids");
        let request = LimitsRequest { cpu_millis: Some(9), ..LimitsRequest::default() };
        assert!(request.resolve(&low, &high).is_err());
    }
}
