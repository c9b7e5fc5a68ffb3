//! Sends nf_tables batches and reads the kernel's verdict. Knows nothing of what they say.

use crate::privileged::nft::{Layer, Set, Table};
use crate::privileged::nft::encode::{Batch, FinishedBatch};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// The kernel answers within the send call but for module loading; the bound is for a kernel that never does.
const ANSWER_SECONDS: i64 = 10;
/// Room for the largest batch: 16384 grants take half of it.
const SEND_BUFFER: usize = 2 << 20;
/// `NLMSG_ERROR` (linux/netlink.h): its first word is 0 for an acknowledgement, else a negative errno.
const NETLINK_ERROR: u16 = 2;
const HEADER: usize = 16;

/// Replaces the tables in one transaction.
pub(super) fn replace(tables: &[Table]) -> io::Result<()> {
    perform(&Batch::replace(tables))
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
    let socket: OwnedFd =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_SECONDS))?;
    // Beyond `wmem_max`, which holders of CAP_NET_ADMIN may: a batch is one datagram.
    setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER)?;
    let sent = sendto(socket.as_raw_fd(), &batch.bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    if sent != batch.bytes.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            result => result?,
        };
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
