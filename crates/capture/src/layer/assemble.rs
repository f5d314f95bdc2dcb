//! The manifest after a round: what was known, with what the scan and the copies say.

use super::Build;
use super::entry::Copied;
use super::plan::{Fate, Plan};
use crate::manifest::{Builder, Flags, Manifest, NONE, Parts, Raw, Reason, Record};
use crate::request::CaptureError;
use crate::scan::{Listing, Scan, What};
use crate::stat::{Kind, Stat};

/// Where the entries of a directory come from.
#[derive(Clone, Copy)]
enum From<'a> {
    Known(u32),
    Listing(&'a Listing),
}

struct Assembler<'a> {
    build: &'a Build<'a>,
    known: Option<&'a Manifest>,
    scan: &'a Scan,
    fates: &'a [Fate],
    plan: &'a Plan,
    results: &'a [Copied],
    /// Position in `scan.updates` of each known entry, or `NONE`.
    update_of: Vec<u32>,
    /// Position in `scan.changed` of each known directory, or `NONE`.
    listing_of: Vec<u32>,
}

/// Returns the manifest of the stack with the new layer on top.
pub(super) fn assemble(
    build: &Build<'_>,
    known: Option<&Manifest>,
    scan: &Scan,
    fates: &[Fate],
    plan: &Plan,
    results: &[Copied],
) -> Result<Manifest, CaptureError> {
    let index = |len: usize, items: &mut dyn Iterator<Item = u32>| {
        let mut table = vec![NONE; len];
        for (at, item) in items.enumerate() {
            if let Some(slot) = table.get_mut(item as usize) {
                *slot = at as u32;
            }
        }
        table
    };
    let (entries, dirs) = known.map_or((0, 0), |known| (known.len(), known.dirs() as usize));
    let assembler = Assembler {
        build,
        known,
        scan,
        fates,
        plan,
        results,
        update_of: index(entries, &mut scan.updates.iter().map(|update| update.index)),
        listing_of: index(dirs, &mut scan.changed.iter().map(|(dir, _)| *dir)),
    };
    let parts = assembler.run().ok_or_else(|| CaptureError::TooLarge { root: build.request.root.to_owned() })?;
    Ok(Manifest::from_parts(parts)?)
}

impl<'a> Assembler<'a> {
    fn run(&self) -> Option<Parts> {
        let layers = if self.build.started() {
            self.build.layers.clone()
        } else {
            // Nothing was put into the layer, so there will be none.
            self.known.map(|known| known.layers_up().to_vec()).unwrap_or_default()
        };
        let devs = self.known.map(Manifest::devs).unwrap_or_default();
        let top = self.dir_record(&self.scan.top);
        let mut builder = Builder::new(self.scan.start, self.build.settings, layers, devs, top);
        builder.git_state(self.build.request.git_state);
        if let Some(known) = self.known {
            builder.reserve(known.len() + self.results.len(), known.len() * 16);
        }
        let first = match self.known {
            Some(_) => self.dir_from(0),
            None => From::Listing(self.scan.new.first()?.as_ref()?),
        };
        let mut waiting = vec![(0, first)];
        let mut below = Vec::new();
        while let Some((dir, from)) = waiting.pop() {
            match (from, self.known) {
                (From::Known(old), Some(known)) => {
                    let record = known.dir(old);
                    builder.begin(dir, record.flags);
                    for index in record.first..record.first + record.count {
                        self.push_known(&mut builder, known, dir, index, &mut below);
                    }
                }
                (From::Known(_), None) => builder.begin(dir, 0),
                (From::Listing(listing), known) => {
                    builder.begin(dir, listing.flags);
                    for node in &listing.nodes {
                        match node.what {
                            What::Keep(index) => {
                                if let Some(known) = known {
                                    self.push_known(&mut builder, known, dir, index, &mut below);
                                }
                            }
                            What::Copy { look, op } => {
                                let flags = Flags::default().with_look(look);
                                if let Some(record) = self.copied(op as usize, flags) {
                                    builder.push(&node.name, record);
                                }
                            }
                            What::Dir(id) => {
                                // Without a listing it vanished before it could be read.
                                if let Some(Some(listing)) = self.scan.new.get(id as usize) {
                                    let child = builder.push_dir(dir, &node.name, self.dir_record(&node.stat));
                                    below.push((child, From::Listing(listing)));
                                }
                            }
                            What::LeaveOut(reason) => {
                                builder.push(&node.name, left_out(&node.stat, reason));
                            }
                        }
                    }
                }
            }
            builder.end(dir);
            waiting.extend(below.drain(..).rev());
        }
        builder.finish()
    }

    /// Returns where the entries of a known directory come from now.
    fn dir_from(&self, dir: u32) -> From<'a> {
        match self.listing_of.get(dir as usize) {
            Some(at) if *at != NONE => From::Listing(&self.scan.changed[*at as usize].1),
            _ => From::Known(dir),
        }
    }

    fn push_known(
        &self,
        builder: &mut Builder,
        known: &'a Manifest,
        dir: u32,
        index: u32,
        below: &mut Vec<(u32, From<'a>)>,
    ) {
        let raw = known.raw(index);
        let child = match self.update_of.get(index as usize) {
            Some(at) if *at != NONE => self.push_updated(builder, dir, index, &raw, *at as usize),
            _ => builder.take(dir, &raw),
        };
        if let (Some(child), Some(old)) = (child, raw.child()) {
            below.push((child, self.dir_from(old)));
        }
    }

    /// Adds a known entry whose stat moved; returns the index of a directory.
    fn push_updated(&self, builder: &mut Builder, dir: u32, index: u32, raw: &Raw<'_>, at: usize) -> Option<u32> {
        let update = &self.scan.updates[at];
        let flags = raw.flags().with_look(update.look);
        if raw.child().is_some() {
            return Some(builder.push_dir(dir, raw.name(), self.dir_record(&update.stat)));
        }
        match self.fates[at] {
            Fate::Refresh { stat, racy } => {
                let layer = Some(raw.layer_index()).filter(|_| raw.flags().reason().is_none());
                builder.push(raw.name(), Record { stat, layer, copy: raw.copy(), flags: flags.with_racy(racy) });
            }
            Fate::DirAttr | Fate::Copy => {
                if let Some(record) = self.plan.op_of.get(&index).and_then(|op| self.copied(*op, flags)) {
                    builder.push(raw.name(), record);
                }
            }
        }
        None
    }

    /// Returns the record of what an operation copied; `None` when the file is gone.
    fn copied(&self, op: usize, flags: Flags) -> Option<Record> {
        match self.results.get(op)? {
            Copied::Done { stat, copy, racy, .. } => Some(Record {
                stat: *stat,
                layer: Some(self.build.layer()),
                copy: Some(*copy),
                flags: flags.with_racy(*racy),
            }),
            Copied::Unreadable(stat) => Some(left_out(stat, Reason::Unreadable)),
            Copied::Vanished => None,
        }
    }

    fn dir_record(&self, stat: &Stat) -> Record {
        debug_assert_eq!(stat.kind(), Kind::Dir);
        let layer = if self.build.started() { self.build.layer() } else { self.build.layer().saturating_sub(1) };
        let flags = Flags::default().with_racy(stat.racy(self.scan.start));
        Record { stat: *stat, layer: Some(layer), copy: None, flags }
    }
}

fn left_out(stat: &Stat, reason: Reason) -> Record {
    Record { stat: *stat, layer: None, copy: None, flags: Flags::default().with_reason(Some(reason)) }
}
