//! POSIX access control lists: from the form of system calls and archives into ext4's own.

/// Their attributes.
pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";
/// `POSIX_ACL_XATTR_VERSION` (linux/posix_acl_xattr.h): tag, permissions and id of 2, 2 and 4 bytes.
const CALLED: u32 = 2;
/// `EXT4_ACL_VERSION` (fs/ext4/acl.h): the id only where it means something.
const STORED: u32 = 1;
/// `ACL_USER`, `ACL_GROUP` (linux/posix_acl.h): entries of a named user or group.
const NAMED: [u16; 2] = [0x02, 0x08];
/// `ACL_USER_OBJ`, `ACL_GROUP_OBJ`, `ACL_MASK`, `ACL_OTHER`
const NAMELESS: [u16; 4] = [0x01, 0x04, 0x10, 0x20];

/// Converts a list. One in ext4's form stays as it is: the versions tell the two apart.
///
/// Returns `None` where it is neither.
pub(crate) fn stored(value: &[u8]) -> Option<Vec<u8>> {
    let (version, mut rest) = value.split_first_chunk::<4>()?;
    let version = u32::from_le_bytes(*version);
    if version != CALLED && version != STORED {
        return None;
    }
    let mut stored = STORED.to_le_bytes().to_vec();
    while !rest.is_empty() {
        let (head, behind) = rest.split_first_chunk::<4>()?;
        stored.extend_from_slice(head);
        rest = behind;
        let tag = u16::from_le_bytes([head[0], head[1]]);
        let named = NAMED.contains(&tag);
        if !named && !NAMELESS.contains(&tag) {
            return None;
        }
        if named || version == CALLED {
            let (id, behind) = rest.split_first_chunk::<4>()?;
            rest = behind;
            if named {
                stored.extend_from_slice(id);
            }
        }
    }
    Some(stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stay_where_they_mean_something() {
        let mut called = CALLED.to_le_bytes().to_vec();
        called.extend_from_slice(&[1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff]);
        called.extend_from_slice(&[2, 0, 4, 0, 0xe8, 3, 0, 0]);
        called.extend_from_slice(&[0x20, 0, 4, 0, 0xff, 0xff, 0xff, 0xff]);
        let expected = [1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 4, 0, 0xe8, 3, 0, 0, 0x20, 0, 4, 0];
        assert_eq!(stored(&called).unwrap(), expected);
        assert_eq!(stored(&expected).unwrap(), expected);
        assert_eq!(stored(&called[..4]).unwrap(), [1, 0, 0, 0]);
        assert_eq!(stored(&called[..27]), None);
        assert_eq!(stored(&called[..3]), None);
        assert_eq!(stored(&[3, 0, 0, 0]), None);
        assert_eq!(stored(&[1, 0, 0, 0, 3, 0, 0, 0]), None);
    }
}
