//! Configuration: what `git config --list -z --show-scope --show-origin` prints, and writing a file.

use crate::command::{Git, GitCommand, GitError};
use crate::escape::printable;
use std::path::{Path, PathBuf};

/// Where a setting comes from, by precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// The machine's.
    System,
    /// The user's.
    Global,
    /// The repository's.
    Local,
    /// The work tree's (`extensions.worktreeConfig`).
    Worktree,
    /// `git -c`, `GIT_CONFIG_COUNT`.
    Command,
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Where it comes from.
    pub scope: Scope,
    /// The file that holds it, as git names it (may be relative to where git ran); `None` for `-c`.
    pub file: Option<PathBuf>,
    /// `section.sub.name`: section and name in lower case.
    pub key: String,
    /// Its value; `None` for a name without `=`, which means true.
    pub value: Option<String>,
}

impl Setting {
    /// Section, subsection and name.
    pub fn parts(&self) -> (&str, Option<&str>, &str) {
        split_key(&self.key)
    }

    /// As git reads a boolean.
    pub fn is_true(&self) -> bool {
        match self.value.as_deref() {
            None => true,
            Some(value) => matches!(value.to_ascii_lowercase().as_str(), "true" | "yes" | "on" | "1"),
        }
    }
}

/// Splits `section.sub.name` at its first and last dot.
pub fn split_key(key: &str) -> (&str, Option<&str>, &str) {
    let Some((section, rest)) = key.split_once('.') else { return (key, None, "") };
    match rest.rsplit_once('.') {
        Some((sub, name)) => (section, Some(sub), name),
        None => (section, None, rest),
    }
}

/// Every setting that git sees in one place, in the order of precedence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing(pub Vec<Setting>);

impl Listing {
    /// Asks git in `dir`: all scopes, `include` and `includeIf` resolved. One process.
    pub fn read(git: &Git, dir: &Path) -> Result<Self, GitError> {
        Self::of(git.user(dir))
    }

    /// Asks with a command that says where.
    pub fn of(command: GitCommand) -> Result<Self, GitError> {
        let args = ["config", "--list", "-z", "--show-scope", "--show-origin"];
        let out = command.args(args).output()?;
        Self::parse(&out.stdout).ok_or_else(|| GitError::Unexpected {
            command: "git config".into(),
            what: printable(&out.stdout[..out.stdout.len().min(80)]),
        })
    }

    /// Parses records of `scope NUL origin NUL key [LF value] NUL`.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut settings = Vec::new();
        let mut fields = bytes.strip_suffix(b"\0").unwrap_or(bytes).split(|b| *b == 0);
        if bytes.is_empty() {
            return Some(Self::default());
        }
        while let Some(scope) = fields.next() {
            let scope = match scope {
                b"system" => Scope::System,
                b"global" => Scope::Global,
                b"local" => Scope::Local,
                b"worktree" => Scope::Worktree,
                b"command" => Scope::Command,
                // `submodule`, `unknown`: nothing that a work tree's owner set.
                _ => {
                    fields.next()?;
                    fields.next()?;
                    continue;
                }
            };
            let origin = fields.next()?;
            let entry = fields.next()?;
            let (key, value) = match entry.iter().position(|b| *b == b'\n') {
                Some(at) => (&entry[..at], Some(&entry[at + 1..])),
                None => (entry, None),
            };
            use std::os::unix::ffi::OsStrExt;
            let file = origin.strip_prefix(b"file:").map(|path| PathBuf::from(std::ffi::OsStr::from_bytes(path)));
            settings.push(Setting {
                scope,
                file,
                key: String::from_utf8_lossy(key).into_owned(),
                value: value.map(|value| String::from_utf8_lossy(value).into_owned()),
            });
        }
        Some(Self(settings))
    }

    /// The last value of `key` over all scopes.
    pub fn get(&self, key: &str) -> Option<&Setting> {
        self.0.iter().rev().find(|setting| setting.key == key)
    }

    /// The last value of `key` as text.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.get(key)?.value.as_deref()
    }

    /// Every file that something came from, absolute when `dir` (where git ran) is.
    pub fn files(&self, dir: &Path) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> =
            self.0.iter().filter_map(|setting| setting.file.as_ref()).map(|file| dir.join(file)).collect();
        files.sort();
        files.dedup();
        files
    }
}

/// Writes configuration in git's own syntax.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    text: String,
    section: String,
}

impl Writer {
    /// Returns an empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one setting; the section's head is repeated only when it changes.
    pub fn set(&mut self, key: &str, value: Option<&str>) {
        let (section, sub, name) = split_key(key);
        let head = match sub {
            Some(sub) => format!("[{section} \"{}\"]\n", sub.replace('\\', "\\\\").replace('"', "\\\"")),
            None => format!("[{section}]\n"),
        };
        if head != self.section {
            self.text.push_str(&head);
            self.section = head;
        }
        match value {
            Some(value) => self.text.push_str(&format!("\t{name} = {}\n", quote(value))),
            None => self.text.push_str(&format!("\t{name}\n")),
        }
    }

    /// Adds a comment line.
    pub fn comment(&mut self, text: &str) {
        self.text.push_str(&format!("# {}\n", text.replace('\n', " ")));
    }

    /// The file.
    pub fn finish(self) -> String {
        self.text
    }
}

fn quote(value: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/' | b':' | b'@' | b'+' | b'*');
    if !value.is_empty() && value.bytes().all(plain) {
        return value.to_owned();
    }
    let mut out = String::from("\"");
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_parsed_with_its_odd_values() {
        let raw = b"global\0file:/h/.gitconfig\0user.name\nA\nB\0local\0file:.git/config\0core.bare\0command\0command line:\0a.b.c.d\n\0";
        let list = Listing::parse(raw).unwrap();
        assert_eq!(list.value("user.name"), Some("A\nB"));
        assert!(list.get("core.bare").unwrap().is_true());
        assert_eq!(list.0[2].parts(), ("a", Some("b.c"), "d"));
        assert_eq!(list.0[2].value.as_deref(), Some(""));
        assert_eq!(list.files(Path::new("/r")), [Path::new("/h/.gitconfig"), Path::new("/r/.git/config")]);
        assert_eq!(Listing::parse(b"").unwrap(), Listing::default());
        assert_eq!(Listing::parse(b"local\0file:x\0"), None);
    }

    #[test]
    fn a_written_file_reads_back() {
        let mut writer = Writer::new();
        writer.set("core.bare", Some("false"));
        writer.set("core.flag", None);
        writer.set("remote.o\"r\\x.url", Some("https://h/p;x # y"));
        assert_eq!(
            writer.finish(),
            "[core]\n\tbare = false\n\tflag\n[remote \"o\\\"r\\\\x\"]\n\turl = \"https://h/p;x # y\"\n"
        );
    }
}
