//! What a scan's result means for the layer, as a value.

use super::Build;
use super::entry::Lessened;
use super::ops::{Op, Ops, Subject};
use crate::manifest::{Manifest, Raw};
use crate::paths::join;
use crate::scan::{Listing, Node, Scan, What};
use crate::stat::{Kind, Stat};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::CStr;
use std::sync::Arc;

/// What is done to the layer, in this order.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Names of earlier rounds that go.
    pub(super) take_out: Vec<Vec<u8>>,
    /// Directories that the layer must have.
    pub(super) dirs: BTreeSet<Vec<u8>>,
    /// Names of the stack below that are hidden.
    pub(super) white_out: Vec<Vec<u8>>,
    /// Files and symlinks that are copied.
    pub(super) ops: Ops,
    /// The operation of an entry of the manifest, by index.
    pub(super) op_of: HashMap<u32, usize>,
}

/// Where what is known of the subjects of operations is found.
#[derive(Clone, Copy)]
pub(super) struct Subjects<'a> {
    pub(super) known: Option<&'a Manifest>,
    pub(super) scan: Option<&'a Scan>,
}

impl<'a> Subjects<'a> {
    fn node(&self, listing: Option<&'a Listing>, node: u32) -> Option<Node<'a>> {
        listing?.nodes.get(node as usize)
    }

    /// Returns a node, or a known entry.
    fn find(&self, what: Subject) -> (Option<Node<'a>>, Option<Raw<'a>>) {
        let raw = |index| self.known.map(|known| known.raw(index));
        let Some(scan) = self.scan else {
            return match what {
                Subject::Layer(index) => (None, raw(index)),
                _ => (None, None),
            };
        };
        match what {
            Subject::Update(at) => (None, scan.updates.get(at as usize).and_then(|update| raw(update.index))),
            Subject::Changed(dir, at) => {
                (self.node(scan.changed.get(dir as usize).map(|(_, listing)| listing), at), None)
            }
            Subject::New(dir, at) => (self.node(scan.new.get(dir as usize).and_then(Option::as_ref), at), None),
            Subject::Layer(index) => (None, raw(index)),
        }
    }

    /// Returns the name.
    pub(super) fn name(&self, op: &Op<'_>) -> &'a CStr {
        match self.find(op.what) {
            (Some(node), _) => node.name,
            (None, raw) => raw.map(|raw| raw.name_c()).unwrap_or_default(),
        }
    }

    /// Returns the path.
    pub(super) fn path(&self, op: &Op<'_>) -> Vec<u8> {
        join(op.dir, self.name(op).to_bytes())
    }

    /// Returns what the scan saw on the host.
    pub(super) fn stat(&self, op: &Op<'_>) -> Option<Stat> {
        match op.what {
            Subject::Update(at) => self.scan?.updates.get(at as usize).map(|update| update.stat),
            _ => self.find(op.what).0.map(|node| node.stat),
        }
    }

    /// Returns what it is.
    pub(super) fn kind(&self, op: &Op<'_>) -> Kind {
        self.stat(op)
            .map(|stat| stat.kind())
            .or_else(|| self.find(op.what).1.map(|raw| raw.kind()))
            .unwrap_or(Kind::File)
    }

    /// Returns the layer of the previous stack that it is copied from; `None`: the host.
    pub(super) fn layer(&self, op: &Op<'_>) -> Option<u16> {
        match op.what {
            Subject::Layer(_) => self.find(op.what).1.map(|raw| raw.layer_index()),
            _ => None,
        }
    }

    /// Returns what tells files apart that may have several names: device, or layer, and inode.
    pub(super) fn links(&self, op: &Op<'_>) -> Option<(u64, u64)> {
        match self.stat(op) {
            Some(stat) => (stat.nlink > 1 && stat.kind() == Kind::File).then_some((stat.dev, stat.ino)),
            None => {
                let raw = self.find(op.what).1.filter(|raw| raw.kind() == Kind::File)?;
                raw.copy().map(|copy| (raw.layer_index().into(), copy.ino))
            }
        }
    }
}

/// What is to become of a known entry, after its content was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The layers hold it as it is; only the manifest learns its stat.
    Refresh { stat: Stat, racy: bool, lessened: Lessened },
    /// A directory whose mode or mtime is another.
    DirAttr,
    /// It must be copied.
    Copy,
}

impl Plan {
    /// Returns whether the layer stays as it is.
    pub(super) fn is_empty(&self) -> bool {
        self.take_out.is_empty() && self.dirs.is_empty() && self.white_out.is_empty() && self.ops.is_empty()
    }

    fn copy(&mut self, dir: &Arc<[u8]>, what: Subject) -> usize {
        self.ops.push(dir, what)
    }
}

/// Returns what a scan's result means for the layer, and notes in the scan's nodes which operation
/// each new file is.
///
/// `fates` says for each of the scan's updates what is to become of it.
pub(super) fn plan(build: &Build<'_>, known: Option<&Manifest>, scan: &mut Scan, fates: &[Fate]) -> Plan {
    let mut plan = Plan::default();
    if let Some(known) = known {
        // Those of one directory one after the other, in the manifest's order.
        let mut by_dir: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (at, update) in scan.updates.iter().enumerate() {
            by_dir.entry(update.dir).or_default().push(at);
        }
        for (dir, updates) in by_dir {
            let path: Arc<[u8]> = known.dir_path(dir).into();
            for at in updates {
                let update = scan.updates[at];
                let name = known.raw(update.index).name();
                match fates[at] {
                    Fate::Copy => {
                        let op = plan.copy(&path, Subject::Update(at as u32));
                        plan.op_of.insert(update.index, op);
                        plan.dirs.insert(path.to_vec());
                    }
                    // The top directory's own stat is not the layer's business.
                    Fate::DirAttr if update.index != 0 => {
                        plan.dirs.insert(join(&path, name));
                    }
                    Fate::DirAttr | Fate::Refresh { .. } => {}
                }
            }
        }
        for (dir, listing) in &scan.changed {
            vanished(build, known, *dir, listing, &scan.new, &mut plan);
        }
    }
    let mut changed = std::mem::take(&mut scan.changed);
    for (at, (_, listing)) in changed.iter_mut().enumerate() {
        let path = listing.place.path(known);
        let what = |node| Subject::Changed(at as u32, node);
        new_nodes(build, listing, &what, path, &mut scan.new, &mut plan);
    }
    scan.changed = changed;
    if known.is_none()
        && let Some(Some(mut top)) = scan.new.first_mut().map(Option::take)
    {
        plan.dirs.insert(Vec::new());
        new_nodes(build, &mut top, &|node| Subject::New(0, node), Vec::new(), &mut scan.new, &mut plan);
        scan.new[0] = Some(top);
    }
    plan
}

/// Returns the names of a listing that the layer will hold.
fn carried<'l>(listing: &'l Listing, new: &[Option<Listing>], known: Option<&Manifest>) -> BTreeSet<&'l [u8]> {
    let carries = |what: &What| match what {
        What::Copy { .. } => true,
        What::Dir(id) => new.get(*id as usize).is_some_and(Option::is_some),
        What::Keep(index) => known.is_none_or(|known| known.raw(*index).flags().reason().is_none()),
        What::LeaveOut(_) => false,
    };
    listing.nodes.iter().filter(|node| carries(&node.what)).map(|node| node.name()).collect()
}

/// Plans for the names of a known directory that are gone or were replaced.
fn vanished(
    build: &Build<'_>,
    known: &Manifest,
    dir: u32,
    listing: &Listing,
    new: &[Option<Listing>],
    plan: &mut Plan,
) {
    let kept: BTreeSet<u32> = listing
        .nodes
        .iter()
        .filter_map(|node| match node.what {
            What::Keep(index) => Some(index),
            _ => None,
        })
        .collect();
    let names = carried(listing, new, Some(known));
    let path = known.dir_path(dir);
    let record = known.dir(dir);
    for index in record.first..record.first + record.count {
        let raw = known.raw(index);
        if kept.contains(&index) || raw.flags().reason().is_some() {
            continue;
        }
        let gone = join(&path, raw.name());
        if raw.layer_index() == build.layer() || build.made.contains(&gone) {
            plan.take_out.push(gone.clone());
        }
        if !names.contains(raw.name()) && build.shows(&gone) {
            plan.white_out.push(gone);
        }
    }
}

/// Plans for what is new in a listing, and in the new directories below it.
fn new_nodes(
    build: &Build<'_>,
    listing: &mut Listing,
    what: &dyn Fn(u32) -> Subject,
    path: Vec<u8>,
    new: &mut [Option<Listing>],
    plan: &mut Plan,
) {
    // The first listing is not taken out of `new`; those below it are, one by one, and put back.
    let mut waiting = nodes_of(build, listing, what, path, new, plan);
    while let Some((id, path)) = waiting.pop() {
        let Some(mut listing) = new.get_mut(id as usize).and_then(Option::take) else { continue };
        plan.dirs.insert(path.clone());
        if let Some(below) = build.below.filter(|_| build.shows(&path)) {
            // The stack below has a directory of this name, which was hidden or left out before.
            let names = carried(&listing, new, None);
            if let Some(dir) = below.find(&path).and_then(|index| below.raw(index).child()) {
                let record = below.dir(dir);
                for raw in (record.first..record.first + record.count).map(|index| below.raw(index)) {
                    if raw.flags().reason().is_none() && !names.contains(raw.name()) {
                        plan.white_out.push(join(&path, raw.name()));
                    }
                }
            }
        }
        waiting.extend(nodes_of(build, &mut listing, &|node| Subject::New(id, node), path, new, plan));
        new[id as usize] = Some(listing);
    }
}

fn nodes_of(
    build: &Build<'_>,
    listing: &mut Listing,
    what: &dyn Fn(u32) -> Subject,
    path: Vec<u8>,
    new: &[Option<Listing>],
    plan: &mut Plan,
) -> Vec<(u32, Vec<u8>)> {
    let dir: Arc<[u8]> = path.clone().into();
    let (mut below, mut copies) = (Vec::new(), false);
    for at in 0..listing.nodes.len() {
        let Some(node) = listing.nodes.get(at) else { break };
        match node.what {
            What::Copy { look, .. } => {
                let target = join(&path, node.name());
                let op = plan.copy(&dir, what(at as u32)) as u32;
                listing.nodes.decide(at, What::Copy { look, op });
                if build.made.contains(&target) {
                    plan.take_out.push(target);
                }
                copies = true;
            }
            What::Dir(id) if new.get(id as usize).is_some_and(Option::is_some) => {
                below.push((id, join(&path, node.name())));
            }
            What::Dir(_) | What::Keep(_) | What::LeaveOut(_) => {}
        }
    }
    if copies {
        plan.dirs.insert(path);
    }
    below
}
