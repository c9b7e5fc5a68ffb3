//! Newtypes for what is named: each parses what it accepts, on the wire too, and prints itself.

use crate::limits::{COMMAND_LINE_MAX, HOST_PATH_MAX, NAME_MAX, REFERENCE_MAX};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Says why a name or id was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    #[error("`{0}` is not a VM name: use 1 to 63 of a-z, 0-9 and `-`, beginning and ending with a letter or digit")]
    VmName(String),
    #[error("`{0}` is not an id: use {1} hexadecimal digits")]
    Hex(String, usize),
    #[error("`{0}` is not a VM name or id prefix")]
    VmRef(String),
    #[error("`{0}` is not an image or kernel reference")]
    Reference(String),
    #[error(
        "`{0}` is not a name for an image or kernel: use 1 to 128 of a-z, 0-9, `.`, `_` and `-`, beginning with a letter or digit"
    )]
    ArtifactName(String),
    #[error("`{0}` is not a network interface name of this instance")]
    Interface(String),
    #[error("`{0}` is not an absolute path of at most {HOST_PATH_MAX} bytes")]
    HostPath(String),
    #[error("`{0}` is not a kernel command line: use 1 to {COMMAND_LINE_MAX} printable ASCII characters")]
    CommandLine(String),
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub struct $name(pub [u8; $bytes]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut digits = [0; $bytes * 2];
                hex::encode_to_slice(self.0, &mut digits).map_err(|_| fmt::Error)?;
                f.write_str(std::str::from_utf8(&digits).map_err(|_| fmt::Error)?)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let invalid = || InvalidId::Hex(text.chars().take(64).collect(), $bytes * 2);
                if text.len() != $bytes * 2 || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
                    return Err(invalid());
                }
                let mut bytes = [0; $bytes];
                for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
                    let pair = std::str::from_utf8(pair).map_err(|_| invalid())?;
                    *byte = u8::from_str_radix(pair, 16).map_err(|_| invalid())?;
                }
                Ok(Self(bytes))
            }
        }
    };
}

hex_id!(
    /// One VM, for ever: never reused. File, socket and lock names derive from it.
    VmId, 8);
hex_id!(
    /// Minted by the caller of a request: a repeated request is answered, not repeated.
    RequestId, 16);
hex_id!(
    /// One operation in a guest: an exec, a shell, a copy.
    OperationId, 8);
hex_id!(
    /// One banger instance on this host (a state directory of an owner). Part of every kernel object's name.
    InstanceId, 3);
hex_id!(
    /// One boot of one VM.
    BootNonce, 16);

macro_rules! checked_string {
    ($(#[$doc:meta])* $name:ident, $variant:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(String);

        // Not by `into`, which would copy it first.
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                let check: fn(&str) -> bool = $check;
                if check(&text) { Ok(Self(text)) } else { Err(InvalidId::$variant(text.chars().take(160).collect())) }
            }
        }
        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::try_from(text.to_owned())
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=NAME_MAX).contains(&bytes.len())
        && bytes.iter().all(|b| edge(*b) || *b == b'-')
        && edge(bytes[0])
        && edge(bytes[bytes.len() - 1])
}

fn is_artifact_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=128).contains(&bytes.len())
        && (bytes[0].is_ascii_lowercase() || bytes[0].is_ascii_digit())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(b))
}

checked_string!(
    /// A VM's name: one DNS label in lower case, so that `<name>.vm` resolves.
    VmName, VmName, is_label);
checked_string!(
    /// What a user types for a VM: a name, an id or a unique prefix of an id.
    VmRef, VmRef, is_label);
checked_string!(
    /// The name of an image present on this host. Safe as a directory name.
    ImageName, ArtifactName, is_artifact_name);
checked_string!(
    /// The name of a kernel present on this host. Safe as a directory name.
    KernelName, ArtifactName, is_artifact_name);
checked_string!(
/// What a user types for an image: a catalog name, a local name or an OCI reference.
Reference, Reference, |text| {
    (1..=REFERENCE_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
});
checked_string!(
/// A Linux network interface name, at most 15 bytes (`IFNAMSIZ` - 1, linux/if.h), of harmless characters.
InterfaceName, Interface, |text| {
    (1..=15).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && text.as_bytes()[0].is_ascii_lowercase()
});

checked_string!(
/// A file or directory of this host that a client asks the daemon to read: absolute, because the daemon's directory is another.
HostPath, HostPath, |text| {
    text.starts_with('/') && text.len() <= HOST_PATH_MAX && !text.contains('\0')
});
checked_string!(
/// What a kernel is booted with. Printable ASCII: a line break or a NUL would end it early.
KernelCommandLine, CommandLine, |text| {
    (1..=COMMAND_LINE_MAX).contains(&text.len()) && text.bytes().all(|b| (b' '..=b'~').contains(&b))
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_and_refuse_the_rest() {
        let id: VmId = "00ff10a0b0c0d0e0".parse().unwrap();
        assert_eq!(id.to_string(), "00ff10a0b0c0d0e0");
        for bad in ["", "00FF10a0b0c0d0e0", "00ff10a0b0c0d0e", "zzff10a0b0c0d0e0", "+0ff10a0b0c0d0e0"] {
            assert!(bad.parse::<VmId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "a-b", "0", &"x".repeat(63)] {
            assert!(good.parse::<VmName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "ü", &"x".repeat(64), "a/b", ".."] {
            assert!(bad.parse::<VmName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_are_absolute_and_command_lines_are_one_line() {
        assert!("/a b/ü".parse::<HostPath>().is_ok() && "console=ttyS0 quiet".parse::<KernelCommandLine>().is_ok());
        for bad in ["", "a", "./a", "~/a", "/a\0b", &format!("/{}", "x".repeat(HOST_PATH_MAX))] {
            assert!(bad.parse::<HostPath>().is_err(), "{bad}");
        }
        for bad in ["", "a\nb", "a\tb", "ü", &"x".repeat(COMMAND_LINE_MAX + 1)] {
            assert!(bad.parse::<KernelCommandLine>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bad_name_in_a_frame_is_refused() {
        let bytes = postcard::to_stdvec("../etc").unwrap();
        assert!(postcard::from_bytes::<VmName>(&bytes).is_err());
        assert!(postcard::from_bytes::<ImageName>(&bytes).is_err());
    }
}
