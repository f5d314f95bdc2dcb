//! What came from a repository, made safe to print.

/// Returns text without anything that a terminal would act on or that hides what follows: control
/// characters (C0, DEL, C1), bidirectional overrides, zero-width and other invisible characters,
/// bytes that are not UTF-8. Each becomes a visible escape.
pub fn printable(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if is_printable(c) { out.push(c) } else { out.extend(c.escape_unicode()) }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

/// Whether a terminal shows this character and does nothing else.
pub fn is_printable(c: char) -> bool {
    !c.is_control()
        && !matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_as_a_command() {
        assert_eq!(printable(b"plain \xc3\xa9"), "plain \u{e9}");
        assert_eq!(printable(b"a\x1b]52;c;x\x07b"), "a\\u{1b}]52;c;x\\u{7}b");
        assert_eq!(printable("\u{9b}2J\u{202e}x\u{200b}".as_bytes()), "\\u{9b}2J\\u{202e}x\\u{200b}");
        assert_eq!(printable(b"\xff\xfe"), "\\xff\\xfe");
    }
}
