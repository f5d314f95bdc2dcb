//! What each layer of a stack still holds: so many files, so many bytes.
//!
//! Kept beside the entries, so that whether a layer is worth building upon is known without reading them all.

use super::format::{Flags, NO_LAYER, NONE, entry};
use super::read::{u16_at, u32_at, u64_at};
use crate::stat::{Kind, kind_of};

/// Sums over the entries of a manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Files and symlinks that the stack shows, and their bytes, by layer; lowermost first.
    pub(crate) layers: Vec<(u64, u64)>,
    /// Everything in a layer that is no directory.
    pub(super) files: u64,
    /// Directories, the top included.
    pub(super) dirs: u32,
    /// Entries that something leads to, the top included.
    pub(super) entries: u32,
    /// Entries that have fewer rights in the stack than on the host.
    pub(super) lessened: u64,
}

/// Bytes of one layer's sums in the file.
const LAYER: usize = 16;
/// Bytes in the file beside those.
const FIXED: usize = 16;

impl Held {
    /// Adds an entry record.
    pub(super) fn add(&mut self, record: &[u8]) {
        self.entries = self.entries.saturating_add(1);
        self.count(record, |sum, value| *sum = sum.saturating_add(value));
    }

    /// Takes an entry record out.
    pub(super) fn remove(&mut self, record: &[u8]) {
        // Damage must not end in a panic.
        self.entries = self.entries.saturating_sub(1);
        self.count(record, |sum, value| *sum = sum.saturating_sub(value));
    }

    fn count(&mut self, record: &[u8], change: impl Fn(&mut u64, u64)) {
        let layer = u16_at(record, entry::LAYER);
        let kind = kind_of(u32_at(record, entry::MODE));
        let flags = Flags(u16_at(record, entry::FLAGS));
        if flags.lessened() {
            change(&mut self.lessened, 1);
        }
        if kind != Kind::Dir && layer != NO_LAYER {
            change(&mut self.files, 1);
        }
        if u32_at(record, entry::CHILD) != NONE {
            let mut dirs = u64::from(self.dirs);
            change(&mut dirs, 1);
            self.dirs = u32::try_from(dirs).unwrap_or(u32::MAX);
        } else if layer != NO_LAYER && flags.reason().is_none() {
            let layer = usize::from(layer);
            if self.layers.len() <= layer {
                self.layers.resize(layer + 1, (0, 0));
            }
            change(&mut self.layers[layer].0, 1);
            change(&mut self.layers[layer].1, u64_at(record, entry::SIZE));
        }
    }

    /// Returns the bytes of a file's table, for so many layers.
    pub(super) fn write(&self, layers: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.dirs.to_le_bytes());
        out.extend_from_slice(&self.entries.to_le_bytes());
        out.extend_from_slice(&self.lessened.to_le_bytes());
        for at in 0..layers {
            let (files, bytes) = self.layers.get(at).copied().unwrap_or_default();
            out.extend_from_slice(&files.to_le_bytes());
            out.extend_from_slice(&bytes.to_le_bytes());
        }
    }

    /// Reads what [`Held::write`] has written.
    pub(super) fn read(bytes: &[u8], layers: usize, files: u64) -> Option<Self> {
        let table = bytes.get(FIXED..FIXED + layers * LAYER)?;
        let layers = table.chunks_exact(LAYER).map(|sums| (u64_at(sums, 0), u64_at(sums, 8))).collect();
        Some(Self { layers, files, dirs: u32_at(bytes, 0), entries: u32_at(bytes, 4), lessened: u64_at(bytes, 8) })
    }
}
