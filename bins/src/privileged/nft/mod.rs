//! The nftables tables of an instance: what they say ([`rules`]) and how they are put to the kernel ([`encode`]).
//!
//! The netlink messages are written here because the Rust bindings for nftables are either GPL (`rustables`), which the
//! binaries' licence does not allow, or run the `nft` program (`nftables`), which a process without execve rights in mind
//! should not. What is needed of nf_tables is small: two tables, a few chains and sets, a dozen kinds of expression.

pub(super) mod answers;
mod attributes;
pub(super) mod encode;
mod expressions;
mod passage;
pub(super) mod rules;
mod table;

pub(super) use passage::{Direction, FOREIGN_CHAINS, ForeignChain, KnownRule, Passage, Protocols};
pub(super) use table::{
    Chain, ChainKind, EtherType, Expression, Family, Field, Hook, Icmpv6, Layer, Load, Matches, Protocol, Rule, Set,
    Table, Value, Verdict,
};
