//! A new index of version 2 from a list of entries and the trees that they form.

use super::{Stat, hash};
use crate::oid::{ObjectFormat, Oid};
use std::collections::BTreeMap;

/// An entry of stage 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEntry {
    /// Path from the top of the work tree.
    pub path: Vec<u8>,
    /// The object.
    pub oid: Oid,
    /// As in a tree.
    pub mode: u32,
    /// Of the file that was just written.
    pub stat: Stat,
}

/// Returns an index of these entries (in any order), with a cache-tree made of `trees` (path without
/// a slash at the end, empty for the root; id) so that the first `git status` compares one id.
pub fn build(mut entries: Vec<NewEntry>, trees: &[(Vec<u8>, Oid)], format: ObjectFormat) -> Vec<u8> {
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    let mut out = b"DIRC".to_vec();
    out.extend_from_slice(&2u32.to_be_bytes());
    out.extend_from_slice(&(entries.len() as u32).to_be_bytes());
    for entry in &entries {
        let start = out.len();
        let stat = &entry.stat;
        let numbers = [
            stat.ctime.0,
            stat.ctime.1,
            stat.mtime.0,
            stat.mtime.1,
            stat.dev,
            stat.ino,
            entry.mode,
            stat.uid,
            stat.gid,
            stat.size,
        ];
        for number in numbers {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.extend_from_slice(entry.oid.as_bytes());
        out.extend_from_slice(&(entry.path.len().min(0xfff) as u16).to_be_bytes());
        out.extend_from_slice(&entry.path);
        let pad = 8 - (out.len() - start) % 8;
        out.resize(out.len() + pad, 0);
    }
    if let Some(tree) = cache_tree(&entries, trees) {
        out.extend_from_slice(b"TREE");
        out.extend_from_slice(&(tree.len() as u32).to_be_bytes());
        out.extend_from_slice(&tree);
    }
    let checksum = hash(format, &out);
    out.extend_from_slice(&checksum);
    out
}

/// `None` when the trees do not name a root.
fn cache_tree(entries: &[NewEntry], trees: &[(Vec<u8>, Oid)]) -> Option<Vec<u8>> {
    let ids: BTreeMap<&[u8], Oid> = trees.iter().map(|(path, oid)| (path.as_slice(), *oid)).collect();
    let mut counts: BTreeMap<&[u8], usize> = BTreeMap::new();
    let mut children: BTreeMap<&[u8], Vec<&[u8]>> = BTreeMap::new();
    for path in ids.keys().filter(|path| !path.is_empty()) {
        children.entry(parent(path)).or_default().push(path);
    }
    for entry in entries {
        let mut dir = parent(&entry.path);
        loop {
            *counts.entry(dir).or_default() += 1;
            if dir.is_empty() {
                break;
            }
            dir = parent(dir);
        }
    }
    let mut out = Vec::new();
    emit(b"", b"", &ids, &counts, &children, &mut out)?;
    Some(out)
}

fn emit(
    path: &[u8],
    name: &[u8],
    ids: &BTreeMap<&[u8], Oid>,
    counts: &BTreeMap<&[u8], usize>,
    children: &BTreeMap<&[u8], Vec<&[u8]>>,
    out: &mut Vec<u8>,
) -> Option<()> {
    let below = children.get(path).map_or(&[][..], Vec::as_slice);
    out.extend_from_slice(name);
    out.push(0);
    out.extend_from_slice(format!("{} {}\n", counts.get(path).copied().unwrap_or(0), below.len()).as_bytes());
    out.extend_from_slice(ids.get(path)?.as_bytes());
    for child in below {
        let name = if path.is_empty() { child } else { &child[path.len() + 1..] };
        emit(child, name, ids, counts, children, out)?;
    }
    Some(())
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|b| *b == b'/').map_or(&[], |at| &path[..at])
}
