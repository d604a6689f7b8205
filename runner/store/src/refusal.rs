//! Why content is refused: one variant and one name for each rule.

use ampoule_spec::{Code, Sha256};

macro_rules! refusals {
    ($($(#[doc = $doc:literal])+ $variant:ident { $($field:ident: $type:ty),* } = $name:literal, $text:literal;)+) => {
        /// Why an archive, image or tree is refused. Entries are named escaped and cut.
        #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
        #[non_exhaustive]
        pub enum Refusal {
            $(
                $(#[doc = $doc])+
                #[error($text)]
                #[allow(missing_docs)] // the variant's own line says what its fields are
                $variant { $($field: $type),* },
            )+
        }

        impl Refusal {
            /// The name of every refusal.
            pub const NAMES: &'static [&'static str] = &[$($name,)+];

            /// The refusal's bounded name, for reports and tests.
            pub fn name(&self) -> &'static str {
                match self { $(Self::$variant { .. } => $name,)+ }
            }
        }
    };
}

refusals! {
    /// A name begins with `/`.
    AbsolutePath { entry: String } = "absolute_path", "{entry}: the name is absolute";
    /// A name has a `..` component.
    ParentPath { entry: String } = "parent_path", "{entry}: the name has a '..' component";
    /// A name holds a NUL byte.
    NulInName { entry: String } = "nul_in_name", "{entry}: the name holds a NUL byte";
    /// A name is empty, or only the root for something that is no directory.
    EmptyName { entry: String } = "empty_name", "{entry}: the name is empty";
    /// A component has more than 255 bytes.
    NameTooLong { entry: String } = "name_too_long", "{entry}: a component has more than 255 bytes";
    /// A path has more than 4,096 bytes.
    PathTooLong { entry: String } = "path_too_long", "{entry}: the path has more than 4096 bytes";
    /// A path has more than 64 components.
    TooDeep { entry: String } = "too_deep", "{entry}: the path has more than 64 components";
    /// Something that is no directory has a name that ends as one.
    SlashOnFile { entry: String } = "slash_on_file", "{entry}: a name that ends with '/' or '/.' is no directory";
    /// A name was there before.
    Duplicate { entry: String } = "duplicate", "{entry}: the name occurs twice";
    /// A parent is a file.
    BelowFile { entry: String } = "below_file", "{entry}: a parent is not a directory";
    /// A parent is a symbolic link.
    ThroughSymlink { entry: String } = "through_symlink", "{entry}: a parent is a symbolic link";
    /// A device, FIFO or socket.
    SpecialFile { entry: String, kind: &'static str } = "special_file", "{entry}: a {kind} is not accepted";
    /// A type of entry that is not known.
    UnknownType { entry: String, flag: String } = "unknown_type", "{entry}: entries of type '{flag}' are not known";
    /// A sparse file.
    Sparse { entry: String } = "sparse", "{entry}: sparse files are not accepted; repack without --sparse";
    /// The header and its extension give two sizes.
    SizeDisagrees { entry: String, header: u64, pax: u64 } = "size_disagrees",
        "{entry}: the header says {header} bytes and its PAX record {pax}";
    /// A link or directory that announces data.
    SizeOnEmpty { entry: String, bytes: u64 } = "size_on_empty", "{entry}: {bytes} bytes of data on an entry that has none";
    /// A PAX record is not `length key=value`.
    PaxMalformed { entry: String, reason: &'static str } = "pax_malformed", "{entry}: malformed PAX record: {reason}";
    /// A PAX key is not known.
    PaxKey { entry: String, key: String } = "pax_key", "{entry}: the PAX key {key} is not accepted";
    /// A global PAX header has another key than `comment`.
    PaxGlobal { key: String } = "pax_global", "the global PAX key {key} is not accepted; only comment is";
    /// An extension header is too large.
    ExtensionTooLarge { entry: String, bytes: u64 } = "extension_too_large",
        "{entry}: an extension header of {bytes} bytes is too large";
    /// Extension headers that different programs read differently.
    ExtensionsConflict { entry: String } = "extensions_conflict", "{entry}: extension headers repeat or contradict each other";
    /// An extension header that no entry follows.
    ExtensionDangles {} = "extension_dangles", "an extension header at the end belongs to no entry";
    /// A header's checksum is wrong.
    Checksum { offset: u64 } = "checksum", "the header at byte {offset} has a wrong checksum: not a tar archive, or damaged";
    /// A header's field is not as its format says.
    Field { entry: String, field: &'static str } = "field", "{entry}: the header's {field} is malformed";
    /// A header is neither ustar nor GNU nor version 7.
    HeaderFormat { entry: String } = "header_format", "{entry}: the header is neither ustar, GNU nor version 7";
    /// Bytes follow the archive's end.
    TrailingData {} = "trailing_data", "data follows the end of the archive";
    /// The bytes end too early.
    Truncated { what: &'static str } = "truncated", "the bytes end within {what}";
    /// There are not two blocks of zeros at the end.
    NoEnd {} = "no_end", "the archive does not end with two blocks of zeros";
    /// Decompression gives too much from too little.
    Ratio { ratio: u64 } = "ratio", "the archive expands to more than {ratio} times its size";
    /// Too many bytes.
    TooLarge { bytes_max: u64 } = "too_large", "more than {bytes_max} bytes";
    /// Too many entries.
    TooMany { entries_max: u64 } = "too_many", "more than {entries_max} entries";
    /// The compressed data is damaged.
    Compression { format: &'static str, detail: String } = "compression", "damaged {format} data: {detail}";
    /// A zstd frame needs too large a window.
    Window {} = "window", "the zstd window is larger than 128 MiB";
    /// A known compression that is not read.
    CompressionUnknown { format: &'static str } = "compression_unknown",
        "{format} is not read; repack as plain tar, tar.gz or tar.zst";
    /// A link's target is empty or holds a NUL byte.
    LinkTarget { entry: String } = "link_target", "{entry}: the link's target is empty or holds a NUL byte";
    /// A link's target is too long.
    LinkTooLong { entry: String } = "link_too_long", "{entry}: the link's target has more than 4095 bytes";
    /// A hard link's target is not in the archive before it.
    HardLinkMissing { entry: String, target: String } = "hard_link_missing",
        "{entry}: no earlier entry {target} to link to";
    /// A hard link's target lies outside.
    HardLinkOutside { entry: String, target: String } = "hard_link_outside",
        "{entry}: the hard link's target {target} lies outside";
    /// A hard link's target is no regular file.
    HardLinkToOther { entry: String, target: String } = "hard_link_to_other",
        "{entry}: the hard link's target {target} is not a regular file";
    /// An owner's id does not fit.
    OwnerTooLarge { entry: String, id: u64 } = "owner_too_large", "{entry}: the owner's id {id} is not below 65536";
    /// A whiteout that hides no name.
    Whiteout { entry: String } = "whiteout", "{entry}: not a whiteout of a plain name";
    /// An image document is not as its format says.
    Document { what: &'static str, reason: String } = "document", "the image {what} is not usable: {reason}";
    /// The bytes have another digest than the one that names them.
    DigestMismatch { expected: Sha256, actual: Sha256 } = "digest_mismatch",
        "the sha256 is {actual}, expected {expected}";
    /// The directory has another tree digest than the one that names it.
    TreeMismatch { expected: Sha256, actual: Sha256 } = "tree_mismatch",
        "the tree digest is {actual}, expected {expected}";
    /// What an image consists of is not in the store.
    PartMissing { what: &'static str, sha256: Sha256 } = "part_missing", "the image's {what} {sha256} is not in the store";
    /// A layer is not the one that the image's configuration names.
    DiffId { layer: usize, expected: Sha256, actual: Sha256 } = "diff_id",
        "layer {layer} has the uncompressed sha256 {actual}, the configuration says {expected}";
    /// The tree is not the checkout of the commit that names it.
    NotTheCommit { entry: String, reason: String } = "not_the_commit", "{entry}: {reason}";
    /// A worker left something that no honest worker leaves.
    Shape { entry: String, reason: &'static str } = "shape", "{entry}: the imported tree is refused: {reason}";
}

impl Refusal {
    /// The code that a reply carries.
    pub fn code(&self) -> Code {
        match self {
            Self::DigestMismatch { .. }
            | Self::TreeMismatch { .. }
            | Self::DiffId { .. }
            | Self::NotTheCommit { .. } => Code::InputDigestMismatch,
            Self::PartMissing { .. } => Code::InputMissing,
            _ => Code::InputRefused,
        }
    }
}

/// A name from an archive for people: printable ASCII, at most 200 bytes of it, never a control character.
pub(crate) fn shown(name: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 200;
    let cut = name.get(..SHOWN_BYTES_MAX);
    let mut text = cut.unwrap_or(name).escape_ascii().to_string();
    if cut.is_some() && name.len() > SHOWN_BYTES_MAX {
        text.push_str("...");
    }
    text
}
