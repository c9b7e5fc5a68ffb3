//! What others wrote, made fit for a terminal: nobody but us moves the cursor, names a window or turns text around. Pure.
//!
//! The printers call this, not those who make the text. A command's output and a log are data, and `--json` escapes for itself:
//! neither comes through here.

use std::borrow::Cow;

/// The longest that a name is shown that should be short, in characters.
const BRIEF: usize = 120;
/// In front of each further line of a text: no line of another's begins as one of ours does.
const INDENT: &str = "\n    ";

/// The text with a space for every character that a terminal would obey instead of showing it, line breaks among them.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    if !is_plain(text) && text.chars().any(is_obeyed) {
        Cow::Owned(text.chars().map(|c| if is_obeyed(c) { ' ' } else { c }).collect())
    } else {
        Cow::Borrowed(text)
    }
}

/// Whether the text is printable ASCII: nearly all there is, and as wide as it is long.
pub(super) fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// The same, and not longer than a line.
pub(super) fn brief(text: &str) -> String {
    printable(text).chars().take(BRIEF).collect()
}

/// The same for a text that may have several lines, as the end of a log: they stay, and all but the first are indented.
pub(super) fn indented(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join(INDENT)
}

/// Controls, and what reorders or breaks a line without being one: U+202A to U+202E and U+2066 to U+2069 turn text around.
fn is_obeyed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_terminal_obeys_is_a_space() {
        for (text, shown) in [
            ("plain text", "plain text"),
            ("größer, 大きい", "größer, 大きい"),
            ("\u{1b}]0;title\u{7}", " ]0;title "),
            ("\u{9b}2J", " 2J"),
            ("a\r\nb\tc\u{7f}", "a  b c "),
            ("exe\u{202e}txt.\u{202c} \u{2066}x\u{2069}", "exe txt.   x "),
        ] {
            assert_eq!(printable(text), shown);
        }
        assert!(matches!(printable("größer"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_further_line_does_not_begin_as_one_of_ours() {
        assert_eq!(indented("one\nhint: two\r\n\u{1b}three\n"), "one\n    hint: two\n     three");
        assert_eq!(indented("one\rhint: two\u{2028}error: three"), "one hint: two error: three");
    }

    #[test]
    fn a_brief_text_is_short() {
        assert_eq!(brief(&"\u{1b}ü".repeat(1000)).chars().count(), BRIEF);
    }

    proptest! {
        #[test]
        fn no_text_has_anything_to_obey(text in any::<String>()) {
            prop_assert!(!printable(&text).contains(is_obeyed));
            prop_assert!(indented(&text).lines().skip(1).all(|line| line.starts_with("    ") && !line.contains(is_obeyed)));
        }
    }
}
