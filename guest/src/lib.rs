//! The agent of a banger guest: `/init` of its initramfs, then the one process in it that the host talks to.
//!
//! It depends on the wire alone (`messages`, `banger-link`), is linked statically, and trusts nothing in the image.

pub mod agent;
pub mod bench;
pub mod control;
pub mod drives;
pub mod exec;
pub mod files;
pub mod identity;
pub mod init;
pub mod keeper;
pub mod machine;
pub mod modules;
pub mod mounts;
pub mod network;
pub mod outbox;
pub mod ports;
pub mod power;
pub mod serial_port;
pub mod sftp;
pub mod ssh;
pub mod stats;
pub mod sys;
pub mod systemd;
pub mod transport;
pub mod users;
