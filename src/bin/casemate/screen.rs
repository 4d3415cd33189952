//! Text for a terminal, made harmless and put into columns. Pure: nothing is written here.
//!
//! Names and messages may come from a sandbox. Whatever could move the cursor, change colours or
//! turn the direction of writing is shown as an escape, so that it is seen instead of obeyed.

use std::fmt::Write as _;

/// Between two columns.
const GAP: &str = "  ";

/// What a value that is absent looks like.
pub const ABSENT: &str = "-";

/// Whether a terminal might obey this character instead of showing it.
///
/// Controls (C0, DEL, C1) and the invisible format characters of Unicode: directions, joiners,
/// separators of lines, tags.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// The text with everything that acts on a terminal escaped as Rust would write it.
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if acts(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// JSON that means the same and holds no character that acts on a terminal. Outside of strings
/// JSON is plain ASCII, so whatever is found stands inside one.
pub fn quiet_json(json: &str) -> String {
    let mut quiet = String::with_capacity(json.len());
    for c in json.chars() {
        if acts(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(quiet, "\\u{unit:04x}");
            }
        } else {
            quiet.push(c);
        }
    }
    quiet
}

/// Rows under headings, each column as wide as its widest cell. Lines longer than `width`
/// characters are cut and end in `…`.
pub fn table(headings: &[&str], rows: &[Vec<String>], width: Option<usize>) -> String {
    let mut lines = vec![headings.iter().map(|&text| text.to_owned()).collect()];
    lines.extend(
        rows.iter()
            .map(|row| row.iter().map(|cell| visible(cell)).collect::<Vec<_>>()),
    );
    aligned(&lines, width)
}

/// One `name  value` a line. Values are not cut: there is one thing to show, so all of it.
pub fn fields(fields: &[(&str, String)]) -> String {
    let lines: Vec<_> = fields
        .iter()
        .map(|(name, value)| vec![(*name).to_owned(), visible(value)])
        .collect();
    aligned(&lines, None)
}

fn aligned(lines: &[Vec<String>], width: Option<usize>) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let widest: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = lines.iter().filter_map(|line| line.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for line in lines {
        let padded: Vec<String> = line
            .iter()
            .zip(&widest)
            .map(|(cell, &width)| format!("{cell:width$}"))
            .collect();
        text.push_str(&cut(padded.join(GAP).trim_end(), width));
        text.push('\n');
    }
    text
}

fn cut(line: &str, width: Option<usize>) -> String {
    match width {
        Some(width) if line.chars().count() > width => {
            let kept: String = line.chars().take(width.saturating_sub(1)).collect();
            format!("{kept}…")
        }
        _ => line.to_owned(),
    }
}

/// The value as text, or the sign for none.
pub fn or_absent(value: Option<impl ToString>) -> String {
    value.map_or_else(|| ABSENT.to_owned(), |value| value.to_string())
}

/// A size for people: in the largest binary unit of which there is one.
pub fn size(bytes: u64) -> String {
    let mut unit = "B";
    let (mut whole, mut tenths) = (bytes, 0);
    for larger in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
        if whole < 1024 {
            break;
        }
        tenths = whole % 1024 * 10 / 1024;
        whole /= 1024;
        unit = larger;
    }
    if unit == "B" {
        format!("{whole} B")
    } else {
        format!("{whole}.{tenths} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_shown_instead() {
        assert_eq!(visible("a\x1b[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(visible("a\nb\tc"), "a\\nb\\tc");
        assert_eq!(visible("\u{9b}31m \u{202e}x"), "\\u{9b}31m \\u{202e}x");
        assert_eq!(visible("Grüße, 世界 🙂"), "Grüße, 世界 🙂");
    }

    #[test]
    fn quiet_json_means_the_same() {
        let value = serde_json::json!({"a": "\u{9b}31m\u{7f}\u{202e}\u{e0041}é\x1b"});
        let quiet = quiet_json(&value.to_string());
        assert!(!quiet.chars().any(acts), "{quiet}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&quiet).unwrap(),
            value
        );
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![
            vec!["1".into(), "é".into()],
            vec!["22222".into(), "\x07".into()],
        ];
        assert_eq!(
            table(&["ID", "NAME"], &rows, None),
            "ID     NAME\n1      é\n22222  \\u{7}\n"
        );
    }

    #[test]
    fn a_line_is_cut_at_the_terminals_width_and_says_so() {
        let rows = vec![vec!["abcdef".into(), "ghijkl".into()]];
        assert_eq!(
            table(&["A", "B"], &rows, Some(10)),
            "A       B\nabcdef  g…\n"
        );
        assert_eq!(
            table(&["A", "B"], &rows, Some(14)).lines().last(),
            Some("abcdef  ghijkl")
        );
    }

    #[test]
    fn sizes_are_in_the_largest_unit_that_fits() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(5 << 30), "5.0 GiB");
        assert_eq!(size(u64::MAX), "16383.9 PiB");
    }
}
