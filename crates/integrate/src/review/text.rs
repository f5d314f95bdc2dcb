//! What hides in a text: characters that do not show, that turn the order of what is shown, or that
//! look like others; programs and pointers instead of text.

use super::{Changed, Finding};
use crate::path::RepoPath;
use std::collections::HashSet;
use unicode_security::{MixedScript, confusable_detection::skeleton};

/// How far a file is looked at to tell whether it is text, as git does.
const FIRST: usize = 8000;

/// A name of git's own that another one must not look like.
const OWN: &[&str] = &[".git", ".gitmodules", ".gitattributes", ".gitignore", ".mailmap", ".lfsconfig"];

pub(super) fn name(path: &RepoPath, all: &mut Vec<Finding>) {
    if sandbox_git::printable(path.as_bytes()).as_bytes() != path.as_bytes() {
        all.push(Finding::red(path, "has a name with invisible or control characters"));
    }
    let Ok(text) = std::str::from_utf8(path.as_bytes()) else { return };
    for name in text.split('/').filter(|name| !name.is_ascii()) {
        let plain: String = skeleton(&name.to_lowercase()).filter(|c| !is_invisible(*c)).collect();
        if let Some(own) = OWN.iter().find(|own| skeleton(own).eq(plain.chars())) {
            all.push(Finding::red(path, format!("has a name that looks like '{own}'")));
        } else if name.split(|c: char| !c.is_alphanumeric()).any(is_mixed) {
            all.push(Finding::amber(path, "has a name of mixed alphabets"));
        }
    }
}

pub(super) fn look(change: &Changed, old: Option<&[u8]>, new: &[u8], all: &mut Vec<Finding>) {
    let path = &change.path;
    if let Some(kind) = program(new) {
        all.push(Finding::amber(path, format!("is a compiled program ({kind})")));
        return;
    }
    if is_binary(new) {
        all.push(Finding::amber(path, "is binary: a diff does not show it"));
        return;
    }
    if new.starts_with(b"version https://git-lfs.github.com/spec/") {
        let oid = new.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"oid ")).unwrap_or_default();
        let oid = sandbox_git::printable(&oid[..oid.len().min(20)]);
        let why = format!("is a Git LFS pointer ({oid}…): its content is not in the commit");
        all.push(Finding::amber(path, why).when("when Git LFS fetches it"));
    }
    let known: HashSet<&[u8]> = old.unwrap_or_default().split(|b| *b == b'\n').collect();
    let mut seen = Seen::default();
    let mut generate = None;
    for (number, line) in new.split(|b| *b == b'\n').enumerate() {
        if line.is_ascii() && !line.iter().any(|b| b.is_ascii_control() && *b != b'\t') && !line.starts_with(b"//go:") {
            continue;
        }
        if known.contains(line) {
            continue;
        }
        if let Some(command) = line.strip_prefix(b"//go:generate ").filter(|_| path.name().ends_with(b".go")) {
            generate.get_or_insert(String::from_utf8_lossy(command).into_owned());
        }
        // A byte order mark at the start is one.
        let line = if number == 0 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
        seen.line(line, number + 1);
    }
    seen.tell(path, all);
    if let Some(command) = generate {
        all.push(Finding::amber(path, "has a command for `go generate`").runs(command).when("with `go generate`"));
    }
}

/// The first line in which there is something of a kind.
#[derive(Default)]
struct Seen {
    order: Option<usize>,
    invisible: Option<usize>,
    control: Option<usize>,
    mixed: Option<(usize, String)>,
}

impl Seen {
    fn line(&mut self, line: &[u8], number: usize) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        for chunk in line.utf8_chunks() {
            let text = chunk.valid();
            let mut before = ' ';
            for c in text.chars() {
                if turns(c) {
                    self.order.get_or_insert(number);
                } else if c.is_control() && !matches!(c, '\t' | '\u{c}') {
                    self.control.get_or_insert(number);
                } else if is_invisible(c) && (before.is_ascii() || !joins(c)) {
                    self.invisible.get_or_insert(number);
                }
                before = c;
            }
            if self.mixed.is_none() && !text.is_ascii() {
                let word = text.split(|c: char| !(c.is_alphanumeric() || c == '_')).find(|word| is_mixed(word));
                self.mixed = word.map(|word| (number, word.chars().take(40).collect()));
            }
        }
    }

    fn tell(self, path: &RepoPath, all: &mut Vec<Finding>) {
        let kinds = [
            (self.order, "has characters that turn the order of text"),
            (self.invisible, "has characters that do not show"),
            (self.control, "has control characters"),
        ];
        for (line, why) in kinds {
            all.extend(line.map(|line| Finding::amber(path, format!("{why}, in line {line}"))));
        }
        if let Some((line, word)) = self.mixed {
            all.push(Finding::amber(path, format!("has a word of mixed alphabets, '{word}', in line {line}")));
        }
    }
}

/// Bidirectional embeddings, overrides, isolates and marks.
fn turns(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180e}'
        | '\u{200b}'..='\u{200d}' | '\u{2028}' | '\u{2029}' | '\u{2060}'..='\u{2065}' | '\u{206a}'..='\u{206f}'
        | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// What has a use between letters and signs that are not ASCII: in emoji, Arabic, Indic scripts.
fn joins(c: char) -> bool {
    matches!(c, '\u{200c}' | '\u{200d}' | '\u{fe0e}' | '\u{fe0f}' | '\u{e0020}'..='\u{e007f}')
}

/// Whether one word has letters of several alphabets, such as a Latin word with a Cyrillic letter.
fn is_mixed(word: &str) -> bool {
    !word.is_ascii() && word.chars().any(|c| c.is_ascii_alphabetic()) && !word.is_single_script()
}

fn is_binary(bytes: &[u8]) -> bool {
    bytes[..bytes.len().min(FIRST)].contains(&0)
}

fn program(bytes: &[u8]) -> Option<&'static str> {
    let kinds: [(&[u8], &str); 9] = [
        (b"\x7fELF", "ELF"),
        (b"MZ\x90", "Windows"),
        (b"\xfe\xed\xfa\xce", "Mach-O"),
        (b"\xcf\xfa\xed\xfe", "Mach-O"),
        (b"\xce\xfa\xed\xfe", "Mach-O"),
        (b"\xca\xfe\xba\xbe", "Java or Mach-O"),
        (b"\0asm", "WebAssembly"),
        (b"!<arch>\n", "an archive of objects"),
        (b"dex\n", "Android"),
    ];
    kinds.into_iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, kind)| kind)
}
