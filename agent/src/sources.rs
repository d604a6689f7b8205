//! Where inputs may come from: the operator's `sources.toml` (docs/sources.md).
//!
//! What is guaranteed: [`Policy::admit`] looks at the text of a URL alone and says which listed origin it belongs to,
//! and [`Origin::may_have`] and [`public`] look at an address alone. Who connects is
//! [`Guard`](crate::inputs::Guard), and it asks both.

mod address;
mod origin;
mod policy;
mod read;

pub use address::{Forbidden, public};
pub use origin::{Auth, Origin, Purpose};
pub use policy::{PROJECT_DEFAULT, Policy};
pub use read::SourcesFile;
