//! What a job may use. Every quantity carries its unit in its name.

use serde::{Deserialize, Serialize};

macro_rules! limits {
    ($($(#[$doc:meta])* $field:ident: $key:literal in $unit:ident >= $floor:literal,)+) => {
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
                                limit: $key, unit: Unit::$unit, asked, least: $floor, most: ceiling.$field,
                            });
                        }
                        asked
                    },)+
                })
            }
        }

        impl LimitsRequest {
            /// The first limit that is below what any sandbox needs, whatever the profile.
            pub fn too_low(&self) -> Option<LimitRefused> {
                $(if let Some(asked) = self.$field.filter(|asked| *asked < $floor) {
                    let (unit, least) = (Unit::$unit, $floor);
                    return Some(LimitRefused { limit: $key, unit, asked, least, most: u64::MAX });
                })+
                None
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
    memory_bytes: "memory" in Bytes >= 4_194_304,
    /// Processor time per second, in thousandths of a processor.
    cpu_millis: "cpus" in Thousandths >= 10,
    /// Processes and threads together.
    pids: "pids" in Count >= 1,
    /// Bytes in the writable layer.
    disk_bytes: "disk" in Bytes >= 1_048_576,
    /// Files, directories and links in the writable layer.
    disk_inodes: "inodes" in Count >= 200,
    /// Log bytes kept for each step and stream; the middle is cut beyond it.
    log_bytes: "log" in Bytes >= 1_024,
    /// Wall-clock time of all steps together, in milliseconds.
    timeout_ms: "timeout" in Millis >= 1,
    /// Open descriptors of one process.
    open_files: "open_files" in Count >= 16,
}

/// What a limit's number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Thousandths of one.
    Thousandths,
    /// Milliseconds.
    Millis,
    /// Things.
    Count,
}

impl Unit {
    /// A number as a job file has it.
    pub fn shown(self, number: u64) -> String {
        let in_units = |units: &[(&str, u64)]| {
            let unit = units.iter().find(|(_, size)| number != 0 && number.is_multiple_of(*size));
            unit.map_or_else(|| number.to_string(), |(name, size)| format!("\"{}{name}\"", number / size))
        };
        match self {
            Self::Bytes => {
                in_units(&[("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)])
            }
            Self::Millis => in_units(&[("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)]),
            Self::Thousandths if number.is_multiple_of(1_000) => (number / 1_000).to_string(),
            Self::Thousandths => {
                let text = format!("{}.{:03}", number / 1_000, number % 1_000);
                text.trim_end_matches('0').to_owned()
            }
            Self::Count => number.to_string(),
        }
    }
}

/// A limit that a profile does not allow, or no sandbox can be made with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("limits.{limit}: {} is not allowed; ask for {}", unit.shown(*asked), self.range())]
pub struct LimitRefused {
    /// The limit's key in a job file.
    pub limit: &'static str,
    /// What the numbers count.
    pub unit: Unit,
    /// What the job asks for.
    pub asked: u64,
    /// The least that a sandbox can be made with.
    pub least: u64,
    /// The most that the profile allows.
    pub most: u64,
}

impl LimitRefused {
    /// What may be asked for.
    pub fn range(&self) -> String {
        let least = self.unit.shown(self.least);
        if self.most == u64::MAX {
            format!("{least} or more")
        } else {
            format!("{least} to {}", self.unit.shown(self.most))
        }
    }
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
        let refused = request.too_low().unwrap().to_string();
        assert_eq!(refused, "limits.cpus: 0.009 is not allowed; ask for 0.01 or more");
        let request = LimitsRequest { memory_bytes: Some(1 << 20), ..LimitsRequest::default() };
        let refused = request.resolve(&low, &all(1 << 30)).unwrap_err().to_string();
        assert_eq!(refused, "limits.memory: \"1MiB\" is not allowed; ask for \"4MiB\" to \"1GiB\"");
        assert_eq!(LimitsRequest::default().too_low(), None);
    }

    #[test]
    fn unit_shows_numbers_as_a_job_file_has_them() {
        for (unit, number, text) in [
            (Unit::Bytes, 0, "0"),
            (Unit::Bytes, 1_500, "\"1500B\""),
            (Unit::Bytes, 3 << 30, "\"3GiB\""),
            (Unit::Millis, 90_000, "\"90s\""),
            (Unit::Millis, 7_200_000, "\"2h\""),
            (Unit::Thousandths, 2_000, "2"),
            (Unit::Thousandths, 1_500, "1.5"),
            (Unit::Count, 7, "7"),
        ] {
            assert_eq!(unit.shown(number), text);
        }
    }
}
