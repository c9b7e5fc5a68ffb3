//! Every typed message that crosses a process border, with its limits. No I/O happens here.
//!
//! * `banger` → `bangerd`: one [`request::Request`], then [`reply::ServerFrame`]s.
//! * `bangerd` → `bangerd-root`: [`privileged`].
//! * `bangerd`/`banger` ↔ `banger-agent`: [`guest`].
//!
//! postcard is positional: enums are append-only, structs are frozen per [`frame::GENERATION`].

pub mod error;
pub mod frame;
pub mod guest;
pub mod ids;
pub mod image;
pub mod limits;
pub mod privileged;
pub mod reply;
pub mod request;
pub mod vm;

pub use error::{ErrorKind, WireError};
