//! Frames by hand: what a guest sends, honest or not. Nothing here touches a socket.

use std::net::{Ipv4Addr, Ipv6Addr};

pub(super) type Mac = [u8; 6];

pub(super) const BROADCAST: Mac = [0xff; 6];
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;

pub(super) fn ether(from: Mac, to: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from[..], &kind.to_be_bytes()[..], payload].concat()
}

/// One end of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) mac: Mac,
    pub(super) ip: Ipv4Addr,
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn checksum(total: u32) -> [u8; 2] {
    let folded = (total & 0xffff) + (total >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    (!u16::try_from(folded).unwrap()).to_be_bytes()
}

pub(super) fn ipv4(from: End, to: End, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut header = vec![0x45, 0, length[0], length[1], 0, 1, 0, 0, 64, protocol, 0, 0];
    header.extend(from.ip.octets());
    header.extend(to.ip.octets());
    let check = checksum(sum(&header));
    header[10..12].copy_from_slice(&check);
    ether(from.mac, to.mac, IPV4, &[&header[..], payload].concat())
}

/// Without a checksum, which UDP over IPv4 permits.
pub(super) fn udp(from: End, to: End, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let header = [ports.0.to_be_bytes(), ports.1.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
    ipv4(from, to, 17, &[&header[..], payload].concat())
}

/// A handshake's first segment, which promises segments of `mss` bytes.
pub(super) fn syn(from: End, to: End, ports: (u16, u16), mss: u16) -> Vec<u8> {
    let mut segment = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    segment.extend([0, 0, 0, 7, 0, 0, 0, 0, 0x60, 0x02, 0xff, 0xff, 0, 0, 0, 0, 2, 4]);
    segment.extend(mss.to_be_bytes());
    let length = u32::try_from(segment.len()).unwrap();
    let pseudo = sum(&from.ip.octets()) + sum(&to.ip.octets()) + 6 + length;
    let check = checksum(pseudo + sum(&segment));
    segment[16..18].copy_from_slice(&check);
    ipv4(from, to, 6, &segment)
}

pub(super) fn echo(from: End, to: End, payload: &[u8]) -> Vec<u8> {
    let mut message = [&[8, 0, 0, 0, 0, 1, 0, 1][..], payload].concat();
    let check = checksum(sum(&message));
    message[2..4].copy_from_slice(&check);
    ipv4(from, to, 1, &message)
}

/// An ARP message; the frame's own source is `frame_from`.
pub(super) fn arp(frame_from: Mac, frame_to: Mac, operation: u8, sender: End, target: End) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, operation];
    for end in [sender, target] {
        body.extend(end.mac);
        body.extend(end.ip.octets());
    }
    ether(frame_from, frame_to, ARP, &body)
}

/// Who has `ip`? The asker, if the frame asks that.
pub(super) fn asks_for(frame: &[u8], ip: Ipv4Addr) -> Option<End> {
    let body = frame.get(14..42)?;
    let asks = frame[12..14] == ARP.to_be_bytes() && body[7] == 1 && body[24..28] == ip.octets();
    asks.then(|| sender_of_arp(body))
}

/// Whom an ARP answer names, if the frame is one.
pub(super) fn arp_answer(frame: &[u8]) -> Option<End> {
    let body = frame.get(14..42)?;
    (frame[12..14] == ARP.to_be_bytes() && body[7] == 2).then(|| sender_of_arp(body))
}

fn sender_of_arp(body: &[u8]) -> End {
    let ip: [u8; 4] = body[14..18].try_into().unwrap();
    End { mac: body[8..14].try_into().unwrap(), ip: ip.into() }
}

/// The addresses of an IPv4 frame.
pub(super) fn addresses(frame: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let packet = frame.get(14..34).filter(|_| frame[12..14] == IPV4.to_be_bytes())?;
    let at = |from: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&packet[from..from + 4]).unwrap());
    Some((at(12), at(16)))
}

/// One end of a conversation by IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End6 {
    pub(super) mac: Mac,
    pub(super) ip: Ipv6Addr,
}

/// With the hop limit that neighbour discovery asks for (RFC 4861). `check_at` is where the payload has its checksum.
fn ipv6(from: End6, to: End6, protocol: u8, mut payload: Vec<u8>, check_at: usize) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap();
    let pseudo = sum(&from.ip.octets()) + sum(&to.ip.octets()) + u32::from(protocol) + u32::from(length);
    let check = checksum(pseudo + sum(&payload));
    payload[check_at..check_at + 2].copy_from_slice(&check);
    let mut header = vec![0x60, 0, 0, 0];
    header.extend(length.to_be_bytes());
    header.extend([protocol, 255]);
    header.extend(from.ip.octets());
    header.extend(to.ip.octets());
    ether(from.mac, to.mac, IPV6, &[&header[..], &payload].concat())
}

pub(super) fn udp6(from: End6, to: End6, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let header = [ports.0.to_be_bytes(), ports.1.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
    ipv6(from, to, 17, [&header[..], payload].concat(), 6)
}

/// A message of ICMPv6: its type, and what comes after the checksum.
pub(super) fn icmp6(from: End6, to: End6, kind: u8, body: &[u8]) -> Vec<u8> {
    ipv6(from, to, 58, [&[kind, 0, 0, 0], body].concat(), 2)
}

pub(super) fn echo6(from: End6, to: End6, payload: &[u8]) -> Vec<u8> {
    icmp6(from, to, 128, &[&[0, 1, 0, 1], payload].concat())
}

/// The addresses of an IPv6 frame.
pub(super) fn addresses6(frame: &[u8]) -> Option<(Ipv6Addr, Ipv6Addr)> {
    let packet = frame.get(14..54).filter(|_| frame[12..14] == IPV6.to_be_bytes())?;
    let at = |from: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&packet[from..from + 16]).unwrap());
    Some((at(8), at(24)))
}
