//! Copying by all threads.

use super::Build;
use super::entry::{self, Compared, Copied, Outcome, copy_entry};
use super::ops::{Op, Ops};
use super::plan::Subjects;
use crate::manifest::Manifest;
use crate::paths::{LIST, LOOK, join, open_beneath};
use crate::request::CaptureError;
use crate::scan::Update;
use crate::stat::Kind;
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The most operations that one thread takes at once.
const BATCH: usize = 64;

/// Operations of one directory, from this one on, and where it is noted what came of them.
type Batch<'b> = Mutex<(usize, &'b mut [Outcome])>;

/// Runs the operations; returns what came of each, in their order.
pub(super) fn copy_all(build: &Build<'_>, ops: &Ops, subjects: &Subjects<'_>) -> Result<Vec<Outcome>, CaptureError> {
    // The first name of a file with several is copied, the others are linked to it afterwards.
    let mut leaders: HashMap<(u64, u64), usize> = HashMap::new();
    let mut followers = Vec::new();
    for (at, op) in ops.iter().enumerate() {
        match subjects.links(&op).map(|key| *leaders.entry(key).or_insert(at)) {
            Some(leader) if leader != at => followers.push((at, leader)),
            _ => {}
        }
    }
    let follows = |at: usize| followers.binary_search_by_key(&at, |(at, _)| *at).is_ok();
    let mut results = vec![Outcome::Vanished; ops.len()];
    let mut batches: Vec<Batch<'_>> = Vec::new();
    let (mut rest, mut start) = (&mut results[..], 0);
    let mut cut = |len: usize| {
        let (slots, others) = std::mem::take(&mut rest).split_at_mut(len);
        batches.push(Mutex::new((start, slots)));
        (rest, start) = (others, start + len);
    };
    let mut open: Option<(&[u8], Option<u16>, usize)> = None;
    for op in ops.iter() {
        let layer = subjects.layer(&op);
        open = Some(match open {
            Some((dir, of, len)) if dir == op.dir && of == layer && len < BATCH => (dir, of, len + 1),
            before => {
                before.into_iter().for_each(|(.., len)| cut(len));
                (op.dir, layer, 1)
            }
        });
    }
    open.into_iter().for_each(|(.., len)| cut(len));
    parallel(build.request.threads, &batches, |batch| {
        let mut batch = batch.lock().unwrap_or_else(|e| e.into_inner());
        let (start, slots) = &mut *batch;
        copy_batch(build, (ops, *start), subjects, slots, |at| follows(*start + at))
    })?;
    drop(batches);
    link_all(build, ops, subjects, &followers, &mut results)?;
    Ok(results)
}

/// Copies what one directory has, but for those that are left to others.
fn copy_batch(
    build: &Build<'_>,
    (ops, start): (&Ops, usize),
    subjects: &Subjects<'_>,
    slots: &mut [Outcome],
    not: impl Fn(usize) -> bool,
) -> Result<(), CaptureError> {
    let Some(first) = ops.get(start) else { return Ok(()) };
    let host = build.root;
    let layer = subjects.layer(&first);
    let source = layer.and_then(|layer| build.stack.get(usize::from(layer))).map_or(host, AsFd::as_fd);
    let from = match open_beneath(source, first.dir, LOOK) {
        Ok(from) => from,
        // The whole directory is gone.
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(errno) => return Err(build.host_error(first.dir, errno)),
    };
    let to =
        open_beneath(build.tree()?, first.dir, LOOK).map_err(|errno| build.layer_error("create", first.dir, errno))?;
    let (mut files, mut bytes) = (0, 0);
    for (at, slot) in slots.iter_mut().enumerate() {
        let Some(op) = ops.get(start + at).filter(|_| !not(at)) else { continue };
        if !build.request.progress.goes_on() {
            return Err(CaptureError::Aborted);
        }
        let (name, kind) = (subjects.name(&op), subjects.kind(&op));
        let copied =
            copy_entry(build.copier, from.as_fd(), to.as_fd(), name, kind, build.request.owner).map_err(|error| {
                let path = subjects.path(&op);
                if error.in_layer {
                    build.layer_error("create", &path, error.errno)
                } else {
                    build.host_error(&path, error.errno)
                }
            })?;
        if let Copied::Done { stat, .. } = &copied {
            files += 1;
            bytes += stat.size;
        }
        *slot = Outcome::of(&copied, subjects.stat(&op).as_ref());
    }
    build.request.progress.copied(files, bytes);
    Ok(())
}

/// Makes the further names of files with several.
fn link_all(
    build: &Build<'_>,
    ops: &Ops,
    subjects: &Subjects<'_>,
    followers: &[(usize, usize)],
    results: &mut [Outcome],
) -> Result<(), CaptureError> {
    for (at, leader) in followers {
        let (Some(op), Some(first)) = (ops.get(*at), ops.get(*leader)) else { continue };
        let linked = match results[*leader].done() {
            Some(done) if !done.torn() => {
                let stat = done.stat.copied().or_else(|| subjects.stat(&first));
                let fits = |now: crate::stat::Stat| {
                    stat.is_some_and(|stat| (now.dev, now.ino, now.ctime) == (stat.dev, stat.ino, stat.ctime))
                };
                // A layer's own file has another inode than the host's stat says.
                subjects.layer(&op).is_some()
                    || open_beneath(build.root, op.dir, LOOK)
                        .and_then(|dir| entry::stat_at(dir.as_fd(), subjects.name(&op)))
                        .is_ok_and(fits)
            }
            _ => false,
        };
        if linked && link(build, subjects, &first, &op).map_err(|errno| build.layer_error("create", op.dir, errno))? {
            results[*at] = results[*leader].as_link(subjects.stat(&first).as_ref(), subjects.stat(&op).as_ref());
        } else {
            copy_batch(build, (ops, *at), subjects, &mut results[*at..=*at], |_| false)?;
        }
    }
    // Each link has moved the ctime of the copy.
    let mut groups: Vec<usize> = followers.iter().map(|(_, leader)| *leader).collect();
    groups.sort_unstable();
    groups.dedup();
    for leader in groups {
        let Some(op) = ops.get(leader) else { continue };
        let stat =
            open_beneath(build.tree()?, op.dir, LOOK).and_then(|dir| entry::stat_at(dir.as_fd(), subjects.name(&op)));
        let Ok(stat) = stat else { continue };
        let fresh = entry::copy_stat(&stat);
        let names = followers.iter().filter(|(_, of)| *of == leader).map(|(at, _)| *at).chain([leader]);
        for at in names {
            if results[at].done().is_some_and(|done| done.copy.ino == fresh.ino) {
                results[at].set_copy(fresh);
            }
        }
    }
    Ok(())
}

/// Makes a link in the layer; false when the file has as many names as its filesystem allows.
fn link(build: &Build<'_>, subjects: &Subjects<'_>, first: &Op<'_>, op: &Op<'_>) -> Result<bool, Errno> {
    let tree = build.tree().map_err(|_| Errno::NOENT)?;
    let (from, to) = (open_beneath(tree, first.dir, LOOK)?, open_beneath(tree, op.dir, LOOK)?);
    let (old, new) = (subjects.name(first), subjects.name(op));
    let make = || rustix::fs::linkat(&from, old, &to, new, rustix::fs::AtFlags::empty());
    let made = match make() {
        Err(Errno::EXIST) => {
            crate::remove::remove_at(to.as_fd(), new)?;
            make()
        }
        made => made,
    };
    match made {
        Ok(()) => Ok(true),
        Err(Errno::MLINK | Errno::PERM) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Compares known entries with their copies; returns the answers in the order of `updates`.
pub(super) fn compare_all(
    build: &Build<'_>,
    known: &Manifest,
    updates: &[Update],
) -> Result<Vec<Compared>, CaptureError> {
    parallel(build.request.threads, updates, |update| {
        let raw = known.raw(update.index);
        let dir = known.dir_path(update.dir);
        let owner = build.request.owner;
        if raw.kind() == Kind::Dir {
            let path = join(&dir, raw.name());
            let open = |tree| open_beneath(tree, &path, LIST).ok();
            // The uppermost layer that has the directory is the one that shows.
            let layer = (0..=build.layer()).rev().find_map(|layer| build.tree_of(layer).and_then(open));
            return Ok(match (open(build.root), layer) {
                (Some(host), Some(layer)) => {
                    entry::compare_directories(host.as_fd(), layer.as_fd(), owner).unwrap_or(Compared::Differs)
                }
                // What may not be opened has nothing that could be carried.
                _ => Compared::Same(update.stat, false, None),
            });
        }
        let open = |tree| open_beneath(tree, &dir, LOOK).ok();
        let layer = build.tree_of(raw.layer_index()).and_then(open);
        Ok(match (open(build.root), layer) {
            (Some(host), Some(layer)) => {
                entry::compare_entry(host.as_fd(), layer.as_fd(), raw.name_c(), raw.kind(), owner)
            }
            _ => Compared::Differs,
        })
    })
}

/// Does the same with every item, by several threads; returns the answers in the items' order.
fn parallel<I: Sync, R: Send>(
    threads: usize,
    items: &[I],
    work: impl Fn(&I) -> Result<R, CaptureError> + Sync,
) -> Result<Vec<R>, CaptureError> {
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let results = Mutex::new(Vec::with_capacity(items.len()));
    let worker = || {
        while !stop.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { break };
            let result = work(item);
            if result.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
            results.lock().unwrap_or_else(|e| e.into_inner()).push((at, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.max(1).min(items.len()) {
            scope.spawn(worker);
        }
        worker();
    });
    let mut results = results.into_inner().unwrap_or_else(|e| e.into_inner());
    results.sort_unstable_by_key(|(at, _)| *at);
    // With an error some answers are missing; the error comes first or at all.
    results.into_iter().map(|(_, result)| result).collect()
}
