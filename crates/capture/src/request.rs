//! What a capture is asked, and what it answers.

use crate::manifest::{Manifest, ManifestError, Reason};
use crate::stat::Time;
use crate::watched::Watch;
use std::io;
use std::path::{Path, PathBuf};

/// More layers than this are not stacked: a mount takes one page of options.
pub const MAX_STACK: usize = 16;

/// A first copy larger than this is announced before it starts.
pub const ANNOUNCED: u64 = 1 << 30;

/// One capture.
///
/// Paths given to the predicates are relative to `root`, as bytes, without a `/` at the start.
/// `tracked` is asked with a `/` at the end whether any tracked file lies below that directory.
#[derive(Clone, Copy)]
pub struct CaptureRequest<'a> {
    /// The host's work tree, canonical.
    pub root: &'a Path,
    /// The stack of the last capture of this work tree, uppermost layer first; empty when there is
    /// none. Its manifest is the one beside the uppermost layer.
    pub previous: &'a [String],
    /// Where layers are: `<layers_dir>/<id>/{tree,manifest}`.
    pub layers_dir: &'a Path,
    /// Where the new layer is built, on the same filesystem; it is renamed into `layers_dir` whole.
    pub tmp_dir: &'a Path,
    /// The new layer's id, if there is to be one.
    pub new_layer_id: &'a str,
    /// Run by root: who shall own the layer.
    pub owner: Option<(u32, u32)>,
    /// Absolute paths that are skipped without a word: the state directory, if it is in the tree.
    pub exclude: &'a [PathBuf],
    /// What happens to untracked files that look like secrets.
    pub secrets: Secrets,
    /// Tells whether a file is tracked. Tracked files are always carried: they are in the history.
    pub tracked: &'a (dyn Fn(&[u8]) -> bool + Sync),
    /// Tells whether git ignores a path (the flag says that it is a directory). Asked for `limit` only.
    pub ignored: &'a (dyn Fn(&[u8], bool) -> bool + Sync),
    /// A number that changes whenever an answer of `tracked` or `ignored` may have changed (a digest
    /// over the index's stat and the ignore files' will do); with the same one as last time, nothing
    /// is asked again about what did not change. 0: not known, always ask.
    pub git_state: u64,
    /// Leaves out large directories that can be made again; `None` carries everything.
    pub limit: Option<Limit<'a>>,
    /// Threads to scan and copy with; 0 counts as 1.
    pub threads: usize,
    /// Hears how it goes.
    pub progress: &'a dyn Progress,
    /// Tells what may have changed; without it, and where it says nothing, the whole tree is looked at.
    pub watch: Option<&'a dyn Watch>,
}

/// What happens to untracked files that look like secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrets {
    /// They are carried, and named.
    Carry,
    /// They stay on the host, and are named.
    LeaveOut,
}

/// The rule for large directories that can be made again (build output, caches).
///
/// It looks at what would have to be copied now, not at what is already in a layer: a large
/// directory that hardly changed is brought up to date.
#[derive(Clone, Copy, Debug)]
pub struct Limit<'a> {
    /// The most that is copied for one directory that git ignores.
    pub ignored_over: u64,
    /// The most that is copied for one directory with a `CACHEDIR.TAG` and no tracked files. 0 leaves
    /// out all of them: but uv and others put that file into virtual environments too.
    pub cachedir_over: u64,
    /// Applies the rule also where reflinks make copies cheap.
    pub with_reflinks: bool,
    /// Directories, relative to the root, that are carried whatever their size.
    pub with: &'a [PathBuf],
}

/// Hears how a capture goes. All methods have a default that does nothing and goes on.
pub trait Progress: Sync {
    /// Called once before a copy of more than [`ANNOUNCED`] bytes without reflinks starts.
    fn estimate(&self, estimate: &Estimate) -> Decision {
        let _ = estimate;
        Decision::Continue
    }

    /// Asked before each copy: whether there is room for this many files of this many bytes on disk. `shared` tries
    /// whether they will share their blocks with what they are copied from: then they take no bytes.
    fn has_room(&self, files: u64, bytes: u64, shared: &dyn Fn() -> bool) -> Decision {
        let _ = (files, bytes, shared);
        Decision::Continue
    }

    /// Called once before a whole tree is copied: this many files and bytes.
    fn whole(&self, files: u64, bytes: u64) {
        let _ = (files, bytes);
    }

    /// Asked from any thread before each file: false ends the capture with [`CaptureError::Aborted`].
    fn goes_on(&self) -> bool {
        true
    }

    /// Called from any thread when more has been copied.
    fn copied(&self, files: u64, bytes: u64) {
        let _ = (files, bytes);
    }
}

impl Progress for () {}

/// What [`Progress::estimate`] wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Copy.
    Continue,
    /// Stop with [`CaptureError::Aborted`]; nothing is left behind.
    Abort,
}

/// What is about to be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Files.
    pub files: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Up to three directories, relative to the root, that take most of it, with their bytes.
    pub largest: Vec<(PathBuf, u64)>,
}

/// What a capture made.
#[derive(Debug)]
pub struct Captured {
    /// The stack, uppermost layer first; equal to the previous one when nothing changed.
    pub layers: Vec<String>,
    /// The new layer, if one was needed.
    pub new_layer: Option<String>,
    /// Counts.
    pub stats: Stats,
    /// What is on the host and not in the snapshot (or only in an older state), sorted by path.
    pub left_out: Vec<LeftOut>,
    /// Untracked files that look like secrets and were carried, sorted.
    pub carried_secrets: Vec<PathBuf>,
    /// Tracked files that look like secrets, sorted.
    pub tracked_secrets: Vec<PathBuf>,
    /// Directories that hold an entry named `.git` (directory or file), relative, sorted; the top
    /// directory is the empty path.
    pub git_boundaries: Vec<PathBuf>,
    /// Permission bits of the top directory.
    pub root_mode: u32,
    /// Modification time of the top directory.
    pub root_mtime: Time,
    /// Extended attributes of the top directory that mean something inside: name and value, sorted by name.
    pub root_attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// Files that were still changing after the last try: each is whole as it was at some instant
    /// or torn by its writer, and the next capture looks at it again.
    pub unsettled: Vec<PathBuf>,
    /// Why the previous stack was not built upon, when there was one.
    pub rebased: Option<Rebased>,
    /// What the stack holds.
    pub manifest: Manifest,
}

/// Why a capture was not built upon the whole previous stack, although there was one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebased {
    /// Its uppermost layers hold (next to) nothing that is still in the tree, or it had [`MAX_STACK`]
    /// layers.
    Folded {
        /// Something of those layers was copied into the new one: copies have other inodes than before.
        kept: bool,
    },
    /// The manifest of the previous stack, or one of its layers, is gone, damaged or of another version.
    Unusable,
}

/// Counts of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Stats {
    /// Regular files and symlinks in the snapshot.
    pub files: u64,
    /// Directories in the snapshot, without the top one.
    pub dirs: u64,
    /// Files and symlinks that were copied or linked into the new layer.
    pub copied_files: u64,
    /// Their bytes, apparent size.
    pub copied_bytes: u64,
    /// How many of them share their blocks with the host's file.
    pub reflinked: u64,
    /// Files that are the same as in the last capture.
    pub unchanged: u64,
    /// Names that are gone, as whiteouts.
    pub deleted: u64,
    /// Whole scans that were made.
    pub scans: u32,
    /// Files and directories of the snapshot without some of their rights: entries of access control
    /// lists for users and groups that do not exist inside, file capabilities, attributes that the
    /// store's file system does not take.
    pub lessened: u64,
}

/// Something on the host that the snapshot does not hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeftOut {
    /// Its path relative to the root.
    pub path: PathBuf,
    /// Why.
    pub reason: Reason,
}

/// Why a capture failed. Nothing is left behind in either case.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// A file or directory could not be read or written.
    #[error("cannot {action} '{path}'", path = path.display())]
    Io {
        /// `read`, `create`, …
        action: &'static str,
        /// The host's or the layer's path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The layers' file system takes no character device 0:0 (overlayfs itself): nothing can be taken away from
    /// an earlier capture there.
    #[error("cannot create the whiteout '{path}'", path = path.display())]
    Whiteout {
        /// In the layer.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// [`Progress::has_room`], [`Progress::estimate`] or [`Progress::goes_on`] said no.
    #[error("capture was aborted")]
    Aborted,
    /// A manifest that was just written cannot be read, or one that is needed is gone.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The tree has more entries or longer names than the manifest can hold.
    #[error("'{root}' has too many files", root = root.display())]
    TooLarge {
        /// The work tree.
        root: PathBuf,
    },
}

impl CaptureError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
