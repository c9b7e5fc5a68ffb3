//! Writes nf_tables batches: netlink messages that the kernel carries out all or not at all.
//!
//! The numbers are those of `linux/netfilter/nf_tables.h` and `linux/netfilter/nfnetlink.h`; they are part of the kernel's
//! promise to user space. Attributes are in network byte order, message headers in the host's. This module writes bytes
//! and sends nothing.

use super::attributes::Attributes;
use super::{Chain, ChainKind, Field, ForeignChain, Layer, Passage, Protocols, Rule, Set, Table, Value, expressions};
use messages::ids::InterfaceName;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const GET_TABLE: u16 = SUBSYSTEM << 8 | 1;
const GET_CHAIN: u16 = SUBSYSTEM << 8 | 4;
const GET_RULE: u16 = SUBSYSTEM << 8 | 7;
const DELETE_RULE: u16 = SUBSYSTEM << 8 | 8;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const NEW_SET: u16 = SUBSYSTEM << 8 | 9;
const NEW_ELEMENTS: u16 = SUBSYSTEM << 8 | 12;
const DELETE_ELEMENTS: u16 = SUBSYSTEM << 8 | 14;

const FLAG_REQUEST: u16 = 0x1;
const FLAG_ACK: u16 = 0x4;
const FLAG_DUMP: u16 = 0x300;
const FLAG_CREATE: u16 = 0x400;
const FLAG_APPEND: u16 = 0x800;

const FAMILY_NONE: u8 = 0;
const FAMILY_INET: u8 = 1;
const FAMILY_IPV4: u8 = 2;
const FAMILY_BRIDGE: u8 = 7;
const FAMILY_IPV6: u8 = 10;
/// The table that `iptables` writes to unless told otherwise, and with it docker and ufw.
const IPTABLES_TABLE: &str = "filter";
/// `IFNAMSIZ`.
const INTERFACE_NAME_LEN: usize = 16;
/// How many elements fit into one message: an attribute holds 64 KiB, an element at most 60 bytes.
const ELEMENTS_PER_MESSAGE: usize = 512;

/// A batch under construction.
#[derive(Debug)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// The number of the next message.
    sequence: u32,
    /// The number of the next set.
    set: u32,
}

/// A finished batch.
#[derive(Debug)]
pub(crate) struct FinishedBatch {
    pub bytes: Vec<u8>,
    /// The number of the last message that is acknowledged.
    pub last: u32,
}

impl Batch {
    /// Puts `tables`, with this comment, in the place of any of their names. Creating before deleting makes the deletion
    /// succeed in any case.
    #[must_use]
    pub(crate) fn replace(tables: &[Table], comment: &str) -> FinishedBatch {
        let mut batch = Self::begin();
        for table in tables {
            batch.clear(table.layer, &table.name);
            batch.change(NEW_TABLE, FLAG_CREATE, family(table.layer), |a| {
                a.text(1, &table.name);
                a.bytes(6, &comment_data(comment));
            });
            for set in &table.sets {
                batch.set(table, set);
                batch.elements(table.layer, &table.name, set);
            }
            for chain in &table.chains {
                batch.chain(table, chain);
                for rule in &chain.rules {
                    batch.rule(table, chain.name, rule);
                }
            }
        }
        batch.end()
    }

    /// Gives sets of an existing table other elements; the kernel answers `ENOENT` where there is no such table.
    #[must_use]
    pub(crate) fn refill(layer: Layer, table: &str, sets: &[Set]) -> FinishedBatch {
        let mut batch = Self::begin();
        for set in sets {
            batch.change(DELETE_ELEMENTS, 0, family(layer), |a| {
                a.text(1, table);
                a.text(2, set.name);
            });
            batch.elements(layer, table, set);
        }
        batch.end()
    }

    /// Removes the tables of this name; none is fine.
    #[must_use]
    pub(crate) fn remove(table: &str) -> FinishedBatch {
        let mut batch = Self::begin();
        for layer in [Layer::Host, Layer::Bridge] {
            batch.clear(layer, table);
        }
        batch.end()
    }

    /// Puts rules at the head of a chain of another firewall's, and removes others from it.
    #[must_use]
    pub(crate) fn passages(chain: ForeignChain, add: &[Passage], remove: &[u64]) -> FinishedBatch {
        let mut batch = Self::begin();
        for handle in remove {
            batch.change(DELETE_RULE, 0, foreign_family(chain), |a| {
                a.text(1, IPTABLES_TABLE);
                a.text(2, chain.name);
                a.bytes(3, &handle.to_be_bytes());
            });
        }
        for rule in add {
            // Without the flag that appends.
            batch.change(NEW_RULE, FLAG_CREATE, foreign_family(chain), |a| {
                a.text(1, IPTABLES_TABLE);
                a.text(2, chain.name);
                a.nested(4, |list| expressions::passage(list, rule));
                a.bytes(7, &comment_data(&rule.comment()));
            });
        }
        batch.end()
    }

    fn begin() -> Self {
        let mut batch = Self { bytes: Vec::with_capacity(32 << 10), sequence: 0, set: 0 };
        batch.message(BATCH_BEGIN, FLAG_REQUEST, FAMILY_NONE, SUBSYSTEM, |_| ());
        batch
    }

    fn end(mut self) -> FinishedBatch {
        let last = self.sequence - 1;
        self.message(BATCH_END, FLAG_REQUEST, FAMILY_NONE, SUBSYSTEM, |_| ());
        FinishedBatch { bytes: self.bytes, last }
    }

    fn clear(&mut self, layer: Layer, name: &str) {
        self.change(NEW_TABLE, FLAG_CREATE, family(layer), |a| a.text(1, name));
        self.change(DELETE_TABLE, 0, family(layer), |a| a.text(1, name));
    }

    fn set(&mut self, table: &Table, set: &Set) {
        self.set += 1;
        let id = self.set;
        self.change(NEW_SET, FLAG_CREATE, family(table.layer), |a| {
            a.text(1, &table.name);
            a.text(2, set.name);
            a.number(3, 0); // no flags: neither constant nor timed
            a.number(4, key_type(set.key));
            a.number(5, key_length(set.key));
            a.number(10, id);
        });
    }

    fn elements(&mut self, layer: Layer, table: &str, set: &Set) {
        for part in set.elements.chunks(ELEMENTS_PER_MESSAGE) {
            self.change(NEW_ELEMENTS, FLAG_CREATE, family(layer), |a| {
                a.text(1, table);
                a.text(2, set.name);
                a.nested(3, |list| {
                    for element in part {
                        list.nested(1, |e| e.nested(1, |key| key.bytes(1, &key_bytes(element))));
                    }
                });
            });
        }
    }

    fn chain(&mut self, table: &Table, chain: &Chain) {
        let kind = match chain.kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
        };
        self.change(NEW_CHAIN, FLAG_CREATE, family(table.layer), |a| {
            a.text(1, &table.name);
            a.text(3, chain.name);
            a.nested(4, |hook| {
                hook.number(1, chain.hook as u32);
                hook.bytes(2, &chain.priority.to_be_bytes());
            });
            a.number(5, 1); // the policy: NF_ACCEPT
            a.text(7, kind);
        });
    }

    fn rule(&mut self, table: &Table, chain: &str, rule: &Rule) {
        self.change(NEW_RULE, FLAG_CREATE | FLAG_APPEND, family(table.layer), |a| {
            a.text(1, &table.name);
            a.text(2, chain);
            a.nested(4, |list| rule.0.iter().for_each(|e| expressions::append(list, e)));
        });
    }

    fn change(&mut self, kind: u16, flags: u16, family: u8, body: impl FnOnce(&mut Attributes<'_>)) {
        self.message(kind, FLAG_REQUEST | FLAG_ACK | flags, family, 0, body);
    }

    fn message(&mut self, kind: u16, flags: u16, family: u8, resource: u16, body: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        body(&mut Attributes(&mut self.bytes));
        let length = u32::try_from(self.bytes.len() - start).expect("a message holds at most 64 KiB");
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.sequence += 1;
    }
}

/// Asks for a table of ours.
#[must_use]
pub(crate) fn table_question(layer: Layer, name: &str) -> Vec<u8> {
    question(GET_TABLE, FLAG_REQUEST, family(layer), |a| a.text(1, name))
}

/// Asks for a chain of another firewall's.
#[must_use]
pub(crate) fn chain_question(chain: ForeignChain) -> Vec<u8> {
    question(GET_CHAIN, FLAG_REQUEST, foreign_family(chain), |a| {
        a.text(1, IPTABLES_TABLE);
        a.text(3, chain.name);
    })
}

/// Asks for every rule of such a chain.
#[must_use]
pub(crate) fn rules_question(chain: ForeignChain) -> Vec<u8> {
    question(GET_RULE, FLAG_REQUEST | FLAG_DUMP, foreign_family(chain), |a| {
        a.text(1, IPTABLES_TABLE);
        a.text(2, chain.name);
    })
}

fn question(kind: u16, flags: u16, family: u8, body: impl FnOnce(&mut Attributes<'_>)) -> Vec<u8> {
    let mut batch = Batch { bytes: Vec::new(), sequence: 0, set: 0 };
    batch.message(kind, flags, family, 0, body);
    batch.bytes
}

fn family(layer: Layer) -> u8 {
    match layer {
        Layer::Host => FAMILY_INET,
        Layer::Bridge => FAMILY_BRIDGE,
    }
}

fn foreign_family(chain: ForeignChain) -> u8 {
    match chain.protocols {
        Protocols::Ipv4 => FAMILY_IPV4,
        Protocols::Ipv6 => FAMILY_IPV6,
    }
}

/// A comment as nft keeps it (`NFTNL_UDATA_RULE_COMMENT` and `NFTNL_UDATA_TABLE_COMMENT`, both 0): type, length, text, NUL.
pub(super) fn comment_data(comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).expect("comments of ours are short");
    [&[0, length][..], comment.as_bytes(), &[0]].concat()
}

/// What `nft list` needs to print the set; the kernel keeps it and asks nothing. nft's numbers (`enum datatypes`), six bits
/// for each part.
fn key_type(key: &[Field]) -> u32 {
    key.iter().fold(0, |sum, field| {
        let kind = match field {
            Field::Ipv4 => 7,
            Field::Mac => 9,
            Field::Protocol => 12,
            Field::Port => 13,
            Field::Interface => 41,
        };
        sum << 6 | kind
    })
}

fn key_length(key: &[Field]) -> u32 {
    let width = |field: &Field| match field {
        Field::Interface => INTERFACE_NAME_LEN,
        Field::Mac => 6,
        Field::Ipv4 => 4,
        Field::Port => 2,
        Field::Protocol => 1,
    };
    let sum: usize = key.iter().map(|field| register_width(width(field))).sum();
    u32::try_from(sum).expect("a key has a few parts")
}

fn key_bytes(element: &[Value]) -> Vec<u8> {
    let mut key = Vec::with_capacity(32);
    for value in element {
        match value {
            Value::Interface(name) => key.extend(padded(name)),
            Value::Mac(address) => key.extend(address),
            Value::Ipv4(address) => key.extend(address.octets()),
            Value::Protocol(protocol) => key.push(*protocol as u8),
            Value::Port(port) => key.extend(port.to_be_bytes()),
        }
        key.resize(register_width(key.len()), 0);
    }
    key
}

/// What a value takes in registers, and so in a key made of several.
pub(super) fn register_width(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// The kernel compares the whole field, so that `ab` does not match `abc`.
pub(super) fn padded(name: &InterfaceName) -> [u8; INTERFACE_NAME_LEN] {
    let mut field = [0; INTERFACE_NAME_LEN];
    field[..name.as_str().len()].copy_from_slice(name.as_str().as_bytes());
    field
}
