//! Names of files that belong to something a tenant has named: digits of hashes, whatever the tenant wrote.

use crate::shelf::hashed;
use ampoule_spec::Name;
use ampoule_spec::wire::Content;

/// The name of a project's directory: 64 hexadecimal digits.
pub fn of_project(project: &Name) -> String {
    hashed(project.as_str().as_bytes())
}

/// The name of a content's file: 64 hexadecimal digits, the same for the same kind, digest, epoch and mode.
pub fn of_content(content: &Content) -> String {
    // A content is plain data: writing it as JSON cannot fail.
    hashed(&serde_json::to_vec(content).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shelf::is_ours;
    use ampoule_spec::Sha256;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn file_names_are_hexadecimal_digits_whatever_a_request_names(
            project in "[a-z0-9][a-z0-9-]{0,63}", bytes in any::<[u8; 32]>(), epoch in any::<u64>(), executable in any::<bool>(),
        ) {
            let sha256 = Sha256::new(bytes);
            let contents = [
                Content::Directory { tree: Some(sha256), epoch },
                Content::File { sha256: Some(sha256), executable, epoch },
                Content::Archive { sha256, epoch },
                Content::ImageTar { sha256 },
                Content::OciManifest { sha256 },
            ];
            let mut names: Vec<_> = contents.iter().map(of_content).collect();
            names.push(of_project(&Name::parse(&project).unwrap()));
            prop_assert!(names.iter().all(|name| is_ours(name)));
            names.sort();
            names.dedup();
            prop_assert_eq!(names.len(), 6);
        }
    }
}
