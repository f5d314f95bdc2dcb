//! Line ends, converted as git's `convert.c` does it, without asking git: so a comparison runs no
//! filter program, and the caller decides whose attributes count.
//!
//! ```text
//!   text     -text   text=auto   unset
//!   ────     ─────   ─────────   ─────
//!   Text     Binary  Auto        by core.autocrlf: Binary | Auto (crlf) | Auto (lf)
//!
//!   eol=lf | eol=crlf, else core.autocrlf, else core.eol, else lf  ── what the working tree has
//! ```

/// What is done with the line ends of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Binary,
    /// It is text; `crlf` says what the working tree has.
    Text {
        /// CRLF in the working tree.
        crlf: bool,
    },
    /// The same if the content looks like text.
    Auto {
        /// CRLF in the working tree.
        crlf: bool,
    },
}

/// `core.autocrlf`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AutoCrlf {
    /// Line ends are left alone.
    #[default]
    False,
    /// CRLF in the working tree.
    True,
    /// CRLF becomes LF on the way in.
    Input,
}

/// An attribute's value.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Value {
    /// Not mentioned.
    #[default]
    Unspecified,
    /// `attr`
    Set,
    /// `-attr`
    Unset,
    /// `attr=value`
    Is(String),
}

/// Configuration that matters for line ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct EolConfig {
    /// `core.autocrlf`
    pub autocrlf: AutoCrlf,
    /// `core.eol = crlf`
    pub eol_crlf: bool,
}

impl EolConfig {
    fn text_is_crlf(self) -> bool {
        match self.autocrlf {
            AutoCrlf::True => true,
            AutoCrlf::Input => false,
            AutoCrlf::False => self.eol_crlf,
        }
    }

    /// What the attributes `text`, `eol` and the old `crlf` mean together.
    pub fn action(self, text: &Value, eol: &Value, crlf: &Value) -> Action {
        enum Kind {
            Unspecified,
            Binary,
            /// With the ends that it asks for itself.
            Text(Option<bool>),
            Auto,
        }
        let kind = |value: &Value| match value {
            Value::Set => Kind::Text(None),
            Value::Unset => Kind::Binary,
            Value::Is(v) if v == "input" => Kind::Text(Some(false)),
            Value::Is(v) if v == "auto" => Kind::Auto,
            _ => Kind::Unspecified,
        };
        let asked = match eol {
            Value::Is(v) if v == "crlf" => Some(true),
            Value::Is(v) if v == "lf" => Some(false),
            _ => None,
        };
        let kind = match kind(text) {
            Kind::Unspecified => kind(crlf),
            other => other,
        };
        match kind {
            Kind::Binary => Action::Binary,
            Kind::Text(Some(crlf)) => Action::Text { crlf: asked.unwrap_or(crlf) },
            Kind::Text(None) => Action::Text { crlf: asked.unwrap_or(self.text_is_crlf()) },
            Kind::Auto => Action::Auto { crlf: asked.unwrap_or(self.text_is_crlf()) },
            // `eol` alone says that it is text.
            Kind::Unspecified if asked.is_some() => Action::Text { crlf: asked == Some(true) },
            Kind::Unspecified => match self.autocrlf {
                AutoCrlf::False => Action::Binary,
                AutoCrlf::True => Action::Auto { crlf: true },
                AutoCrlf::Input => Action::Auto { crlf: false },
            },
        }
    }
}

/// What git counts in a file to guess whether it is text.
#[derive(Default)]
struct Stats {
    nul: usize,
    lone_cr: usize,
    lone_lf: usize,
    crlf: usize,
    printable: usize,
    nonprintable: usize,
}

impl Stats {
    fn of(bytes: &[u8]) -> Self {
        let mut stats = Self::default();
        let mut i = 0;
        while i < bytes.len() {
            match bytes[i] {
                b'\r' if bytes.get(i + 1) == Some(&b'\n') => {
                    stats.crlf += 1;
                    i += 1;
                }
                b'\r' => stats.lone_cr += 1,
                b'\n' => stats.lone_lf += 1,
                // backspace, tab, escape, form feed
                8 | 9 | 27 | 12 => stats.printable += 1,
                0 => {
                    stats.nul += 1;
                    stats.nonprintable += 1;
                }
                127 | 1..=31 => stats.nonprintable += 1,
                _ => stats.printable += 1,
            }
            i += 1;
        }
        // an end-of-file mark of old systems
        if bytes.last() == Some(&26) {
            stats.nonprintable -= 1;
        }
        stats
    }

    fn is_binary(&self) -> bool {
        self.lone_cr > 0 || self.nul > 0 || (self.printable >> 7) < self.nonprintable
    }
}

/// Whether a stored text has CRLF already: then `auto` leaves the file alone.
pub fn has_crlf(stored: &[u8]) -> bool {
    if !stored.contains(&b'\r') {
        return false;
    }
    let stats = Stats::of(stored);
    !stats.is_binary() && stats.crlf > 0
}

/// Returns the stored form of a file of the working tree, `None` if it is the same.
/// `stored_has_crlf` tells, only when it matters, whether the index has it with CRLF.
pub fn to_stored(bytes: &[u8], action: Action, stored_has_crlf: impl FnOnce() -> bool) -> Option<Vec<u8>> {
    if action == Action::Binary || !bytes.windows(2).any(|pair| pair == b"\r\n") {
        return None;
    }
    if let Action::Auto { .. } = action
        && (Stats::of(bytes).is_binary() || stored_has_crlf())
    {
        return None;
    }
    let mut out = Vec::with_capacity(bytes.len());
    for (i, byte) in bytes.iter().enumerate() {
        if *byte != b'\r' || bytes.get(i + 1) != Some(&b'\n') {
            out.push(*byte);
        }
    }
    Some(out)
}

/// Returns the working tree's form of a stored file, `None` if it is the same.
pub fn to_worktree(bytes: &[u8], action: Action) -> Option<Vec<u8>> {
    let (Action::Text { crlf: true } | Action::Auto { crlf: true }) = action else { return None };
    let stats = Stats::of(bytes);
    if stats.lone_lf == 0 {
        return None;
    }
    if matches!(action, Action::Auto { .. }) && (stats.lone_cr > 0 || stats.crlf > 0 || stats.is_binary()) {
        return None;
    }
    let mut out = Vec::with_capacity(bytes.len() + stats.lone_lf);
    let mut before = 0;
    for byte in bytes {
        if *byte == b'\n' && before != b'\r' {
            out.push(b'\r');
        }
        out.push(*byte);
        before = *byte;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(value: &str) -> Value {
        Value::Is(value.into())
    }

    #[test]
    fn attributes_and_configuration_give_an_action() {
        let none = Value::Unspecified;
        let config = |autocrlf, eol_crlf| EolConfig { autocrlf, eol_crlf };
        let plain = config(AutoCrlf::False, false);
        assert_eq!(plain.action(&none, &none, &none), Action::Binary);
        assert_eq!(plain.action(&Value::Set, &none, &none), Action::Text { crlf: false });
        assert_eq!(plain.action(&none, &is("crlf"), &none), Action::Text { crlf: true });
        assert_eq!(plain.action(&is("auto"), &is("crlf"), &none), Action::Auto { crlf: true });
        assert_eq!(plain.action(&Value::Unset, &is("crlf"), &none), Action::Binary);
        assert_eq!(plain.action(&none, &none, &Value::Unset), Action::Binary);
        assert_eq!(config(AutoCrlf::True, false).action(&none, &none, &none), Action::Auto { crlf: true });
        assert_eq!(config(AutoCrlf::Input, true).action(&is("auto"), &none, &none), Action::Auto { crlf: false });
        assert_eq!(config(AutoCrlf::False, true).action(&Value::Set, &none, &none), Action::Text { crlf: true });
    }

    #[test]
    fn text_goes_in_with_lf_and_out_with_crlf() {
        let auto = Action::Auto { crlf: true };
        assert_eq!(to_stored(b"a\r\nb\r\n", auto, || false).unwrap(), b"a\nb\n");
        assert_eq!(to_worktree(b"a\nb\n", auto).unwrap(), b"a\r\nb\r\n");
        assert_eq!(to_stored(b"a\r\n", auto, || true), None);
        assert_eq!(to_stored(b"a\0\r\n", auto, || false), None);
        assert_eq!(to_stored(b"a\rb\r\n", Action::Text { crlf: true }, || false).unwrap(), b"a\rb\n");
        assert_eq!(to_worktree(b"a\r\nb\n", auto), None);
        assert_eq!(to_worktree(b"a\r\nb\n", Action::Text { crlf: true }).unwrap(), b"a\r\nb\r\n");
        assert_eq!(to_worktree(b"a\n", Action::Text { crlf: false }), None);
    }
}
