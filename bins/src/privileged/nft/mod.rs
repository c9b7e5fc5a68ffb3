//! The nftables table of an instance: what it says ([`rules`]) and how it is put to the kernel ([`encode`]).
//!
//! The netlink messages are written here because the Rust bindings for nftables are either GPL (`rustables`), which the
//! binaries' licence does not allow, or run the `nft` program (`nftables`), which a process without execve rights in mind
//! should not. What is needed of nf_tables is small: one table, three chains, six kinds of expression.

pub(super) mod encode;
pub(super) mod rules;
mod table;

pub(super) use table::{Chain, ChainKind, Expression, Family, Hook, Matches, Protocol, Rule, Table, Verdict};
