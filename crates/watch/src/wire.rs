//! Tokens, questions and answers, as bytes on a stream socket.
//!
//! ```text
//!  question   "1" NUL word NUL [token] NUL                 word: since, status, stop
//!  answer     "1" NUL "since" NUL token NUL dev NUL ino NUL mount NUL count NUL { mark NUL }
//!             "1" NUL "all"   NUL [token] NUL why NUL
//!             "1" NUL "status" NUL { key NUL value NUL }
//!  mark       kind path    kind: c content, n name, s subtree, i inode (a number)
//! ```
//!
//! One question for each connection. An answer that was cut short is none: it has fewer marks than it says.

use crate::log::{Kind, Mark};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, statx};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};

/// The version of both.
const VERSION: &[u8] = b"1";

/// A moment in the life of one watcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// 128 random bits in hex: which watcher, since its last doubt.
    pub(crate) instance: String,
    /// The number of the last mark before it.
    pub(crate) number: u64,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.instance, self.number)
    }
}

impl Token {
    /// Reads what [`Display`](fmt::Display) wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let (instance, number) = text.split_once(':')?;
        let hex = instance.len() == 32 && instance.bytes().all(|b| b.is_ascii_hexdigit());
        let number = number.parse().ok()?;
        hex.then(|| Self { instance: instance.to_owned(), number })
    }
}

/// Which directory it is, and in which mount (and so in which mount namespace).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// The kernel's id of the mount.
    pub mount: u64,
}

impl Root {
    /// Returns what a path leads to.
    ///
    /// # Errors
    ///
    /// The path leads nowhere.
    pub fn of(path: &std::path::Path) -> std::io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Self::of_open(rustix::fs::open(path, flags, Mode::empty())?.as_fd())
    }

    #[allow(clippy::unnecessary_cast, reason = "field types differ between architectures")]
    pub(crate) fn of_open(fd: BorrowedFd<'_>) -> std::io::Result<Self> {
        let stat = rustix::fs::fstat(fd)?;
        let mount = statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id;
        Ok(Self { dev: stat.st_dev as u64, ino: stat.st_ino as u64, mount })
    }
}

/// What a watcher answers to a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing but this may have changed since the token.
    Since {
        /// Stands for this answer.
        token: Token,
        /// The directory that is watched: the caller compares.
        root: Root,
        /// What must be looked at.
        marks: Vec<Mark>,
    },
    /// Anything may have changed.
    All {
        /// Stands for this moment, if the watcher can answer from now on.
        token: Option<Token>,
        /// Why.
        why: String,
    },
}

/// Facts about a watcher.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Its process.
    pub pid: u32,
    /// Directories that it watches.
    pub dirs: u64,
    /// Files with several names that it watches.
    pub files: u64,
    /// Questions that it answered.
    pub questions: u64,
    /// Questions that it answered with doubt.
    pub doubts: u64,
    /// It can answer.
    pub ready: bool,
    /// Why it cannot, or why it last could not.
    pub why: String,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    Since(Option<Token>),
    Status,
    Stop,
}

impl Question {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (word, token) = match self {
            Self::Since(token) => ("since", token.as_ref().map(Token::to_string).unwrap_or_default()),
            Self::Status => ("status", String::new()),
            Self::Stop => ("stop", String::new()),
        };
        fields([VERSION, word.as_bytes(), token.as_bytes()])
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let fields = split(bytes)?;
        let [version, word, token] = fields.as_slice() else { return None };
        match *word {
            _ if *version != VERSION => None,
            // A token of somebody else is like none.
            b"since" => Some(Self::Since(std::str::from_utf8(token).ok().and_then(Token::parse))),
            b"status" => Some(Self::Status),
            b"stop" => Some(Self::Stop),
            _ => None,
        }
    }

    /// Returns whether a question is whole.
    pub(crate) fn is_whole(bytes: &[u8]) -> bool {
        bytes.iter().filter(|b| **b == 0).count() >= 3
    }
}

fn fields<'a>(items: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    for item in items {
        out.extend_from_slice(item);
        out.push(0);
    }
    out
}

fn split(bytes: &[u8]) -> Option<Vec<&[u8]>> {
    Some(bytes.strip_suffix(b"\0")?.split(|b| *b == 0).collect())
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field).into_owned()
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

impl Answer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Since { token, root, marks } => {
                let numbers = [root.dev, root.ino, root.mount, marks.len() as u64].map(|number| number.to_string());
                let head = std::iter::once(token.to_string()).chain(numbers).collect::<Vec<_>>();
                let mut out = fields([VERSION, b"since"].into_iter().chain(head.iter().map(String::as_bytes)));
                for mark in marks {
                    match mark {
                        Mark::Path(path, kind) => {
                            out.push(match kind {
                                Kind::Content => b'c',
                                Kind::Name => b'n',
                                Kind::Subtree => b's',
                            });
                            out.extend_from_slice(path);
                        }
                        Mark::Inode(ino) => out.extend_from_slice(format!("i{ino}").as_bytes()),
                    }
                    out.push(0);
                }
                out
            }
            Self::All { token, why } => {
                let token = token.as_ref().map(Token::to_string).unwrap_or_default();
                fields([VERSION, b"all", token.as_bytes(), why.replace('\0', " ").as_bytes()])
            }
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let fields = split(bytes)?;
        match fields.as_slice() {
            [version, b"since", token, dev, ino, mount, count, marks @ ..] if *version == VERSION => {
                if number(count)? != marks.len() as u64 {
                    return None;
                }
                let token = Token::parse(std::str::from_utf8(token).ok()?)?;
                let marks = marks.iter().map(|mark| Self::mark(mark)).collect::<Option<_>>()?;
                let root = Root { dev: number(dev)?, ino: number(ino)?, mount: number(mount)? };
                Some(Self::Since { token, root, marks })
            }
            [version, b"all", token, why] if *version == VERSION => {
                Some(Self::All { token: std::str::from_utf8(token).ok().and_then(Token::parse), why: text(why) })
            }
            _ => None,
        }
    }

    fn mark(field: &[u8]) -> Option<Mark> {
        let (kind, path) = field.split_first()?;
        let kind = match kind {
            b'c' => Kind::Content,
            b'n' => Kind::Name,
            b's' => Kind::Subtree,
            b'i' => return Some(Mark::Inode(number(path)?)),
            _ => return None,
        };
        Some(Mark::Path(path.to_vec(), kind))
    }
}

impl Status {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let pairs = [
            ("pid", self.pid.to_string()),
            ("dirs", self.dirs.to_string()),
            ("files", self.files.to_string()),
            ("questions", self.questions.to_string()),
            ("doubts", self.doubts.to_string()),
            ("ready", u8::from(self.ready).to_string()),
            ("why", self.why.replace('\0', " ")),
        ];
        let pairs = pairs.iter().flat_map(|(key, value)| [key.as_bytes(), value.as_bytes()]);
        fields([VERSION, b"status"].into_iter().chain(pairs))
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let fields = split(bytes)?;
        let [version, b"status", pairs @ ..] = fields.as_slice() else { return None };
        let mut status = Self::default();
        for pair in pairs.chunks_exact(2) {
            let value = number(pair[1]);
            match pair[0] {
                b"pid" => status.pid = value?.try_into().ok()?,
                b"dirs" => status.dirs = value?,
                b"files" => status.files = value?,
                b"questions" => status.questions = value?,
                b"doubts" => status.doubts = value?,
                b"ready" => status.ready = value? == 1,
                b"why" => status.why = text(pair[1]),
                _ => {}
            }
        }
        (*version == VERSION).then_some(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token { instance: "0123456789abcdef0123456789abcdef".into(), number: 42 }
    }

    #[test]
    fn what_is_written_is_read() {
        for question in [Question::Since(None), Question::Since(Some(token())), Question::Status, Question::Stop] {
            let bytes = question.encode();
            assert!(Question::is_whole(&bytes) && !Question::is_whole(&bytes[..bytes.len() - 1]));
            assert_eq!(Question::decode(&bytes), Some(question));
        }
        let marks = vec![
            Mark::Path(b"a/b\n\xff".to_vec(), Kind::Content),
            Mark::Path(Vec::new(), Kind::Name),
            Mark::Path(b"dir".to_vec(), Kind::Subtree),
            Mark::Inode(u64::MAX),
        ];
        let root = Root { dev: 1, ino: 2, mount: 3 };
        let status = Status { pid: 3, dirs: 4, ready: true, why: "x".into(), ..Status::default() };
        for answer in [
            Answer::Since { token: token(), root, marks },
            Answer::Since { token: token(), root, marks: vec![] },
            Answer::All { token: None, why: "the queue overflowed".into() },
            Answer::All { token: Some(token()), why: String::new() },
        ] {
            let bytes = answer.encode();
            assert_eq!(Answer::decode(&bytes), Some(answer));
            // An answer that was cut short says less, and must not be taken for one.
            assert!((0..bytes.len()).all(|end| Answer::decode(&bytes[..end]).is_none()));
        }
        assert_eq!(Status::decode(&status.encode()), Some(status));
    }

    #[test]
    fn tokens_of_others_are_none() {
        assert_eq!(Token::parse(&token().to_string()), Some(token()));
        for text in ["", "1700000000000", "builtin:abc:1", "0123456789abcdef0123456789abcdef:x"] {
            assert_eq!(Token::parse(text), None, "{text}");
        }
    }
}
