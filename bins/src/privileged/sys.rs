//! Every unsafe call of the helper: the ioctls that make a tap, and closing what was inherited. Nothing else may be unsafe.
#![expect(unsafe_code, reason = "nix has no safe wrapper for the tun ioctls and for close_range")]

use messages::ids::InterfaceName;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

// The request codes of linux/if_tun.h. They say `int`, but the kernel takes the last two's argument by value.
nix::ioctl_readwrite_bad!(tun_set_iff, nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()), libc::ifreq);
nix::ioctl_write_int_bad!(tun_set_persist, nix::request_code_write!(b'T', 203, size_of::<libc::c_int>()));
nix::ioctl_write_int_bad!(tun_set_owner, nix::request_code_write!(b'T', 204, size_of::<libc::c_int>()));

/// Attaches `tun`, an open `/dev/net/tun`, to a new tap of this name, owned by `owner`, which outlives the file.
///
/// `IFF_TUN_EXCL` makes the kernel refuse a name that exists: the caller has looked, and nothing may come in between.
pub(crate) fn make_tap(tun: &File, name: &InterfaceName, owner: u32) -> io::Result<()> {
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    let mut name_field = [0; libc::IFNAMSIZ];
    for (to, from) in name_field.iter_mut().zip(name.as_str().bytes()).take(libc::IFNAMSIZ - 1) {
        *to = libc::c_char::try_from(from).map_err(|_| io::ErrorKind::InvalidInput)?;
    }
    // The kernel reads a `short`; the upper half of IFF_TUN_EXCL's bit 15 makes it negative, hence the cast by bytes.
    let [low, high, ..] = flags.to_le_bytes();
    let mut request = libc::ifreq {
        ifr_name: name_field,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: i16::from_le_bytes([low, high]) },
    };
    let owner = libc::c_int::try_from(owner).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: `tun` keeps the descriptor open throughout. `request` is a whole, initialised ifreq that lives on this
    // stack frame while the kernel copies it in and its name back out (TUNSETIFF, drivers/net/tun.c), no more than
    // sizeof(struct ifreq). The other two take a plain integer and touch no memory of ours.
    unsafe {
        tun_set_iff(tun.as_raw_fd(), &raw mut request)?;
        tun_set_owner(tun.as_raw_fd(), owner)?;
        tun_set_persist(tun.as_raw_fd(), 1)?;
    }
    Ok(())
}

/// Attaches `tun`, an open `/dev/net/tun`, to a tap that exists, as a VMM does; its frames come and go by the file then.
#[cfg(test)]
pub(crate) fn attach_tap(tun: &File, name: &str) -> io::Result<()> {
    let [low, high, ..] = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).to_le_bytes();
    let mut name_field = [0; libc::IFNAMSIZ];
    for (to, from) in name_field.iter_mut().zip(name.bytes()).take(libc::IFNAMSIZ - 1) {
        *to = libc::c_char::try_from(from).map_err(|_| io::ErrorKind::InvalidInput)?;
    }
    let mut request = libc::ifreq {
        ifr_name: name_field,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: i16::from_le_bytes([low, high]) },
    };
    // SAFETY: as for TUNSETIFF in `make_tap`.
    unsafe { tun_set_iff(tun.as_raw_fd(), &raw mut request)? };
    Ok(())
}

/// Closes every descriptor above stderr that the caller of this program left open.
pub(crate) fn close_inherited() -> io::Result<()> {
    // SAFETY: called first in `main`, before this process has opened anything, so that no Rust value owns a descriptor
    // in this range and none can be closed under its owner.
    if unsafe { libc::close_range(3, libc::c_uint::MAX, 0) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
