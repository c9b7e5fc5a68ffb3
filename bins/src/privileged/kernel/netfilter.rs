//! Sends nf_tables batches and questions, and reads the kernel's verdict. Knows nothing of what they say.

use crate::privileged::nft::encode::{self, Batch, FinishedBatch};
use crate::privileged::nft::{ForeignChain, KnownRule, Layer, Passage, Set, Table, answers};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// The kernel answers within the send call but for module loading; the bound is for a kernel that never does.
const ANSWER_SECONDS: i64 = 10;
/// Room for the largest batch: 16384 grants take half of it.
const SEND_BUFFER: usize = 2 << 20;
/// `NLMSG_ERROR` (linux/netlink.h): its first word is 0 for an acknowledgement, else a negative errno.
const NETLINK_ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a dump.
const NETLINK_DONE: u16 = 3;
const HEADER: usize = 16;
/// `struct nfgenmsg`.
const FAMILY_HEADER: usize = 4;

/// Replaces the tables in one transaction, unless they are there already; says whether it did.
pub(super) fn replace(tables: &[Table]) -> io::Result<bool> {
    let mut hasher = DefaultHasher::new();
    Batch::replace(tables, "").bytes.hash(&mut hasher);
    let comment = format!("rules {:016x}", hasher.finish());
    let mut there = true;
    for table in tables {
        let found = ask(&encode::table_question(table.layer, &table.name), Answer::One)?;
        there &= found.first().and_then(|message| answers::table_comment(message)).as_ref() == Some(&comment);
    }
    if !there {
        perform(&Batch::replace(tables, &comment))?;
    }
    Ok(!there)
}

/// The rules of a chain of another firewall's; none where there is no such chain.
pub(super) fn foreign_rules(chain: ForeignChain) -> io::Result<Option<Vec<KnownRule>>> {
    if ask(&encode::chain_question(chain), Answer::One)?.is_empty() {
        return Ok(None);
    }
    let messages = ask(&encode::rules_question(chain), Answer::Dump)?;
    Ok(Some(messages.iter().filter_map(|message| answers::rule(message)).collect()))
}

/// Adds rules to such a chain and removes some, in one transaction.
pub(super) fn change_foreign_rules(chain: ForeignChain, add: &[Passage], remove: &[u64]) -> io::Result<()> {
    perform(&Batch::passages(chain, add, remove))
}

/// How many messages answer a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// One, or the error that there is nothing.
    One,
    Dump,
}

/// Asks, and gives the attributes of each message of the answer; none where there is nothing of that name.
fn ask(question: &[u8], answer: Answer) -> io::Result<Vec<Vec<u8>>> {
    let socket = open()?;
    sendto(socket.as_raw_fd(), question, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut found = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = receive(&socket, &mut buffer)?;
        let mut datagram = &buffer[..length];
        while let Some((header, _)) = datagram.split_at_checked(HEADER) {
            let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
            let length = usize::try_from(length).map_err(io::Error::other)?.clamp(HEADER, datagram.len());
            let body = &datagram[HEADER..length];
            match u16::from_ne_bytes([header[4], header[5]]) {
                NETLINK_ERROR => {
                    let code = body.first_chunk().map(|word| i32::from_ne_bytes(*word));
                    return match code.map(i32::saturating_neg) {
                        Some(0) => Ok(found),
                        Some(libc::ENOENT) => Ok(Vec::new()),
                        Some(code) => Err(io::Error::from_raw_os_error(code)),
                        None => Err(io::ErrorKind::InvalidData.into()),
                    };
                }
                NETLINK_DONE => return Ok(found),
                _ => found.extend(body.get(FAMILY_HEADER..).map(<[u8]>::to_vec)),
            }
            if answer == Answer::One {
                return Ok(found);
            }
            datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn open() -> io::Result<OwnedFd> {
    let socket: OwnedFd =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_SECONDS))?;
    Ok(socket)
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match recv(socket.as_raw_fd(), buffer, MsgFlags::empty()) {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            result => return Ok(result?),
        }
    }
}

/// Gives sets of the host's table other elements, in one transaction.
pub(super) fn refill(table: &str, sets: &[Set]) -> io::Result<()> {
    perform(&Batch::refill(Layer::Host, table, sets))
}

/// Removes the tables of this name, in one transaction.
pub(super) fn remove(name: &str) -> io::Result<()> {
    perform(&Batch::remove(name))
}

fn perform(batch: &FinishedBatch) -> io::Result<()> {
    let socket = open()?;
    // Beyond `wmem_max`, which holders of CAP_NET_ADMIN may: a batch is one datagram.
    setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER)?;
    let sent = sendto(socket.as_raw_fd(), &batch.bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    if sent != batch.bytes.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = receive(&socket, &mut buffer)?;
        if read_answers(&buffer[..length], batch.last)? == Progress::Complete {
            return Ok(());
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    More,
    Complete,
}

/// Reads the messages of one datagram. The last acknowledgement comes only when everything was accepted.
fn read_answers(mut datagram: &[u8], last: u32) -> io::Result<Progress> {
    while let Some((header, body)) = datagram.split_at_checked(HEADER) {
        let word = |at: usize, from: &[u8]| -> Option<u32> {
            Some(u32::from_ne_bytes(from.get(at..at + 4)?.try_into().ok()?))
        };
        let length = word(0, header).and_then(|l| usize::try_from(l).ok()).ok_or(io::ErrorKind::InvalidData)?;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        if kind == NETLINK_ERROR {
            let code = word(0, body).ok_or(io::ErrorKind::InvalidData)?.cast_signed();
            if code != 0 {
                return Err(io::Error::from_raw_os_error(code.saturating_neg()));
            }
            if word(8, header) == Some(last) {
                return Ok(Progress::Complete);
            }
        }
        let next = length.max(HEADER).next_multiple_of(4).min(datagram.len());
        datagram = &datagram[next..];
    }
    Ok(Progress::More)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(sequence: u32, code: i32) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(36_u32.to_ne_bytes());
        bytes.extend(NETLINK_ERROR.to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(code.to_ne_bytes());
        bytes.extend([0; 16]);
        bytes
    }

    #[test]
    fn the_last_acknowledgement_completes() {
        let datagram = [answer(1, 0), answer(2, 0)].concat();
        assert_eq!(read_answers(&datagram, 3).unwrap(), Progress::More);
        assert_eq!(read_answers(&datagram, 2).unwrap(), Progress::Complete);
    }

    #[test]
    fn the_first_refusal_is_the_error() {
        let datagram = [answer(1, -libc::EEXIST), answer(2, 0)].concat();
        assert_eq!(read_answers(&datagram, 2).unwrap_err().raw_os_error(), Some(libc::EEXIST));
    }

    #[test]
    fn cut_answers_do_not_panic() {
        let whole = answer(1, 0);
        for end in 0..whole.len() {
            assert!(!matches!(read_answers(&whole[..end], 9), Ok(Progress::Complete)), "{end}");
        }
    }
}
