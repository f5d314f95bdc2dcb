//! What a terminal is in the middle of, told by the bytes that it was sent: modes that are on, the
//! alternate screen, an unfinished sequence. Needed to put it back when a program is left or
//! killed, and to know when a line of ours may be written.
//!
//! ```text
//!   ground ── ESC ──► escape ── [ ──► CSI … final byte ──► ground
//!                       │ ] P X ^ _ ──► text … BEL or ESC \ ──► ground
//!                       └ any other final byte ──► ground
//! ```

use std::collections::BTreeSet;

/// Bytes of the parameters of one sequence that are looked at; nothing of interest is longer.
const PARAMETERS: usize = 32;
/// Bytes of a title, link or picture after which it is taken for forgotten.
const TEXT: usize = 1 << 20;

/// One terminal.
#[derive(Debug, Default)]
pub struct Screen {
    /// Modes that were switched on and not off again: mouse, bracketed paste, alternate screen.
    on: BTreeSet<u16>,
    hidden: bool,
    alternate: bool,
    state: State,
    /// Bytes that the character begun last still needs.
    continuation: u8,
    /// The cursor is on a line that something was written to.
    open: bool,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Ground,
    Escape,
    Csi(Vec<u8>),
    /// A title, a link, a picture, and how long it is by now.
    Text(usize),
}

impl Screen {
    /// Follows what the terminal is sent; sequences and characters may be cut anywhere.
    pub fn watch(&mut self, bytes: &[u8]) {
        // Most output has no sequence in it: then only its last line says how things are.
        let plain = matches!(self.state, State::Ground) && !bytes.contains(&0x1b);
        let from = if plain { bytes.iter().rposition(|byte| *byte == b'\n').unwrap_or(0) } else { 0 };
        for byte in &bytes[from..] {
            self.step(*byte);
        }
    }

    fn step(&mut self, byte: u8) {
        self.state = match (std::mem::take(&mut self.state), byte) {
            (_, 0x1b) => State::Escape,
            // CAN and SUB end any sequence.
            (_, 0x18 | 0x1a) => State::Ground,
            (State::Ground, byte) => {
                self.plain(byte);
                State::Ground
            }
            (State::Escape, b'[') => State::Csi(Vec::new()),
            (State::Escape, b']' | b'P' | b'X' | b'^' | b'_') => State::Text(0),
            (State::Escape, 0x20..=0x2f) => State::Escape,
            (State::Escape, b'c') => {
                // A full reset.
                (self.hidden, self.alternate, self.open) = (false, false, false);
                self.on.clear();
                State::Ground
            }
            (State::Escape, _) => State::Ground,
            (State::Csi(parameters), 0x40..=0x7e) => {
                self.sequence(&parameters, byte);
                State::Ground
            }
            (State::Csi(mut parameters), byte) => {
                if parameters.len() < PARAMETERS {
                    parameters.push(byte);
                }
                State::Csi(parameters)
            }
            (State::Text(_), 0x07) => State::Ground,
            (State::Text(length), _) if length < TEXT => State::Text(length + 1),
            (State::Text(_), _) => State::Ground,
        };
    }

    fn plain(&mut self, byte: u8) {
        self.continuation = match byte {
            0x80..=0xbf => self.continuation.saturating_sub(1),
            0xc2..=0xdf => 1,
            0xe0..=0xef => 2,
            0xf0..=0xf4 => 3,
            _ => 0,
        };
        match byte {
            b'\n' => self.open = false,
            0x00..=0x1f => {}
            _ => self.open = true,
        }
    }

    /// `ESC [ ? n ; n h` and `l`; everything else passes by.
    fn sequence(&mut self, parameters: &[u8], last: u8) {
        let (Some((b'?', numbers)), b'h' | b'l') = (parameters.split_first().map(|(a, b)| (*a, b)), last) else {
            return;
        };
        let text = String::from_utf8_lossy(numbers);
        for mode in text.split(';').filter_map(|mode| mode.parse::<u16>().ok()) {
            self.set(mode, last == b'h');
        }
    }

    fn set(&mut self, mode: u16, on: bool) {
        // Three ways to the same other screen.
        if matches!(mode, 47 | 1047 | 1049) {
            self.alternate = on;
        }
        match mode {
            25 => self.hidden = !on,
            47 | 1000..=1006 | 1015 | 1047 | 1049 | 2004 if on => {
                self.on.insert(mode);
            }
            mode => {
                self.on.remove(&mode);
            }
        }
    }

    /// Whether a line of ours would neither spoil a full-screen program nor cut a sequence in two.
    pub fn may_write(&self) -> bool {
        !self.alternate && self.continuation == 0 && matches!(self.state, State::Ground)
    }

    /// Whether the cursor is on a line that was begun.
    pub fn line_is_open(&self) -> bool {
        self.open
    }

    /// A whole line of ours was written.
    pub fn line_written(&mut self) {
        self.open = false;
    }

    /// Whether a full-screen program has the terminal: what was written before is not what is to be seen.
    pub fn is_alternate(&self) -> bool {
        self.alternate
    }

    /// What switches everything on that is on, for a terminal that saw nothing of it.
    pub fn enter(&self) -> String {
        let mut out: String = self.on.iter().map(|mode| format!("\x1b[?{mode}h")).collect();
        if self.hidden {
            out.push_str("\x1b[?25l");
        }
        out
    }

    /// What switches everything off that is still on.
    pub fn reset(&self) -> String {
        let mut out: String = self.on.iter().rev().map(|mode| format!("\x1b[?{mode}l")).collect();
        if self.hidden {
            out.push_str("\x1b[?25h");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_left_on_is_switched_off() {
        let mut screen = Screen::default();
        screen.watch(b"plain \x1b[1mbold\x1b[0m \x1b[?1049h\x1b[?10");
        screen.watch(b"00;1006h\x1b[?25l\x1b[?2004h\x1b[?2004l");
        assert_eq!(screen.reset(), "\x1b[?1049l\x1b[?1006l\x1b[?1000l\x1b[?25h");
        screen.watch(b"\x1b[?1049l\x1b[?1000;1006l\x1b[?25h");
        assert_eq!(screen.reset(), "");
    }

    #[test]
    fn the_alternate_screen_is_seen_however_the_bytes_are_cut() {
        for (enter, leave) in
            [(49, 49), (47, 47), (49, 47)].map(|(a, b)| (1000 + a, 1000 + b)).into_iter().chain([(47, 47)])
        {
            let all = format!("a\n\x1b[?{enter}hfull screen\n\x1b[?25;{leave}l\n").into_bytes();
            let (entered, left) = (2 + format!("\x1b[?{enter}h").len(), all.len() - 1);
            for cut in 0..=all.len() {
                let mut screen = Screen::default();
                screen.watch(&all[..cut]);
                let outside = cut < entered || cut >= left;
                let between = cut <= 2 || cut >= left;
                assert_eq!(!screen.alternate, outside, "{enter} {leave} {cut}");
                assert_eq!(screen.may_write(), between, "{enter} {leave} {cut}");
                screen.watch(&all[cut..]);
                assert!(screen.may_write() && !screen.line_is_open(), "{enter} {leave} {cut}");
            }
        }
    }

    #[test]
    fn another_terminal_can_be_brought_to_the_same_modes() {
        let mut screen = Screen::default();
        screen.watch(b"\x1b[?1049h\x1b[?1000;1006h\x1b[?2004h\x1b[?2004l\x1b[?25ltext");
        let mut other = Screen::default();
        other.watch(screen.enter().as_bytes());
        assert!(other.is_alternate());
        assert_eq!(other.reset(), screen.reset());
        assert_eq!(Screen::default().enter(), "");
    }

    #[test]
    fn a_full_reset_leaves_the_alternate_screen() {
        let mut screen = Screen::default();
        screen.watch(b"\x1b[?1049h\x1b[?25l");
        assert!(!screen.may_write());
        screen.watch(b"\x1bc");
        assert!(screen.may_write());
        assert_eq!(screen.reset(), "");
    }

    #[test]
    fn nothing_is_cut_in_two() {
        // A coloured word, a title, a link, a two-byte sequence, characters of two to four bytes.
        for whole in ["\x1b[38;5;9m", "\x1b]0;title\x07", "\x1b]8;;x\x1b\\", "\x1b(B", "é", "日", "🦀"] {
            let bytes = whole.as_bytes();
            let mut screen = Screen::default();
            for byte in &bytes[..bytes.len() - 1] {
                screen.watch(&[*byte]);
                assert!(!screen.may_write(), "{whole:?}");
            }
            screen.watch(&bytes[bytes.len() - 1..]);
            assert!(screen.may_write(), "{whole:?}");
        }
    }

    #[test]
    fn a_forgotten_title_does_not_last_for_ever() {
        let mut screen = Screen::default();
        screen.watch(b"\x1b]0;");
        screen.watch(&vec![b'x'; TEXT + 1]);
        assert!(screen.may_write());
    }

    #[test]
    fn plain_output_is_read_from_its_last_line() {
        for text in ["a\nb\n", "a\nb", "a\n\u{e9}", "\n\n", "no end", "x\n\r"] {
            let (mut at_once, mut each) = (Screen::default(), Screen::default());
            at_once.watch(text.as_bytes());
            text.bytes().for_each(|byte| each.watch(&[byte]));
            assert_eq!(format!("{at_once:?}"), format!("{each:?}"), "{text:?}");
        }
    }

    #[test]
    fn a_begun_line_is_known() {
        let mut screen = Screen::default();
        for (bytes, open) in [(&b"x"[..], true), (b"\r\n", false), (b"\x1b[2K\r", false), (b"50%\r", true)] {
            screen.watch(bytes);
            assert_eq!(screen.line_is_open(), open, "{bytes:?}");
        }
    }
}
