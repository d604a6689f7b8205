//! How much content is taken, and for how long.

use std::time::Duration;

/// The bounds of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentLimits {
    /// The most bytes of one upload.
    pub upload_bytes: u64,
    /// The most uploads of a project that are not finished.
    pub project_uploads: usize,
    /// The most bytes of them.
    pub project_bytes: u64,
    /// The most uploads of all projects that are not finished.
    pub uploads: usize,
    /// The most bytes of them.
    pub bytes: u64,
    /// How many bytes beyond those that came an upload counts with: what it says will come is nobody's word.
    pub window: u64,
    /// How long a stream may be silent.
    pub silence: Duration,
    /// How long an upload that was cut short is kept, unless what is uploaded needs its room.
    pub age: Duration,
    /// Imports at a time; others wait.
    pub imports: usize,
    /// Questions to the store at a time, what it has; others wait.
    pub lookups: usize,
    /// The most contents that are recorded of a project.
    pub known_per_project: u64,
    /// How long a record is kept that is not used.
    pub known_age: Duration,
}

const HOUR: Duration = Duration::from_secs(3600);

impl ContentLimits {
    /// With so many bytes of unfinished uploads in all, of which one project has at most half.
    pub fn of_bytes(bytes: u64) -> Self {
        let limits = Self::default();
        let project_bytes = limits.project_bytes.min(bytes / 2);
        Self { bytes, project_bytes, upload_bytes: limits.upload_bytes.min(project_bytes), ..limits }
    }
}

impl Default for ContentLimits {
    /// 16 GiB an upload, 64 uploads and 32 GiB a project, 512 uploads and 128 GiB in all, 16 MiB ahead; a minute of silence, a day,
    /// 4 imports, 2 questions; a million contents a project, 90 days.
    fn default() -> Self {
        Self {
            upload_bytes: 16 << 30,
            project_uploads: 64,
            project_bytes: 32 << 30,
            uploads: 512,
            bytes: 128 << 30,
            window: 16 << 20,
            silence: Duration::from_secs(60),
            age: 24 * HOUR,
            imports: 4,
            lookups: 2,
            known_per_project: 1_000_000,
            known_age: 90 * 24 * HOUR,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_project_has_at_most_half_whatever_there_is() {
        for bytes in [0, 1, 20 << 30, 64 << 30, 1 << 40] {
            let limits = ContentLimits::of_bytes(bytes);
            assert!(
                limits.project_bytes <= bytes / 2 && limits.upload_bytes <= limits.project_bytes,
                "{limits:?}"
            );
        }
        assert_eq!(ContentLimits::of_bytes(64 << 30).project_bytes, 32 << 30);
    }
}
