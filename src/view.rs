//! Which view a sandbox of this user gets (`sandbox.view`): what is asked for, and what the place allows.

use crate::cli;
use crate::context::Context;
use crate::error::CliError;
use crate::text::{escape, parse_size};
use rustix::fs::{Mode, OFlags};
use sandbox_core::driver::Driver;
use sandbox_core::launch::TreeView;
use sandbox_core::store::Store;
use sandbox_core::tree_view::{Place, Refused, Wish};
use sandbox_core::whole::CopyError;
use std::io;
use std::path::Path;

/// Bytes of one ignored directory that are copied without reflinks, and of a tree that is copied whole because no
/// overlay can be had, unless `sandbox.captureLimit` says otherwise.
const CAPTURE_LIMIT: u64 = 1 << 30;

/// What is asked for, and what can be had.
pub struct View {
    wish: Wish,
    /// The place.
    pub place: Place,
    state: String,
}

/// `sandbox.captureLimit`; `None` is no limit.
pub fn capture_limit(context: &Context) -> Result<Option<u64>, CliError> {
    match context.setting("sandbox.captureLimit") {
        Some(text) if text == "none" => Ok(None),
        Some(text) => Ok(Some(parse_size(&text).ok_or_else(|| {
            CliError::new(format!("'{}' is not a value of sandbox.captureLimit", escape(&text)))
                .hint("it is a size such as 2g, or none")
        })?)),
        None => Ok(Some(CAPTURE_LIMIT)),
    }
}

/// What the user wants: the flag, else `sandbox.view`.
pub fn wish(context: &Context, flag: Option<cli::ViewWish>) -> Result<Wish, CliError> {
    if let Some(flag) = flag {
        return Ok(match flag {
            cli::ViewWish::Auto => Wish::Auto,
            cli::ViewWish::Overlay => Wish::Overlay,
            cli::ViewWish::Copy => Wish::Copy,
        });
    }
    let Some(text) = context.setting("sandbox.view") else { return Ok(Wish::Auto) };
    text.parse().map_err(|()| {
        CliError::new(format!("'{}' is not a value of sandbox.view", escape(&text))).hint("it is auto, overlay or copy")
    })
}

/// Looks at the state directory. Nothing is tried where a copy is asked for, nor on file systems that are known.
pub fn look(
    context: &Context,
    store: &Store,
    driver: &dyn Driver,
    ids: (u32, u32),
    wish: Wish,
) -> Result<View, CliError> {
    let root = store.root();
    let mut place = Place { refused: None, reflinks: false, limit: None };
    if wish != Wish::Copy {
        place.refused = refused(root, driver, ids)
            .map_err(CliError::io(format!("find out whether '{}' can hold an overlay", root.display())))?;
        if place.refused.is_some() {
            place.reflinks = reflinks(root);
            place.limit = capture_limit(context)?;
        }
    }
    Ok(View { wish, place, state: root.display().to_string() })
}

/// Why no overlay can be had in a directory.
pub fn refused(dir: &Path, driver: &dyn Driver, (uid, gid): (u32, u32)) -> io::Result<Option<String>> {
    let mut made = None;
    let mut scratch = || {
        let temp = tempfile::Builder::new().prefix(".overlay-").tempdir_in(dir)?.keep();
        Ok(made.insert(temp).clone())
    };
    let refused = driver.refuses_overlay(dir, &mut scratch, uid, gid);
    if let Some(made) = made {
        sandbox_capture::remove_tree(&made)?;
    }
    refused
}

/// Tries whether files can share blocks there.
pub fn reflinks(dir: &Path) -> bool {
    shares(dir, dir)
}

/// Tries whether a file of one directory can share its blocks with one of another, with files that have no name.
pub fn shares(from: &Path, to: &Path) -> bool {
    let file = |dir: &Path| {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR)
    };
    let tried = || -> rustix::io::Result<()> {
        let from = file(from)?;
        rustix::io::write(&from, &[1; 4096])?;
        rustix::fs::ioctl_ficlone(file(to)?, from)
    };
    tried().is_ok()
}

impl View {
    /// The view, as far as it can be told without the size of the tree.
    pub fn choose(&self, bytes: Option<u64>) -> Result<TreeView, CliError> {
        self.place.choose(self.wish, bytes).map_err(|refused| self.error(&refused))
    }

    /// Bytes from which on a tree is not copied; `None` where its size does not matter.
    pub fn most(&self) -> Option<u64> {
        self.place.refused.as_ref().and(self.place.most()).filter(|_| self.wish == Wish::Auto)
    }

    /// The line about a copy that was not asked for.
    pub fn line(&self) -> Option<String> {
        let why = self.place.refused.as_ref().filter(|_| self.wish == Wish::Auto)?;
        Some(format!("a full copy instead of an overlay: the state directory '{}' is on {why}", self.state))
    }

    fn error(&self, refused: &Refused) -> CliError {
        let failure = CliError::new(format!("no overlay can be mounted on the state directory '{}'", self.state))
            .cause(format!("it is on {refused}"))
            .hint("`git config --global sandbox.stateDir DIR` names a directory on a local file system such as ext4, XFS or Btrfs; in a container: on a volume");
        match refused {
            Refused::Overlay(_) => failure.hint("`--view copy` (`sandbox.view`) makes a full copy for each sandbox"),
            Refused::Large { .. } => failure.hint("`--view copy` makes a full copy for each sandbox whatever its size"),
        }
    }
}

/// The disk is full.
pub fn is_full(error: &CopyError) -> bool {
    let io = match error {
        CopyError::Tree(error) => &error.source,
        CopyError::Index { source, .. } => source,
        CopyError::Manifest(_) | CopyError::Store(_) => return false,
    };
    sandbox_core::space::is_full(io)
}
