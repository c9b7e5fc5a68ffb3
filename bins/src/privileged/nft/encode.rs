//! Writes nf_tables batches: netlink messages that the kernel carries out all or not at all.
//!
//! The numbers are those of `linux/netfilter/nf_tables.h` and `linux/netfilter/nfnetlink.h`; they are part of the kernel's
//! promise to user space. Attributes are in network byte order, message headers in the host's. This module writes bytes
//! and sends nothing.

use super::{Chain, ChainKind, Expression, Family, Matches, Rule, Table, Verdict};
use messages::ids::InterfaceName;
use std::net::Ipv4Addr;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;

const FLAG_REQUEST: u16 = 0x1;
const FLAG_ACK: u16 = 0x4;
const FLAG_CREATE: u16 = 0x400;
const FLAG_APPEND: u16 = 0x800;

const FAMILY_NONE: u8 = 0;
const FAMILY_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NESTED: u16 = 0x8000;
const REGISTER: u32 = 1;
const REGISTER_VERDICT: u32 = 0;
/// `IFNAMSIZ`.
const INTERFACE_NAME_LEN: usize = 16;
/// `NF_CT_STATE_BIT`: established 2, related 4; the register is in the host's byte order.
const STATES: u32 = 2 | 4;

const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const PAYLOAD_NETWORK: u32 = 1;
const PAYLOAD_TRANSPORT: u32 = 2;
const IPV4_SOURCE: u32 = 12;
const IPV4_DESTINATION: u32 = 16;
const TRANSPORT_DESTINATION: u32 = 2;

/// A batch under construction.
#[derive(Debug)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// The number of the next message.
    sequence: u32,
}

/// A finished batch.
#[derive(Debug)]
pub(crate) struct FinishedBatch {
    pub bytes: Vec<u8>,
    /// The number of the last message that is acknowledged.
    pub last: u32,
}

impl Batch {
    /// Puts `table` in the place of any of its name. Creating before deleting makes the deletion succeed in any case.
    #[must_use]
    pub(crate) fn replace(table: &Table) -> FinishedBatch {
        let mut batch = Self::begin();
        batch.table(NEW_TABLE, FLAG_CREATE, &table.name);
        batch.table(DELETE_TABLE, 0, &table.name);
        batch.table(NEW_TABLE, FLAG_CREATE, &table.name);
        for chain in &table.chains {
            batch.chain(&table.name, chain);
            for rule in &chain.rules {
                batch.rule(&table.name, chain.name, rule);
            }
        }
        batch.end()
    }

    /// Removes the table; the kernel answers `ENOENT` where there is none.
    #[must_use]
    pub(crate) fn remove(table: &str) -> FinishedBatch {
        let mut batch = Self::begin();
        batch.table(DELETE_TABLE, 0, table);
        batch.end()
    }

    fn begin() -> Self {
        let mut batch = Self { bytes: Vec::with_capacity(8192), sequence: 0 };
        batch.message(BATCH_BEGIN, FLAG_REQUEST, FAMILY_NONE, SUBSYSTEM, |_| ());
        batch
    }

    fn end(mut self) -> FinishedBatch {
        let last = self.sequence - 1;
        self.message(BATCH_END, FLAG_REQUEST, FAMILY_NONE, SUBSYSTEM, |_| ());
        FinishedBatch { bytes: self.bytes, last }
    }

    fn table(&mut self, kind: u16, flags: u16, name: &str) {
        self.change(kind, flags, |a| a.text(1, name));
    }

    fn chain(&mut self, table: &str, chain: &Chain) {
        let kind = match chain.kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
        };
        self.change(NEW_CHAIN, FLAG_CREATE, |a| {
            a.text(1, table);
            a.text(3, chain.name);
            a.nested(4, |hook| {
                hook.number(1, chain.hook as u32);
                hook.bytes(2, &chain.priority.to_be_bytes());
            });
            a.number(5, 1); // the policy: NF_ACCEPT
            a.text(7, kind);
        });
    }

    fn rule(&mut self, table: &str, chain: &str, rule: &Rule) {
        self.change(NEW_RULE, FLAG_CREATE | FLAG_APPEND, |a| {
            a.text(1, table);
            a.text(2, chain);
            a.nested(4, |list| rule.0.iter().for_each(|e| expression(list, e)));
        });
    }

    fn change(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Attributes<'_>)) {
        self.message(kind, FLAG_REQUEST | FLAG_ACK | flags, FAMILY_INET, 0, body);
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
        let length = u32::try_from(self.bytes.len() - start).expect("a message holds a few hundred bytes");
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.sequence += 1;
    }
}

/// Appends netlink attributes.
struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.framed(kind, |a| a.0.extend(value));
    }

    fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    fn text(&mut self, kind: u16, value: &str) {
        self.framed(kind, |a| {
            a.0.extend(value.as_bytes());
            a.0.push(0);
        });
    }

    fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Attributes<'_>)) {
        self.framed(kind | NESTED, body);
    }

    fn framed(&mut self, kind: u16, body: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        body(&mut Attributes(self.0));
        let length = u16::try_from(self.0.len() - start).expect("an attribute holds a few hundred bytes");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        // Attributes begin at multiples of four bytes; the padding is not part of the length.
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn element(&mut self, name: &str, body: impl FnOnce(&mut Attributes<'_>)) {
        self.nested(1, |element| {
            element.text(1, name);
            element.nested(2, body);
        });
    }

    fn meta(&mut self, key: u32) {
        self.element("meta", |a| {
            a.number(1, REGISTER);
            a.number(2, key);
        });
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32) {
        self.element("payload", |a| {
            a.number(1, REGISTER);
            a.number(2, base);
            a.number(3, offset);
            a.number(4, length);
        });
    }

    fn mask(&mut self, mask: [u8; 4]) {
        self.element("bitwise", |a| {
            a.number(1, REGISTER);
            a.number(2, REGISTER);
            a.number(3, 4);
            a.nested(4, |data| data.bytes(1, &mask));
            a.nested(5, |data| data.bytes(1, &[0; 4]));
        });
    }

    fn compare(&mut self, matches: Matches, value: &[u8]) {
        self.element("cmp", |a| {
            a.number(1, REGISTER);
            a.number(2, if matches == Matches::Is { 0 } else { 1 });
            a.nested(3, |data| data.bytes(1, value));
        });
    }

    fn network(&mut self, offset: u32, matches: Matches, network: Ipv4Addr, prefix: u8) {
        self.payload(PAYLOAD_NETWORK, offset, 4);
        if prefix < 32 {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            self.mask(mask.to_be_bytes());
        }
        self.compare(matches, &network.octets());
    }
}

fn expression(list: &mut Attributes<'_>, expression: &Expression) {
    match expression {
        Expression::InputInterface(matches, name) => {
            list.meta(META_IIFNAME);
            list.compare(*matches, &padded(name));
        }
        Expression::OutputInterface(matches, name) => {
            list.meta(META_OIFNAME);
            list.compare(*matches, &padded(name));
        }
        Expression::Family(matches, Family::Ipv4) => {
            list.meta(META_NFPROTO);
            list.compare(*matches, &[NFPROTO_IPV4]);
        }
        Expression::Source(matches, network, prefix) => list.network(IPV4_SOURCE, *matches, *network, *prefix),
        Expression::Destination(matches, network, prefix) => {
            list.network(IPV4_DESTINATION, *matches, *network, *prefix);
        }
        Expression::Protocol(protocol) => {
            list.meta(META_L4PROTO);
            list.compare(Matches::Is, &[*protocol as u8]);
        }
        Expression::DestinationPort(port) => {
            list.payload(PAYLOAD_TRANSPORT, TRANSPORT_DESTINATION, 2);
            list.compare(Matches::Is, &port.to_be_bytes());
        }
        Expression::Established => {
            list.element("ct", |a| {
                a.number(1, REGISTER);
                a.number(2, 0); // NFT_CT_STATE
            });
            list.mask(STATES.to_ne_bytes());
            list.compare(Matches::IsNot, &[0; 4]);
        }
        Expression::Masquerade => list.element("masq", |_| ()),
        Expression::End(verdict) => list.element("immediate", |a| {
            a.number(1, REGISTER_VERDICT);
            a.nested(2, |data| {
                data.nested(2, |v| v.number(1, if *verdict == Verdict::Accept { 1 } else { 0 }));
            });
        }),
    }
}

/// The kernel compares the whole field, so that `ab` does not match `abc`.
fn padded(name: &InterfaceName) -> [u8; INTERFACE_NAME_LEN] {
    let mut field = [0; INTERFACE_NAME_LEN];
    field[..name.as_str().len()].copy_from_slice(name.as_str().as_bytes());
    field
}
