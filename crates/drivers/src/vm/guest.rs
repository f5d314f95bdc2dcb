//! What a guest is told: one value, derived from the [`LaunchSpec`] on the host, carried out by [`super::init`].
//!
//! ```text
//!   host                                    guest
//!   ────                                    ─────
//!   /usr, a layer, a view …  ── export n ─► /x/n                       read-only, enforced by the host's side
//!   a sparse file            ── disk ─────► /disk/{home,tmp,upper/n,work/n}
//!                                           /trees/n = overlay of /x/… and /disk/upper/n
//!   plan of the namespace driver ─────────► the same plan, its sources replaced by these paths
//! ```
//! So a guest shows exactly what the namespace driver would show here, and what runs in it is as unprivileged
//! there as it would be here: the boundary of the machine is one more.

use crate::namespace::plan::{self, Access, Kernel, MountPlan, Step};
use crate::namespace::view::Host;
use crate::namespace::{self, effective};
use sandbox_core::driver::DriverError;
use sandbox_core::launch::{LaunchSpec, Mode, Tree, TreeView};
use sandbox_protocol::OWN;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where the exports are in the guest.
pub const EXPORTS: &str = "/x";
/// Where the guest's disk is mounted.
pub const DISK: &str = "/disk";
/// Where the trees are put together.
pub const TREES: &str = "/trees";
/// This program in the guest.
pub const PROGRAM: &str = "/git-sandbox-guest";
/// The tag of the shared file system.
pub const TAG: &str = "sandbox";
/// The version of [`GuestSpec`]; guest and host are the same program, so another one is a mistake.
pub const VERSION: u32 = 1;

/// A single file of the host that is shown is sent along; above this size it is left out.
const LARGEST_FILE: u64 = 4 << 20;

/// A directory of the host that the guest may read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// Its name below [`EXPORTS`].
    pub name: String,
    /// On the host.
    pub source: PathBuf,
    /// It never changes, so that the guest may keep what it has read for ever (a layer, a view).
    pub immutable: bool,
}

/// A tree as the guest puts it together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestTree {
    /// Where it is put together; the plan binds it to its place.
    pub at: PathBuf,
    /// Uppermost first.
    pub lowers: Vec<PathBuf>,
    /// Upper and work directory, made if they are not there.
    pub writable: Option<(PathBuf, PathBuf)>,
}

/// Everything that a guest is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuestSpec {
    /// See [`VERSION`].
    pub version: u32,
    /// What to launch, as the namespace driver in the guest takes it.
    pub launch: LaunchSpec,
    /// Its mounts.
    pub plan: MountPlan,
    /// The trees.
    pub trees: Vec<GuestTree>,
    /// It has a disk; a helper has one that it cannot write.
    pub disk: bool,
    /// What the home is filled with at the first start.
    pub home: Option<PathBuf>,
}

/// What of the host a guest needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Guest {
    /// What it is told.
    pub spec: GuestSpec,
    /// What it may read.
    pub exports: Vec<Export>,
}

/// Derives what a guest is told. Reads the host, changes nothing. `disk` says whether there is a disk, which a
/// helper over a sandbox that never ran has not.
pub fn guest(spec: &LaunchSpec, host: &Host, disk: bool, driver: &'static str) -> Result<Guest, DriverError> {
    let mut spec = effective(spec);
    if let Some(tree) = spec.trees.iter().find(|tree| tree.view == TreeView::Copy) {
        let what = format!("show '{}' as a full copy: its trees are overlays", tree.at.display());
        return Err(DriverError::Unsupported { driver, what });
    }
    let mut exports = Exports::default();
    let helper = spec.mode == Mode::Helper;
    let mut trees = Vec::new();
    let layered = std::mem::take(&mut spec.trees);
    for (n, tree) in layered.iter().enumerate() {
        let mut lowers: Vec<PathBuf> = tree.lowers.iter().map(|lower| exports.add(lower, true)).collect();
        let own = |kind: &str| Path::new(DISK).join(kind).join(n.to_string());
        let writes = !tree.read_only;
        if helper && writes && disk {
            lowers.insert(0, own("upper"));
        }
        let writable = (!helper && writes).then(|| (own("upper"), own("work")));
        let at = Path::new(TREES).join(n.to_string());
        spec.trees.push(Tree {
            at: tree.at.clone(),
            lowers: Vec::new(),
            upper: at.clone(),
            work: PathBuf::new(),
            read_only: tree.read_only,
            view: TreeView::Copy,
        });
        trees.push(GuestTree { at, lowers, writable });
    }
    // The guest's kernel is older than the one with a limit of process numbers per namespace, or does no harm.
    let mut plan = plan::plan(&spec, host, Kernel { own_pid_max: false }).map_err(|error| match error {
        DriverError::Unsupported { driver: namespace::NAME, what } => DriverError::Unsupported { driver, what },
        other => other,
    })?;
    let (home, tmp) = (spec.home.source.clone(), spec.tmp.clone());
    let mut steps = Vec::with_capacity(plan.steps.len());
    for step in std::mem::take(&mut plan.steps) {
        match step {
            Step::Bind { source, at, access, directory } => {
                let source = if source == spec.program {
                    PROGRAM.into()
                } else if source == home && at == spec.home.at {
                    Path::new(DISK).join("home")
                } else if source == tmp {
                    Path::new(DISK).join("tmp")
                } else if directory {
                    let view = spec.views.iter().any(|view| view.dir == source);
                    exports.add(&source, view)
                } else {
                    match contents(&source) {
                        Ok((mode, contents)) => steps.push(Step::File { at, mode, contents }),
                        Err(why) => plan.notes.push(format!("'{}' is not there: {why}", at.display())),
                    }
                    continue;
                };
                steps.push(Step::Bind { source, at, access, directory });
            }
            other => steps.push(other),
        }
    }
    // What the host asks to be told of: only the guest can see it.
    if disk {
        for (n, _) in layered.iter().enumerate().filter(|(_, tree)| !tree.read_only) {
            let source = Path::new(DISK).join("upper").join(n.to_string());
            let at = Path::new(OWN).join(n.to_string());
            steps.push(Step::Bind { source, at, access: Access::DATA, directory: true });
        }
    }
    plan.steps = steps;
    let home = (!helper).then(|| exports.add(&home, false));
    // They are in the plan.
    let launch = LaunchSpec {
        views: Vec::new(),
        system: Vec::new(),
        covers: Vec::new(),
        files: Vec::new(),
        program: PROGRAM.into(),
        vm: None,
        ..spec
    };
    let spec = GuestSpec { version: VERSION, launch, plan, trees, disk, home };
    Ok(Guest { spec, exports: exports.list })
}

/// A file of the host to send along.
fn contents(path: &Path) -> Result<(u32, Vec<u8>), String> {
    let facts = fs::metadata(path).map_err(|error| error.to_string())?;
    if facts.len() > LARGEST_FILE {
        return Err(format!("a single file of {} bytes cannot be shown in a guest", facts.len()));
    }
    let contents = fs::read(path).map_err(|error| error.to_string())?;
    Ok((facts.permissions().mode() & 0o755, contents))
}

#[derive(Default)]
struct Exports {
    list: Vec<Export>,
}

impl Exports {
    /// The path in the guest of a directory of the host.
    fn add(&mut self, source: &Path, immutable: bool) -> PathBuf {
        let known = self.list.iter().find(|export| export.source == source).map(|export| export.name.clone());
        let name = known.unwrap_or_else(|| {
            let name = self.list.len().to_string();
            self.list.push(Export { name: name.clone(), source: source.to_owned(), immutable });
            name
        });
        Path::new(EXPORTS).join(name)
    }
}

impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Export { name, source, immutable } in &self.exports {
            let kept = if *immutable { "  kept" } else { "" };
            writeln!(f, "export    {EXPORTS}/{name}  {}{kept}", source.display())?;
        }
        if self.spec.disk {
            writeln!(f, "disk      {DISK}")?;
        }
        if let Some(home) = &self.spec.home {
            writeln!(f, "fill      {DISK}/home  from {}", home.display())?;
        }
        for tree in &self.spec.trees {
            writeln!(f, "overlay   {}  redirect_dir", tree.at.display())?;
            for lower in &tree.lowers {
                writeln!(f, "  lowerdir  {}", lower.display())?;
            }
            match &tree.writable {
                Some((upper, work)) => {
                    writeln!(f, "  upperdir  {}\n  workdir   {}", upper.display(), work.display())?;
                }
                None => writeln!(f, "  read-only")?,
            }
        }
        write!(f, "{}", self.spec.plan)
    }
}

/// What the guest says before its agent does, one JSON line each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Word {
    /// Something was left out; the start goes on.
    Note(String),
    /// The start ended here: the error and its causes.
    Failed(Vec<String>),
    /// The agent has the channel from the next byte on.
    Ready,
}

/// What the host asks of the guest's first process while its agent is at work, one JSON line each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// Let the disk stand still.
    Hold,
    /// Let it go on.
    Release,
}

/// What it says to that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The disk stands still.
    Held {
        /// The lock of a git command that has not ended.
        locked: Option<String>,
    },
    /// It goes on.
    Released,
    /// Neither.
    Failed(String),
    /// Unasked, and its last word: everything is written out.
    Off,
}
