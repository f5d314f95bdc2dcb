//! The manifest after a round: what was known, with what the scan and the copies say.

use super::Build;
use super::entry::Outcome;
use super::plan::{Fate, Plan, Subjects};
use crate::manifest::{Builder, Edit, Flags, Manifest, NONE, Parts, Raw, Reason, Record};
use crate::paths::join;
use crate::request::CaptureError;
use crate::scan::{Listing, Scan, What};
use crate::stat::{Kind, Stat};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// A manifest with more entries than this is not held in memory.
const SPOOLED: usize = 4096;

/// Where the entries of a directory come from.
#[derive(Clone, Copy)]
enum From<'a> {
    Known(u32),
    Listing(&'a Listing),
}

struct Assembler<'a> {
    known: Option<&'a Manifest>,
    made: Made<'a>,
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
    results: &[Outcome],
) -> Result<Manifest, CaptureError> {
    if let Some(known) = known
        && let Some(manifest) = edited(build, known, scan, fates, plan, results)?
    {
        return Ok(manifest);
    }
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
    let subjects = Subjects { known, scan: Some(scan) };
    let assembler = Assembler {
        known,
        made: Made { build, subjects, scan, fates, plan, results },
        update_of: index(entries, &mut scan.updates.iter().map(|update| update.index)),
        listing_of: index(dirs, &mut scan.changed.iter().map(|(dir, _)| *dir)),
    };
    let parts = assembler.run().map_err(|error| match error.kind() {
        std::io::ErrorKind::FileTooLarge => CaptureError::TooLarge { root: build.request.root.to_owned() },
        _ => CaptureError::io("write", build.request.tmp_dir)(error),
    })?;
    Ok(Manifest::from_parts(parts)?)
}

impl<'a> Assembler<'a> {
    fn run(&self) -> std::io::Result<Parts> {
        let (made, scan) = (&self.made, self.made.scan);
        let devs = self.known.map(Manifest::devs).unwrap_or_default();
        let top = made.dir_record(&scan.top, false, made.build.doubts(Vec::new));
        let mut builder = Builder::new(scan.start, made.build.settings, made.layers(self.known), devs, top);
        builder.git_state(made.build.request.git_state);
        if self.known.map_or(0, Manifest::len) + made.results.len() > SPOOLED {
            builder.spool(made.build.request.tmp_dir);
        }
        let first = match (self.known, scan.new.first()) {
            (None, Some(Some(top))) => From::Listing(top),
            _ => self.dir_from(0),
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
                    for node in listing.nodes.iter() {
                        match node.what {
                            What::Keep(index) => {
                                if let Some(known) = known {
                                    self.push_known(&mut builder, known, dir, index, &mut below);
                                }
                            }
                            What::Copy { look, op } => {
                                let flags = Flags::default().with_look(look);
                                if let Some(record) = made.copied(op as usize, flags) {
                                    builder.push(node.name(), record);
                                }
                            }
                            What::Dir(id) => {
                                // Without a listing it vanished before it could be read.
                                if let Some(Some(inner)) = scan.new.get(id as usize) {
                                    let path = || join(&listing.place.path(known), node.name());
                                    let (lessened, doubted) = (made.build.lessens(path), made.build.doubts(path));
                                    let record = made.dir_record(&node.stat, lessened, doubted);
                                    below.push((builder.push_dir(dir, node.name(), record), From::Listing(inner)));
                                }
                            }
                            What::LeaveOut(reason) => {
                                builder.push(node.name(), left_out(&node.stat, reason));
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
            Some(at) if *at != NONE => From::Listing(&self.made.scan.changed[*at as usize].1),
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
            Some(at) if *at != NONE => self.push_updated(builder, known, dir, index, *at as usize),
            _ => match raw.child() {
                Some(child) if self.made.build.doubts(|| known.dir_path(child)) => {
                    let (layer, flags) = (Some(raw.layer_index()), raw.flags().with_racy(true));
                    Some(builder.push_dir(dir, raw.name(), Record { stat: raw.stat(), layer, copy: None, flags }))
                }
                _ => builder.take(dir, &raw),
            },
        };
        if let (Some(child), Some(old)) = (child, raw.child()) {
            below.push((child, self.dir_from(old)));
        }
    }

    /// Adds a known entry whose stat moved; returns the index of a directory.
    fn push_updated(&self, builder: &mut Builder, known: &'a Manifest, dir: u32, index: u32, at: usize) -> Option<u32> {
        let raw = known.raw(index);
        let record = self.made.updated(known, index, &raw, at)?;
        if raw.child().is_some() {
            return Some(builder.push_dir(dir, raw.name(), record));
        }
        builder.push(raw.name(), record);
        None
    }
}

/// What a round has made of what the scan found.
struct Made<'a> {
    build: &'a Build<'a>,
    subjects: Subjects<'a>,
    scan: &'a Scan,
    fates: &'a [Fate],
    plan: &'a Plan,
    results: &'a [Outcome],
}

impl Made<'_> {
    /// Returns the ids of the layers, lowermost first.
    fn layers(&self, known: Option<&Manifest>) -> Vec<String> {
        if self.build.started() {
            return self.build.layers.clone();
        }
        // Nothing was put into the layer, so there will be none.
        known.map(|known| known.layers_up().to_vec()).unwrap_or_default()
    }

    /// Returns the record of a known entry whose stat moved; `None` when the file is gone.
    fn updated(&self, known: &Manifest, index: u32, raw: &Raw<'_>, at: usize) -> Option<Record> {
        let update = &self.scan.updates[at];
        let flags = raw.flags().with_look(update.look);
        if raw.child().is_some() {
            let lessened = match self.fates[at] {
                Fate::DirAttr => self.build.lessens(|| join(&known.dir_path(update.dir), raw.name())),
                Fate::Refresh { lessened: Some(lessened), .. } => lessened,
                _ => flags.lessened(),
            };
            let doubted = self.build.doubts(|| join(&known.dir_path(update.dir), raw.name()));
            return Some(self.dir_record(&update.stat, lessened, doubted));
        }
        match self.fates[at] {
            Fate::Refresh { stat, racy, lessened } => {
                let layer = Some(raw.layer_index()).filter(|_| raw.flags().reason().is_none());
                let flags = flags.with_racy(racy).with_lessened(lessened.unwrap_or(flags.lessened()));
                Some(Record { stat, layer, copy: raw.copy(), flags })
            }
            Fate::DirAttr | Fate::Copy => self.plan.op_of.get(&index).and_then(|op| self.copied(*op, flags)),
        }
    }

    /// Returns the record of what an operation copied; `None` when the file is gone.
    fn copied(&self, op: usize, flags: Flags) -> Option<Record> {
        match self.results.get(op)? {
            Outcome::Unreadable(stat) => Some(left_out(stat, Reason::Unreadable)),
            outcome => {
                let done = outcome.done()?;
                Some(Record {
                    stat: done.stat.copied().or_else(|| self.subjects.stat(&self.plan.ops.get(op)?))?,
                    layer: Some(self.build.layer()),
                    copy: Some(done.copy),
                    flags: flags.with_racy(done.racy()).with_lessened(done.lessened()),
                })
            }
        }
    }

    fn dir_record(&self, stat: &Stat, lessened: bool, doubted: bool) -> Record {
        debug_assert_eq!(stat.kind(), Kind::Dir);
        let layer = if self.build.started() { self.build.layer() } else { self.build.layer().saturating_sub(1) };
        let flags = Flags::default().with_racy(doubted || stat.racy(self.scan.start)).with_lessened(lessened);
        Record { stat: *stat, layer: Some(layer), copy: None, flags }
    }
}

/// Returns the manifest by changing the known one, so that only what differs is written; `None` when no delta can
/// stand on that, or a whole one is better.
fn edited(
    build: &Build<'_>,
    known: &Manifest,
    scan: &Scan,
    fates: &[Fate],
    plan: &Plan,
    results: &[Outcome],
) -> Result<Option<Manifest>, CaptureError> {
    let subjects = Subjects { known: Some(known), scan: Some(scan) };
    let made = Made { build, subjects, scan, fates, plan, results };
    let layers = made.layers(Some(known));
    // Known directories that are in doubt get another record without being in the scan's updates.
    if !layers.starts_with(known.layers_up()) || !build.doubted.is_empty() {
        return Ok(None);
    }
    let Some(mut edit) = Edit::new(known, layers, scan.start, build.settings) else { return Ok(None) };
    let listed = scan.changed.iter().map(|(_, listing)| listing).chain(scan.new.iter().flatten());
    if edit.is_heavy(scan.updates.len() + listed.map(|listing| listing.nodes.len()).sum::<usize>()) {
        return Ok(None);
    }
    edit.git_state(build.request.git_state);
    edit.set(0, 0, made.dir_record(&scan.top, false, false));
    // Files that were gone when they were to be copied, by directory.
    let mut gone: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for (at, update) in scan.updates.iter().enumerate().filter(|(_, update)| update.index != 0) {
        match made.updated(known, update.index, &known.raw(update.index), at) {
            Some(record) => edit.set(update.index, update.dir, record),
            None => drop(gone.entry(update.dir).or_default().insert(update.index)),
        }
    }
    let mut below = Vec::new();
    // Those above come first: what is in a directory that is gone is gone with it.
    for (dir, listing) in &scan.changed {
        let gone = gone.remove(dir).unwrap_or_default();
        if edit.is_gone(*dir) {
            continue;
        }
        let kept: HashSet<u32> = listing
            .nodes
            .iter()
            .filter_map(|node| match node.what {
                What::Keep(index) => Some(index).filter(|index| !gone.contains(index)),
                _ => None,
            })
            .collect();
        relist((&mut edit, known), &made, *dir, listing, |index| kept.contains(&index), &mut below);
    }
    for (dir, gone) in gone {
        if edit.is_gone(dir) {
            continue;
        }
        let record = known.dir(dir);
        edit.begin(dir, record.flags, |index| !gone.contains(&index));
        (record.first..record.first + record.count).filter(|index| !gone.contains(index)).for_each(|at| edit.keep(at));
        edit.end(dir);
    }
    while let Some((dir, listing)) = below.pop() {
        relist((&mut edit, known), &made, dir, listing, |_| false, &mut below);
    }
    if edit.is_heavy(0) {
        return Ok(None);
    }
    Ok(Some(edit.finish()?))
}

/// Gives a directory the entries of a listing; its new directories are still to be filled.
fn relist<'a>(
    (edit, known): (&mut Edit<'_>, &Manifest),
    made: &Made<'a>,
    dir: u32,
    listing: &Listing,
    kept: impl Fn(u32) -> bool,
    below: &mut Vec<(u32, &'a Listing)>,
) {
    edit.begin(dir, listing.flags, &kept);
    for node in listing.nodes.iter() {
        match node.what {
            What::Keep(index) if kept(index) => edit.keep(index),
            What::Keep(_) => {}
            What::Copy { look, op } => {
                if let Some(record) = made.copied(op as usize, Flags::default().with_look(look)) {
                    edit.push(node.name(), record);
                }
            }
            What::Dir(id) => {
                // Without a listing it vanished before it could be read.
                if let Some(Some(inner)) = made.scan.new.get(id as usize) {
                    let path = || join(&listing.place.path(Some(known)), node.name());
                    let record = made.dir_record(&node.stat, made.build.lessens(path), false);
                    below.push((edit.push_dir(dir, node.name(), record), inner));
                }
            }
            What::LeaveOut(reason) => edit.push(node.name(), left_out(&node.stat, reason)),
        }
    }
    edit.end(dir);
}

fn left_out(stat: &Stat, reason: Reason) -> Record {
    Record { stat: *stat, layer: None, copy: None, flags: Flags::default().with_reason(Some(reason)) }
}
