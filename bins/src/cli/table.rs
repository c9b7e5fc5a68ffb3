//! Tables that fit the terminal. Pure: a list of a thousand rows costs less than starting the program, which is why this is
//! not a table library's dynamic layout. Cells may be anybody's text: none of them leaves its line.

use super::printable::{is_plain, printable};
use std::borrow::Cow;
use std::fmt::Write;

/// Between two columns.
const GAP: &str = "  ";
/// No column is cut below this.
const NARROWEST: usize = 8;

/// Lays out rows under their headings. Cuts the widest columns until a line fits `width`; cuts nothing where there is none.
pub(super) fn render<C: AsRef<str>>(headings: &[&str], rows: &[impl AsRef<[C]>], width: Option<usize>) -> String {
    let mut widths: Vec<usize> = headings.iter().map(|heading| heading.len()).collect();
    for row in rows {
        for (widest, cell) in widths.iter_mut().zip(row.as_ref()) {
            *widest = (*widest).max(measured(cell.as_ref()).1);
        }
    }
    if let Some(width) = width {
        fit(&mut widths, width);
    }
    let mut text = String::with_capacity((rows.len() + 1) * widths.iter().map(|w| w + GAP.len()).sum::<usize>());
    line(&mut text, headings.iter().copied(), &widths);
    for row in rows {
        line(&mut text, row.as_ref().iter().map(AsRef::as_ref), &widths);
    }
    text
}

/// `key: value` lines with the values aligned.
pub(super) fn pairs(rows: &[(&str, String)]) -> String {
    let widest = rows.iter().map(|(key, _)| key.len()).max().unwrap_or(0) + 1;
    rows.iter().fold(String::new(), |mut text, (key, value)| {
        let key = format!("{key}:");
        writeln!(text, "{key:widest$}{GAP}{}", printable(value)).expect("a String takes all");
        text
    })
}

/// What is shown of a cell, and how wide that is.
fn measured(cell: &str) -> (Cow<'_, str>, usize) {
    if is_plain(cell) {
        return (Cow::Borrowed(cell), cell.len());
    }
    let shown = printable(cell);
    let width = console::measure_text_width(&shown);
    (shown, width)
}

fn fit(widths: &mut [usize], available: usize) {
    let gaps = GAP.len() * widths.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + gaps > available {
        let Some(widest) = widths.iter_mut().max_by_key(|width| **width) else { return };
        if *widest <= NARROWEST {
            return;
        }
        *widest -= 1;
    }
}

fn line<'a>(text: &mut String, cells: impl ExactSizeIterator<Item = &'a str>, widths: &[usize]) {
    let last = cells.len().saturating_sub(1);
    for (index, (cell, width)) in cells.zip(widths).enumerate() {
        let (cell, measured) = measured(cell);
        if measured > *width {
            text.push_str(&console::truncate_str(&cell, *width, "…"));
        } else {
            text.push_str(&cell);
        }
        if index < last {
            text.extend(std::iter::repeat_n(' ', width.saturating_sub(measured)));
            text.push_str(GAP);
        }
    }
    text.truncate(text.trim_end_matches(' ').len());
    text.push('\n');
}

/// The terminal's width, where stdout is one.
pub(super) fn terminal_width() -> Option<usize> {
    let terminal = console::Term::stdout();
    terminal.is_term().then(|| usize::from(terminal.size().1)).filter(|width| *width > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(cells: &[[&str; 3]]) -> Vec<Vec<String>> {
        cells.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect()
    }

    #[test]
    fn columns_line_up_and_lines_have_no_tail() {
        let text = render(&["NAME", "STATE", "IMAGE"], &rows(&[["a", "running", "x"], ["long-name", "up", ""]]), None);
        assert_eq!(text, "NAME       STATE    IMAGE\na          running  x\nlong-name  up\n");
    }

    #[test]
    fn a_narrow_terminal_cuts_the_widest_column() {
        let text = render(&["A", "B", "C"], &rows(&[["aaaa", &"b".repeat(50), "cccc"]]), Some(30));
        assert!(text.lines().all(|line| console::measure_text_width(line) <= 30), "{text}");
        assert!(text.contains("aaaa") && text.contains("cccc") && text.contains('…'));
    }

    #[test]
    fn an_absurdly_narrow_one_is_given_up() {
        let text = render(&["A", "B", "C"], &rows(&[[&"a".repeat(20), &"b".repeat(20), "c"]]), Some(3));
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn no_cell_leaves_its_line() {
        let text = render(&["A", "B", "C"], &rows(&[["a\u{1b}[2J", "\u{1b}[31mred\u{1b}[0m", "x\ny"]]), None);
        assert_eq!(text, "A      B             C\na [2J   [31mred [0m  x y\n");
        assert_eq!(pairs(&[("env", "A=\u{202e}b\nuser: root".to_owned())]), "env:  A= b user: root\n");
    }

    #[test]
    fn pairs_are_aligned() {
        assert_eq!(pairs(&[("a", "1".to_owned()), ("long", "2".to_owned())]), "a:     1\nlong:  2\n");
    }
}
