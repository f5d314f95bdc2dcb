//! What is printed: the one function that makes untrusted text safe, sizes, ages, tables.

/// Makes text from inside a sandbox safe for a terminal and a log (see [`sandbox_git::printable`]).
pub fn escape(text: &str) -> String {
    sandbox_git::printable(text.as_bytes())
}

/// As [`escape`], for text of several lines: line breaks and tabs stay.
pub fn escape_lines(text: &str) -> String {
    let line = |line: &str| line.split('\t').map(escape).collect::<Vec<_>>().join("\t");
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// As [`escape`], for bytes that need not be UTF-8.
pub fn escape_bytes(bytes: &[u8]) -> String {
    sandbox_git::printable(bytes)
}

/// Makes JSON safe for a terminal: what [`escape`] would change is written as `\u…`, which means the same.
/// Such characters are in strings only.
pub fn escape_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\n' || sandbox_git::is_printable(c) {
            out.push(c);
        } else {
            let mut units = [0; 2];
            c.encode_utf16(&mut units).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
        }
    }
    out
}

pub use sandbox_core::units::size;

/// Reads a size: a number with an optional `k`, `m`, `g`, `t` (powers of 1024).
pub fn parse_size(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let lower = lower.strip_suffix("ib").or(lower.strip_suffix('b')).unwrap_or(&lower);
    let (number, factor) = match lower.as_bytes().last()? {
        b'k' => (&lower[..lower.len() - 1], 1u64 << 10),
        b'm' => (&lower[..lower.len() - 1], 1 << 20),
        b'g' => (&lower[..lower.len() - 1], 1 << 30),
        b't' => (&lower[..lower.len() - 1], 1 << 40),
        _ => (lower, 1),
    };
    let number: f64 = number.trim().parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0)?;
    Some((number * factor as f64) as u64)
}

/// Writes a time span in one unit: `5s`, `3m`, `2h`, `4d`.
pub fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Reads a time span: a number with an optional `s`, `m`, `h`, `d`.
pub fn parse_duration(text: &str) -> Option<u64> {
    let (number, factor) = match text.as_bytes().last()? {
        b's' => (&text[..text.len() - 1], 1),
        b'm' => (&text[..text.len() - 1], 60),
        b'h' => (&text[..text.len() - 1], 3600),
        b'd' => (&text[..text.len() - 1], 86_400),
        _ => (text, 1),
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// Writes a number with its noun: `1 commit`, `2 commits`.
pub fn count(n: usize, noun: &str) -> String {
    count_of(n, noun, &format!("{noun}s"))
}

/// The same, of a noun whose plural has no `s` at its end alone.
pub fn count_of(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// Lays out rows in columns, two spaces apart; the last column is not padded.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|c| rows.iter().filter_map(|row| row.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (c, cell) in row.iter().enumerate() {
            line.push_str(cell);
            if c + 1 < row.len() {
                line.extend(std::iter::repeat_n(' ', widths[c] - cell.chars().count() + 2));
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Shows a path below the home as `~/…`.
pub fn tilde(path: &std::path::Path, home: &std::path::Path) -> String {
    match path.strip_prefix(home) {
        Ok(rest) if rest.as_os_str().is_empty() => "~".to_owned(),
        Ok(rest) => format!("~/{}", rest.display()),
        Err(_) => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_passes() {
        assert_eq!(escape("a\x1b]52;c\x07b\rc"), "a\\u{1b}]52;c\\u{7}b\\u{d}c");
        assert_eq!(escape("x\u{9b}2J \u{202e}evil\u{200b}"), "x\\u{9b}2J \\u{202e}evil\\u{200b}");
        assert_eq!(escape("Grüße 日本"), "Grüße 日本");
        assert_eq!(escape_bytes(b"ok\xff\x1b"), "ok\\xff\\u{1b}");
        assert_eq!(escape_lines("a\tx\nb\x1b"), "a\tx\nb\\u{1b}");
    }

    #[test]
    fn json_means_the_same_after_it_was_made_safe() {
        let text: String = ('\0'..='\u{2100}').chain('\u{e0000}'..='\u{e0100}').collect();
        let json = serde_json::to_string_pretty(&[&text]).unwrap();
        let safe = escape_json(&json);
        assert_eq!(serde_json::from_str::<Vec<String>>(&safe).unwrap(), [text]);
        assert_eq!(escape(&safe.replace('\n', "")), safe.replace('\n', ""));
    }

    #[test]
    fn sizes_and_times_read_and_write() {
        assert_eq!(parse_size("1.5k"), Some(1536));
        assert_eq!(parse_size("2GiB"), Some(2 << 30));
        assert_eq!(parse_size("many"), None);
        assert_eq!([age(59), age(61), age(7200), age(200_000)], ["59s", "1m", "2h", "2d"]);
        assert_eq!(parse_duration("90m"), Some(5400));
        assert_eq!(parse_duration("x"), None);
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".into(), "bb".into()], vec!["ccc".into(), "d".into()]];
        assert_eq!(table(&rows), "a    bb\nccc  d\n");
    }
}
