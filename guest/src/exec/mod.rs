//! Running commands: what is to be run ([`plan`]), starting it ([`spawn`]), its streams ([`session`]), and who runs
//! ([`registry`]). One operation is one stream from the host; nothing here knows of the control stream.

pub mod fd;
pub mod input;
pub mod output;
pub mod plan;
pub mod registry;
pub mod session;
pub mod spawn;
