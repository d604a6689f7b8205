//! The wire schema of `ampouled`: generated code and no rules.
//!
//! What a message means is checked in `ampoule-agent` (`api::convert`); the schema is `ampoule/v1/*.proto`.

/// Package `ampoule.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated; documented in the .proto files")]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/ampoule.v1.rs"));
}

/// The compiled schema: a serialised `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};

    fn files() -> Vec<FileDescriptorProto> {
        let set = FileDescriptorSet::decode(super::FILE_DESCRIPTOR_SET).unwrap();
        set.file.into_iter().filter(|file| file.package() == "ampoule.v1").collect()
    }

    fn messages() -> Vec<DescriptorProto> {
        let messages: Vec<_> = files().into_iter().flat_map(|file| file.message_type).collect();
        assert!(messages.len() > 10);
        messages
    }

    #[test]
    fn no_field_names_a_host_path_or_grants_privilege() {
        for message in messages() {
            for field in &message.field {
                let name = field.name();
                for word in ["host_path", "privilege", "uid", "gid", "capabilit", "seccomp", "mode"] {
                    assert!(!name.contains(word), "{}.{name}", message.name());
                }
                // The one path is an output's, in the sandbox.
                assert!(name != "path" || message.name() == "Output", "{}.{name}", message.name());
            }
        }
    }

    #[test]
    fn names_follow_the_buf_style() {
        let snake = |n: &str| n.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        for message in messages() {
            assert!(message.field.iter().all(|field| snake(field.name())), "{}", message.name());
            let entries: Vec<_> = message.nested_type.iter().map(|n| n.name().to_owned()).collect();
            assert!(entries.iter().all(|n| n.ends_with("Entry")), "nested types are maps alone: {entries:?}");
        }
        for file in files() {
            for of in &file.enum_type {
                let mut prefix = String::new();
                for c in of.name().chars() {
                    if c.is_ascii_uppercase() && !prefix.is_empty() {
                        prefix.push('_');
                    }
                    prefix.push(c.to_ascii_uppercase());
                }
                let first = of.value.first().unwrap();
                assert_eq!((first.number(), first.name()), (0, format!("{prefix}_UNSPECIFIED").as_str()));
                assert!(of.value.iter().all(|value| value.name().starts_with(&prefix)), "{prefix}");
            }
        }
    }
}
