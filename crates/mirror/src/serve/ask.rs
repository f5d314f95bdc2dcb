//! What a request asks for, as far as its first lines tell: for the queue and for metrics.

use super::queue::Weight;
use crate::event::Shape;
use crate::pktline::{self, Packet};

/// Bytes of a request that are looked at.
pub const LOOK: usize = 64 << 10;

/// The version of git's protocol that a client asks for with `Git-Protocol` or on `git://`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Protocol {
    /// 0, 1 or 2.
    pub version: u8,
    /// What git is told (`GIT_PROTOCOL`); empty for nothing.
    pub text: String,
}

impl Protocol {
    /// Reads `version=2:…`; what has other characters than such a text is as if it was not there.
    pub fn parse(text: &[u8]) -> Self {
        let fine = |byte: &u8| byte.is_ascii_alphanumeric() || b"=:.,_-".contains(byte);
        let Some(text) =
            std::str::from_utf8(text).ok().filter(|text| text.len() <= 256 && text.bytes().all(|b| fine(&b)))
        else {
            return Self::default();
        };
        // The highest that both know, as git chooses.
        let versions = text.split(':').filter_map(|word| word.strip_prefix("version=")?.parse().ok());
        Self { version: versions.filter(|version| *version <= 2).max().unwrap_or(0), text: text.to_owned() }
    }
}

/// Whether what was read is enough for [`shape`].
pub fn is_enough(bytes: &[u8]) -> bool {
    bytes.len() >= LOOK
}

/// What a fetch asks for, and what that will cost.
pub fn shape(mut bytes: &[u8], version: u8) -> (Shape, Weight) {
    let (mut command, mut wants, mut haves, mut deepens, mut filters) = (version < 2, 0, 0, false, false);
    while let Ok(Some((packet, length))) = pktline::read(bytes) {
        bytes = &bytes[length..];
        let Packet::Data(data) = packet else { continue };
        let line = data.strip_suffix(b"\n").unwrap_or(data);
        match line {
            b"command=ls-refs" => return (Shape::Refs, Weight::Light),
            b"command=fetch" => command = true,
            _ if line.starts_with(b"want ") || line.starts_with(b"want-ref ") => {
                wants += 1;
            }
            _ if line.starts_with(b"have ") => haves += 1,
            _ if line.starts_with(b"deepen") => deepens = true,
            _ if line.starts_with(b"filter ") => filters = true,
            _ => {}
        }
    }
    let shape = match (deepens, filters, haves > 0) {
        _ if !command || wants == 0 => Shape::Other,
        (true, false, _) => Shape::Shallow,
        (true, true, _) => Shape::ShallowBlobless,
        (false, _, true) => Shape::Incremental,
        // Also what a partial clone fetches when it is missing: the two look the same.
        (false, true, false) => Shape::Blobless,
        (false, false, false) => Shape::Full,
    };
    (shape, Weight::Heavy)
}

/// The ids that a fetch wants, in hexadecimal.
pub fn wants(mut bytes: &[u8]) -> Vec<sandbox_git::Oid> {
    let mut wants = Vec::new();
    while let Ok(Some((packet, length))) = pktline::read(bytes) {
        bytes = &bytes[length..];
        let Some(rest) = packet.line().and_then(|line| line.strip_prefix(b"want ")) else { continue };
        let end = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
        wants.extend(sandbox_git::Oid::parse(&rest[..end]));
    }
    wants
}

/// The prefixes that refs are asked for by (`ls-refs`, gitprotocol-v2(5)).
pub fn prefixes(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut prefixes = Vec::new();
    while let Ok(Some((packet, length))) = pktline::read(bytes) {
        bytes = &bytes[length..];
        prefixes.extend(packet.line().and_then(|line| line.strip_prefix(b"ref-prefix ")).map(<[u8]>::to_vec));
    }
    prefixes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(lines: &[&str]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for line in lines {
            match *line {
                "|" => bytes.extend_from_slice(b"0001"),
                line => pktline::write(&mut bytes, format!("{line}\n").as_bytes()),
            }
        }
        pktline::flush(&mut bytes);
        bytes
    }

    #[test]
    fn shapes_are_told_by_their_lines() {
        let id = "4b825dc642cb6eb9a060e54bf8d69288fbee4904";
        let want = &format!("want {id}");
        let have = &format!("have {id}");
        let v2 = |lines: &[&str]| {
            let all: Vec<&str> = ["command=fetch", "|"].iter().chain(lines).copied().collect();
            shape(&request(&all), 2).0
        };
        assert_eq!(shape(&request(&["command=ls-refs", "|", "symrefs"]), 2), (Shape::Refs, Weight::Light));
        assert_eq!(v2(&[want, "include-tag", "done"]), Shape::Full);
        assert_eq!(v2(&[want, "deepen 1", "done"]), Shape::Shallow);
        assert_eq!(v2(&[want, "deepen 1", "filter blob:none", "done"]), Shape::ShallowBlobless);
        assert_eq!(v2(&[want, "include-tag", "filter blob:none", "done"]), Shape::Blobless);
        assert_eq!(v2(&[want, "filter blob:none", "done"]), Shape::Blobless);
        assert_eq!(v2(&[want, have, "done"]), Shape::Incremental);
        assert_eq!(v2(&["done"]), Shape::Other);
        let v0 = shape(&request(&[&format!("{want} multi_ack include-tag"), "|", "done"]), 0);
        assert_eq!(v0, (Shape::Full, Weight::Heavy));
        let asked = request(&["command=ls-refs", "|", "peel", "ref-prefix refs/heads/", "ref-prefix HEAD"]);
        assert_eq!(prefixes(&asked), [b"refs/heads/".to_vec(), b"HEAD".to_vec()]);
        assert_eq!(shape(b"garbage", 0), (Shape::Other, Weight::Heavy));
        assert_eq!(wants(&request(&[&format!("{want} multi_ack"), have, want])).len(), 2);
    }

    #[test]
    fn versions_are_chosen_as_git_does() {
        let version = |text: &str| Protocol::parse(text.as_bytes()).version;
        assert_eq!([version("version=2"), version("version=1"), version(""), version("x:version=2")], [2, 1, 0, 2]);
        assert_eq!(version("version=9"), 0);
        assert_eq!(Protocol::parse(b"version=2;id"), Protocol::default());
        assert_eq!(Protocol::parse("version=2:".repeat(100).as_bytes()), Protocol::default());
    }
}
