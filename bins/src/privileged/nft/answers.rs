//! Reads what the kernel tells of tables and rules. It is trusted, but a cut answer must not panic.

use super::KnownRule;

/// The attributes of a message or nest.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_at_checked(4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The comment in user data, as `nft` keeps it.
fn comment(data: &[u8]) -> Option<String> {
    let length = usize::from(*data.get(1)?);
    let text = data.get(2..2 + length).filter(|_| data[0] == 0)?;
    String::from_utf8(text.strip_suffix(&[0])?.to_vec()).ok()
}

/// The comment of a table.
pub(crate) fn table_comment(message: &[u8]) -> Option<String> {
    attributes(message).find(|(kind, _)| *kind == 6).and_then(|(_, data)| comment(data))
}

/// Handle and comment of a rule that has both.
pub(crate) fn rule(message: &[u8]) -> Option<KnownRule> {
    let handle = attributes(message).find(|(kind, _)| *kind == 3)?.1;
    let data = attributes(message).find(|(kind, _)| *kind == 7)?.1;
    Some(KnownRule { handle: u64::from_be_bytes(handle.try_into().ok()?), comment: comment(data)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::privileged::nft::attributes::Attributes;
    use crate::privileged::nft::encode::comment_data;

    #[test]
    fn a_rule_is_known_again_and_a_cut_one_is_not() {
        let mut bytes = Vec::new();
        let mut a = Attributes(&mut bytes);
        a.text(1, "filter");
        a.bytes(3, &7_u64.to_be_bytes());
        a.bytes(7, &comment_data("banger:1000:abcdef from bbabcdef"));
        let whole = KnownRule { handle: 7, comment: "banger:1000:abcdef from bbabcdef".to_owned() };
        assert_eq!(rule(&bytes), Some(whole));
        for end in 0..bytes.len() - 4 {
            assert_eq!(rule(&bytes[..end]), None, "{end}");
        }
        assert_eq!(table_comment(&bytes), None);
    }
}
