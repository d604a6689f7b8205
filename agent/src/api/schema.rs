//! The schema as data: which calls there are, and what a message may hold.

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorSet};
use std::collections::BTreeMap;

/// What stands in a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A number as a varint.
    Varint,
    /// Eight bytes.
    Fixed64,
    /// Four bytes.
    Fixed32,
    /// UTF-8.
    Text,
    /// Anything.
    Bytes,
    /// A message, by its place in [`Schema::messages`].
    Message(usize),
}

/// A field of a message.
#[derive(Debug, Clone)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) repeated: bool,
    /// Which oneof of the message it is of.
    pub(super) oneof: Option<i32>,
}

/// A message.
#[derive(Debug, Clone, Default)]
pub(super) struct MessageType {
    pub(super) fields: BTreeMap<u32, Field>,
    /// Whether it is the entry of a map.
    pub(super) is_entry: bool,
}

/// A call.
#[derive(Debug, Clone)]
pub(super) struct Method {
    /// Its path without the slash before it: `ampoule.v1.JobService/GetJob`.
    pub(super) path: String,
    /// Whether the client sends a stream.
    pub(super) streams_in: bool,
    /// Its request, by its place in [`Schema::messages`].
    pub(super) input: usize,
}

/// Calls and messages of one or more descriptor sets.
#[derive(Debug, Default)]
pub(super) struct Schema {
    pub(super) messages: Vec<MessageType>,
    pub(super) methods: BTreeMap<String, Method>,
    /// Messages by full name, with a dot before it.
    names: BTreeMap<String, usize>,
}

impl Schema {
    /// Reads serialised `FileDescriptorSet`s.
    pub(super) fn read(sets: &[&[u8]]) -> Result<Self, prost::DecodeError> {
        let mut schema = Self::default();
        let mut all = Vec::new();
        let mut files = Vec::new();
        for set in sets {
            files.extend(FileDescriptorSet::decode(*set)?.file);
        }
        for file in &files {
            for message in &file.message_type {
                schema.name(&format!(".{}", file.package()), message, &mut all);
            }
        }
        schema.messages = all.iter().map(|message| schema.message(message)).collect();
        for file in &files {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("{}.{}/{}", file.package(), service.name(), method.name());
                    let Some(input) = schema.names.get(method.input_type()).copied() else { continue };
                    let streams_in = method.client_streaming();
                    schema.methods.insert(path.clone(), Method { path, streams_in, input });
                }
            }
        }
        Ok(schema)
    }

    fn name<'a>(&mut self, prefix: &str, message: &'a DescriptorProto, all: &mut Vec<&'a DescriptorProto>) {
        let name = format!("{prefix}.{}", message.name());
        self.names.insert(name.clone(), all.len());
        all.push(message);
        for nested in &message.nested_type {
            self.name(&name, nested, all);
        }
    }

    fn message(&self, message: &DescriptorProto) -> MessageType {
        let fields = message.field.iter().filter_map(|field| {
            let kind = match field.r#type() {
                Type::Double | Type::Fixed64 | Type::Sfixed64 => Kind::Fixed64,
                Type::Float | Type::Fixed32 | Type::Sfixed32 => Kind::Fixed32,
                Type::String => Kind::Text,
                Type::Bytes => Kind::Bytes,
                // Groups are not of proto3; as a message they are refused by their wire type.
                Type::Message | Type::Group => Kind::Message(*self.names.get(field.type_name())?),
                _ => Kind::Varint,
            };
            let field_of = Field {
                name: field.name().to_owned(),
                kind,
                repeated: field.label() == Label::Repeated,
                oneof: field.oneof_index,
            };
            Some((u32::try_from(field.number()).ok()?, field_of))
        });
        let is_entry = message.options.as_ref().is_some_and(|options| options.map_entry());
        MessageType { fields: fields.collect(), is_entry }
    }
}
