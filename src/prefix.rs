//! The name in front of each line, where lines of several sandboxes are printed together.

use crate::context::Context;
use rustix::termios::isatty;
use std::io;

/// Colours that are told apart on dark and on light ground.
const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];

/// Names as they stand in front of lines.
#[derive(Debug)]
pub struct Prefixes(Vec<String>);

impl Prefixes {
    /// All as wide as the widest; in colour when standard output is a terminal and nobody minds.
    pub fn new(context: &Context, names: &[&str]) -> Self {
        let set = |name: &str| context.vars.get(name).is_some_and(|value| !value.is_empty());
        let dumb = context.vars.get("TERM").is_none_or(|term| term == "dumb");
        Self::with(names, isatty(io::stdout()) && !set("NO_COLOR") && !dumb)
    }

    fn with(names: &[&str], colour: bool) -> Self {
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let one = |(n, name): (usize, &&str)| match colour {
            true => format!("\x1b[{}m{name:width$} |\x1b[0m ", COLOURS[n % COLOURS.len()]),
            false => format!("{name:width$} | "),
        };
        Self(names.iter().enumerate().map(one).collect())
    }

    /// That of the `n`th name.
    pub fn of(&self, n: usize) -> &str {
        &self.0[n]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_padded_and_coloured_only_if_asked() {
        let plain = Prefixes::with(&["a", "fix-login"], false);
        assert_eq!([plain.of(0), plain.of(1)], ["a         | ", "fix-login | "]);
        assert_eq!(Prefixes::with(&["a"], true).of(0), "\x1b[36ma |\x1b[0m ");
    }
}
