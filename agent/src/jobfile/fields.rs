//! Where each field of a job file stands, so that a rule broken later still names its line.

use super::error::{JobFileError, Position};
use ampoule_spec::{Code, SpecError};
use std::collections::BTreeMap;

/// The fields of one file with their places.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fields {
    /// The file, as the caller named it.
    pub(crate) file: String,
    /// The place of each field, by its path as in `step[0].run`.
    pub(crate) places: BTreeMap<String, Position>,
}

impl Fields {
    /// The fields of something that is no file: a command line.
    pub(crate) fn without_places(name: &str) -> Self {
        Self { file: name.to_owned(), places: BTreeMap::new() }
    }

    /// The place of a field, or of the nearest one around it.
    pub(crate) fn place(&self, field: &str) -> Option<Position> {
        let mut path = field;
        loop {
            if let Some(place) = self.places.get(path) {
                return Some(*place);
            }
            let cut = path.rfind(['.', '['])?;
            path = path.get(..cut)?;
        }
    }

    /// An error at a field.
    pub(crate) fn error(
        &self,
        code: Code,
        field: &str,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> JobFileError {
        JobFileError {
            position: self.place(field),
            ..JobFileError::whole(code, &self.file, field, reason, remedy)
        }
    }

    /// A rule of the spec that the job breaks.
    pub(crate) fn spec_error(&self, error: SpecError) -> JobFileError {
        self.error(Code::JobInvalid, &error.field, error.reason, "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_falls_back_to_the_field_around() {
        let mut fields = Fields::without_places("f");
        let at = |line| Position { line, column: 1 };
        fields.places.insert("step[1]".into(), at(9));
        fields.places.insert("step[1].run".into(), at(10));
        assert_eq!(fields.place("step[1].run"), Some(at(10)));
        assert_eq!(fields.place("step[1].name"), Some(at(9)));
        assert_eq!(fields.place("step[0].name"), None);
        assert_eq!(fields.place("env"), None);
    }
}
