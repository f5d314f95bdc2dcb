//! The command line as types. Each verb's own file has what it does.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Isolated copy-on-write sandboxes of a git working tree
#[derive(Debug, Parser)]
#[command(
    name = "git-sandbox",
    bin_name = "git sandbox",
    version,
    disable_help_subcommand = true,
    infer_subcommands = false,
    max_term_width = 100,
    after_help = "A sandbox starts from exactly what you see: uncommitted work, untracked files, installed\n\
dependencies. What is committed in it comes back as refs/sandbox/NAME of this repository.\n\n\
Start with:\n  git sandbox spawn fix-login          a shell in an isolated copy of this working tree\n  \
git sandbox spawn -d a -- make test  a command in the background\n  \
git sandbox list                     what there is\n  \
git merge sandbox/fix-login          its commits are ordinary commits here\n\n\
`git sandbox help VERB` tells about one verb."
)]
pub struct Cli {
    /// Run as if started in DIR
    #[arg(short = 'C', value_name = "DIR", global = true)]
    pub directory: Option<PathBuf>,
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a sandbox and run a command (or a shell) in it
    Spawn(Box<Spawn>),
    /// Try a task several times at once, and tell which attempt is best
    Run(Box<Run>),
    /// Run a command in a sandbox
    Exec(Exec),
    /// Open a shell in a sandbox
    Shell(Shell),
    /// Join the main command of a sandbox; leave with Ctrl-P Ctrl-Q
    Attach(One),
    /// Print the output of main commands
    Logs(Logs),
    /// Print what happened: starts, ends, what the network let out or refused
    Events(Events),
    /// Let a sandbox reach hosts, at once
    Allow(Allow),
    /// Let a sandbox not reach hosts, even if they are allowed
    Deny(Allow),
    /// Wait until the main commands have ended; the status is that of the last one
    Wait(Wait),
    /// Stop sandboxes; their files stay
    Stop(Stop),
    /// Start a stopped sandbox again, on the same files
    Start(Start),
    /// Make one more sandbox, from the state that another one is in now
    Fork(Fork),
    /// Keep the state that a sandbox is in now, to go back to it
    Checkpoint(Checkpoint),
    /// Put a sandbox back to a checkpoint
    Restore(Restore),
    /// List sandboxes
    List(List),
    /// Tell everything about one sandbox
    Show(Show),
    /// List the commits that sandboxes made
    Log(Log),
    /// Compare what a sandbox rewrote (amend, rebase) with what it was
    RangeDiff(RangeDiff),
    /// Show what a sandbox changed
    Diff(Diff),
    /// Bring the commits of sandboxes into this repository now
    #[command(visible_alias = "sync")]
    Fetch(Many),
    /// Bring a sandbox's commits here now (inside a sandbox: ask the host to)
    Push(Push),
    /// Tell which sandboxes collide, with each other and with the branch here
    Conflicts(Conflicts),
    /// Merge commits of sandboxes into the branch that is checked out here
    Merge(Merge),
    /// Put chosen commits of a sandbox on top of the branch that is checked out here
    Pick(Pick),
    /// Write a sandbox's commits into a file that git can fetch from
    Bundle(Bundle),
    /// Put what a sandbox changed and did not commit here as uncommitted edits
    Apply(Apply),
    /// Commit, inside a sandbox, what is not committed there
    Commit(Commit),
    /// Make a branch here of a sandbox's commits
    Branch(Branch),
    /// Copy files out of or into a sandbox
    Cp(Cp),
    /// Remove sandboxes, once their work is here
    Drop(Drop),
    /// Put what is not committed in a sandbox into the vault, now
    Rescue(Rescue),
    /// What was dropped: list it, bring it back, or empty it
    Trash(Trash),
    /// Take back what a verb did here, exactly or not at all
    Undo(Undo),
    /// List what merges, branches and drops did here
    Ops(Ops),
    /// Capture this working tree ahead of time, so that the next spawn is quick
    Warm(Warm),
    /// Finish or take back what crashes and dead commands left
    Repair(Repair),
    /// Remove from the store what no sandbox needs
    Gc(Gc),
    /// Let a process watch the working tree, so that a spawn looks only at what changed
    Watch(Watch),
    /// Clone from a git mirror next door instead of from the forge
    Mirror(crate::verbs::mirror::Mirror),
    /// List what agents need to work inside, or show one of them
    Presets(Presets),
    /// Look at what this machine can do, and what to change
    Doctor(Doctor),
    /// Put man pages, completions and the AppArmor profile in place
    Setup(Setup),
    /// Print a completion script
    Completions(Completions),
    /// Tell about git-sandbox or about one verb
    Help(Help),
}

/// Make a sandbox and run a command (or a shell) in it.
#[derive(Clone, Debug, Default, Args)]
#[command(
    after_help = "Examples:\n  git sandbox spawn                        a shell, in a sandbox with a made-up name\n  \
git sandbox spawn fix-login -- claude    a command in the sandbox 'fix-login'\n  \
git sandbox spawn -d a -- make test      in the background; `git sandbox logs -f a` shows it\n  \
git sandbox spawn --allow @github -- sh  with a network that reaches GitHub, and nothing else\n  \
git sandbox spawn --count 3 x -- claude -p 'Fix it'   x-1, x-2 and x-3 at once\n  \
git sandbox spawn --with ../lib --with ~/data:ro   a second repository, and a directory to read\n  \
git sandbox spawn --clean -- cargo test  as of HEAD, without uncommitted work\n  \
git sandbox spawn --rm --copy-out 'target/*.xml:reports/' --report run.json -- make test   for CI (docs/ci.md)"
)]
pub struct Spawn {
    /// Its name: a-z 0-9 . _ - (two short words when left out)
    pub name: Option<String>,
    /// In the background
    #[arg(short, long)]
    pub detach: bool,
    /// Drop it when its command has ended and nothing is left to bring home
    #[arg(long)]
    pub rm: bool,
    /// How to isolate: namespace, qemu, or auto (sandbox.driver; see `git sandbox doctor`)
    #[arg(long, value_name = "DRIVER")]
    pub driver: Option<String>,
    /// No weaker a wall than this: namespaces on the host's kernel, or a virtual machine (sandbox.minIsolation)
    #[arg(long, value_name = "WALL")]
    pub isolation: Option<IsolationWish>,
    /// Exactly the tracked files of a revision, nothing else
    #[arg(long, value_name = "REV", conflicts_with = "clean")]
    pub from: Option<String>,
    /// Exactly the tracked files of HEAD, nothing else
    #[arg(long)]
    pub clean: bool,
    /// A commit of an upstream (its default branch, else a branch, tag, id or refs/agents/SESSION), from the mirror if
    /// it has it; outside of any repository too
    #[arg(long, value_name = "URL[@REF]", conflicts_with_all = ["from", "clean"])]
    pub from_mirror: Option<String>,
    /// The upstream that the repository stands for, once it is known.
    #[arg(skip)]
    pub upstream: Option<String>,
    /// Check out a new branch inside
    #[arg(short, long, value_name = "BRANCH")]
    pub branch: Option<String>,
    /// Network: none, the host's, or only what is allowed
    #[arg(long, value_name = "NET")]
    pub net: Option<Net>,
    /// A host that can be reached: HOST, '*.HOST', HOST:PORT, a set such as @github; several with commas
    #[arg(long, value_name = "HOST")]
    pub allow: Vec<String>,
    /// What an agent needs to work inside, by name (`git sandbox presets`), or none
    #[arg(long, value_name = "NAME")]
    pub preset: Option<String>,
    /// Processors, e.g. 1.5
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub cpus: Option<f64>,
    /// Memory, e.g. 4g
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Processes and threads
    #[arg(long, value_name = "N")]
    pub pids: Option<u32>,
    /// What it may write (sandbox.disk), e.g. 20g, or none; over it everything inside is frozen
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<String>,
    /// End the command after this time (90s, 10m, 2h)
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<String>,
    /// Be root inside (of nothing but the sandbox)
    #[arg(long)]
    pub root: bool,
    /// A variable inside: NAME=VALUE, or NAME for the value that it has here
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// A file or directory of your home, copied to the same place inside
    #[arg(long, value_name = "PATH")]
    pub home_file: Vec<PathBuf>,
    /// So many sandboxes of the same state, in the background: NAME-1, NAME-2, … (or {index} in NAME says where);
    /// {name} and {index} in the command are each one's own
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000), conflicts_with = "tty")]
    pub count: Option<u32>,
    /// What to do with commits when the command ends
    #[arg(long, value_name = "WHAT")]
    pub on_exit: Option<OnExit>,
    /// Commit inside what the command leaves uncommitted when it ends (sandbox.autoCommit)
    #[arg(long)]
    pub auto_commit: bool,
    /// Give a terminal to the command even if this is not one
    #[arg(short, long)]
    pub tty: bool,
    /// Refs (or patterns) whose commits are visible inside too
    #[arg(long, value_name = "REF")]
    pub grant: Vec<String>,
    /// How the tree is put together (sandbox.view): an overlay, a full copy, or what this place allows
    #[arg(long, value_name = "VIEW")]
    pub view: Option<ViewWish>,
    /// A further repository or directory, at its own path; with :ro nothing in it can be changed
    #[arg(long, value_name = "PATH[:ro]")]
    pub with: Vec<String>,
    /// Go on without this layer of the wall
    #[arg(long, value_name = "LAYER")]
    pub allow_weak: Vec<String>,
    /// Let programs inside make sandboxes of their own (bubblewrap, browsers); more of the kernel is in reach
    #[arg(long, conflicts_with = "root")]
    pub nested: bool,
    /// Carry files that look like secrets, or leave them out, without asking
    #[arg(long, value_name = "YES|NO")]
    pub carry_secrets: Option<YesNo>,
    /// Copy files out when the command has ended, however it ended, before --rm; SRC may be a pattern
    #[arg(long, value_name = "SRC:DST", conflicts_with_all = ["detach", "count"])]
    pub copy_out: Vec<String>,
    /// Write one JSON object about the run: status, times, peaks, refused accesses, what was enforced
    #[arg(long, value_name = "FILE", conflicts_with_all = ["detach", "count"])]
    pub report: Option<PathBuf>,
    /// Show what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON object about the sandbox (with --detach), an array of them (with --count)
    #[arg(long)]
    pub json: bool,
    /// Print nothing but errors and the command's output
    #[arg(short, long)]
    pub quiet: bool,
    /// The command; a shell when left out
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<std::ffi::OsString>,
    /// What runs inside before the command.
    #[arg(skip)]
    pub first: Option<crate::verbs::spawn::First>,
}

/// Try a task several times at once.
#[derive(Debug, Args)]
#[command(
    override_usage = "git sandbox run [OPTIONS] --best-of <N> --check <CMD> [NAME] -- CMD...",
    after_help = "Each attempt has a sandbox of its own: NAME-1, NAME-2, … ({index} in NAME says where the number is);\n\
{name} and {index} in the command are each one's own. When all have ended, the check runs in a copy of each.\n\
The best one passes and changes least. All options of `spawn` are for the attempts.\n\n\
Status: 0 if one passes, 1 if none does.\n\nExamples:\n  \
git sandbox run --best-of 3 --check 'cargo test' fix -- claude -p 'Fix the flaky test'\n  \
git sandbox run --best-of 5 --check 'make check' --keep passing t{index} -- agent --seed {index}"
)]
pub struct Run {
    /// So many attempts
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub best_of: u32,
    /// What tells which are good, run in a copy of each (sandbox.check)
    #[arg(long, value_name = "CMD")]
    pub check: Option<String>,
    /// A check that takes longer has failed (90s, 10m, 2h; sandbox.checkTimeout)
    #[arg(long, value_name = "TIME")]
    pub check_timeout: Option<String>,
    /// So many checks at once; half of the processors when left out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub jobs: Option<u32>,
    /// Which sandboxes stay; the others go to the trash
    #[arg(long, value_name = "WHICH", default_value = "all")]
    pub keep: Keep,
    /// What each attempt gets
    #[command(flatten)]
    pub spawn: Spawn,
}

/// Which attempts stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Keep {
    /// All
    All,
    /// Those that pass
    Passing,
    /// The best one
    Best,
}

/// How hard the wall of a sandbox is at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IsolationWish {
    /// Kernel namespaces; one shared kernel
    Namespace,
    /// A virtual machine with a kernel of its own
    Vm,
}

/// How a sandbox's tree is put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ViewWish {
    /// An overlay; a full copy where the file system refuses one and has reflinks, or the tree is small
    Auto,
    /// Layers that sandboxes share, and what this one writes above them
    Overlay,
    /// A full copy for this sandbox, with shared blocks where the file system has them
    Copy,
}

/// The network of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Net {
    /// Only a loopback device
    None,
    /// The host's network
    Host,
    /// What --allow, sandbox.allow and the preset name, and nothing else
    Allow,
}

/// What happens to new commits when the command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnExit {
    /// Ask on a terminal, else keep
    Ask,
    /// Fast-forward the branch if that is possible
    Merge,
    /// Leave them at refs/sandbox/NAME
    Keep,
}

/// Yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum YesNo {
    /// Yes
    Yes,
    /// No
    No,
}

/// One sandbox.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  git sandbox attach fix-login")]
pub struct One {
    /// Which sandbox
    pub name: String,
}

/// One sandbox, printed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  git sandbox show fix-login --json\n  git sandbox show fix-login --console    \
what its virtual machine printed")]
pub struct Show {
    /// Which sandbox
    pub name: String,
    /// What the kernel of its virtual machine and QEMU printed, and nothing else
    #[arg(long)]
    pub console: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Run a command in a sandbox.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  git sandbox exec fix-login -- cargo test\n  git sandbox exec -t fix-login -- vim src/main.rs"
)]
pub struct Exec {
    /// Which sandbox; a stopped one is started for it
    pub name: String,
    /// With a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Start in this directory inside
    #[arg(short = 'w', long, value_name = "DIR")]
    pub workdir: Option<PathBuf>,
    /// A variable for the command: NAME=VALUE, or NAME for the value that it has here
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// The command
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<std::ffi::OsString>,
}

/// Open a shell in a sandbox.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  git sandbox shell fix-login")]
pub struct Shell {
    /// Which sandbox; a stopped one is started for it
    pub name: String,
    /// Start in this directory inside
    #[arg(short = 'w', long, value_name = "DIR")]
    pub workdir: Option<PathBuf>,
}

/// Print the output of main commands.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  git sandbox logs -f fix-login\n  git sandbox logs -f a b c        whole lines, with the name in front"
)]
pub struct Logs {
    /// Which sandboxes
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "NAME")]
    pub names: Vec<String>,
    /// All of this repository
    #[arg(long)]
    pub all: bool,
    /// Go on until all their commands have ended
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last N lines (of each)
    #[arg(short = 'n', long, value_name = "N")]
    pub lines: Option<usize>,
    /// Pass control characters on to the terminal instead of escaping them (one sandbox)
    #[arg(long)]
    pub raw: bool,
}

/// Print what happened in and around sandboxes.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  git sandbox events fix-login           starts, ends, and what the network let out or refused\n  \
git sandbox events -f --json a b       one JSON object a line, as it happens"
)]
pub struct Events {
    /// Which sandboxes
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "NAME")]
    pub names: Vec<String>,
    /// All of this repository
    #[arg(long)]
    pub all: bool,
    /// Go on until all of them have stopped
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last N events
    #[arg(short = 'n', long, value_name = "N")]
    pub lines: Option<usize>,
    /// As JSON, one object a line (docs/events.md)
    #[arg(long)]
    pub json: bool,
}

/// Change what the network of a sandbox reaches.
#[derive(Debug, Args)]
#[command(
    after_help = "HOST is a name, '*.' and a name, or an address, with the port when it is not 443; =ADDRESS behind it says\n\
where to connect to, =RANGE which private addresses it may have. @SET is a set of hosts. What is denied\n\
wins over what is allowed. Without a HOST the rules are listed.\n\nExamples:\n  \
git sandbox allow fix-login api.example.com '*.example.org:443,8443'\n  \
git sandbox allow fix-login intra.example=10.0.0.7\n  \
git sandbox deny fix-login tracker.example.com\n  \
git sandbox allow --remove fix-login api.example.com"
)]
pub struct Allow {
    /// Which sandbox
    pub name: String,
    /// Which hosts: HOST[:PORT[,PORT…]][=ADDRESS[:PORT]|=RANGE] or @SET
    #[arg(value_name = "HOST")]
    pub hosts: Vec<String>,
    /// Take these rules back
    #[arg(long)]
    pub remove: bool,
    /// Print the rules that hold then
    #[arg(long)]
    pub list: bool,
    /// The same as JSON
    #[arg(long)]
    pub json: bool,
}

/// Wait until main commands have ended.
#[derive(Debug, Args)]
#[command(
    after_help = "Status: that of the main command that ended last (with --any: first), 128+n if a signal ended it,\n\
124 if a time limit did (or --timeout is over), 137 if it was killed with its supervisor.\n\nExamples:\n  \
git sandbox wait a b && git sandbox merge a\n  \
name=$(git sandbox wait --any a b c)     whoever is ready first"
)]
pub struct Wait {
    /// Which sandboxes
    #[arg(required = true)]
    pub names: Vec<String>,
    /// Until the first of them has ended; its name is printed
    #[arg(long)]
    pub any: bool,
    /// Give up after this time (status 124)
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<String>,
}

/// Stop sandboxes.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  git sandbox stop fix-login")]
pub struct Stop {
    /// Which sandboxes
    #[arg(required_unless_present = "all")]
    pub names: Vec<String>,
    /// All of this repository
    #[arg(long)]
    pub all: bool,
    /// Time between TERM and KILL
    #[arg(long, value_name = "TIME", default_value = "2s")]
    pub grace: String,
}

/// Start a stopped sandbox again, or let one go on that is frozen for want of room.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  git sandbox start fix-login\n  git sandbox start fix-login -- make test\n  git sandbox start --disk 20g fix-login      it may write more"
)]
pub struct Start {
    /// Which sandbox
    pub name: String,
    /// What it may write from now on, e.g. 20g, or none
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<String>,
    /// A command to run in the background; idle when left out
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<std::ffi::OsString>,
}

/// Make one more sandbox, from the state that another one is in now.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  git sandbox fork fix-login other-way         a shell in a copy of 'fix-login'\n  \
git sandbox fork -d fix-login b -- claude    an agent goes on from there, in the background\n  \
git sandbox fork --count 3 a try -- agent --seed {index}    three from one moment: try-1, try-2, try-3\n\n\
The copy has its files, its uncommitted work and its home, not its processes or /tmp. From then on the\n\
two have nothing to do with each other."
)]
pub struct Fork {
    /// Which sandbox; it may run
    pub name: String,
    /// The new ones' names (the same with a number when left out); several are started in the background
    pub new: Vec<String>,
    /// So many of one moment, in the background: NEW-1, NEW-2, … (or {index} in NEW says where)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000), conflicts_with = "tty")]
    pub count: Option<u32>,
    /// In the background
    #[arg(short, long)]
    pub detach: bool,
    /// Check out a new branch inside
    #[arg(short, long, value_name = "BRANCH")]
    pub branch: Option<String>,
    /// What to do with commits when the command ends
    #[arg(long, value_name = "WHAT")]
    pub on_exit: Option<OnExit>,
    /// Give a terminal to the command even if this is not one
    #[arg(short, long)]
    pub tty: bool,
    /// Print one JSON object about the sandbox (with --detach)
    #[arg(long)]
    pub json: bool,
    /// Print nothing but errors and the command's output
    #[arg(short, long)]
    pub quiet: bool,
    /// The command; a shell when left out
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<std::ffi::OsString>,
}

/// Keep the state that a sandbox is in now.
#[derive(Debug, Args)]
#[command(
    after_help = "Kept are its files, its repository and its home, not its processes or /tmp. It may run: it stands still for \
the moment of copying. Checkpoints belong to the sandbox, and go to the trash and back with it.\n\nExamples:\n  \
git sandbox checkpoint fix-login 'tests pass'\n  git sandbox checkpoint --list fix-login\n  \
git sandbox restore fix-login 'tests pass'"
)]
pub struct Checkpoint {
    /// Which sandbox
    pub name: String,
    /// What to call it; it has a number in any case
    pub label: Option<String>,
    /// List those that there are
    #[arg(short, long, conflicts_with_all = ["label", "remove"])]
    pub list: bool,
    /// Remove one, by its number or label
    #[arg(long, value_name = "CHECKPOINT", conflicts_with = "label")]
    pub remove: Option<String>,
    /// Without a question
    #[arg(long, requires = "remove")]
    pub force: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    pub quiet: bool,
}

/// Put a sandbox back to a checkpoint.
#[derive(Debug, Args)]
#[command(
    after_help = "What it was until now becomes a checkpoint first. One that runs is stopped for it and started again, idle; \
what it committed until then is brought home before.\n\nExample:\n  git sandbox restore fix-login 2"
)]
pub struct Restore {
    /// Which sandbox
    pub name: String,
    /// Its number or label (`git sandbox checkpoint --list NAME`)
    pub checkpoint: String,
}

/// List sandboxes.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  git sandbox list")]
pub struct List {
    /// Of all repositories
    #[arg(short = 'A', long)]
    pub all: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// List the commits that sandboxes made.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  git sandbox log fix-login\n  git sandbox log --graph a b c   how they stand to each other and to HEAD"
)]
pub struct Log {
    /// Which sandboxes
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// Draw their histories and that of HEAD in one picture, from where they part
    #[arg(long, conflicts_with = "json")]
    pub graph: bool,
    /// At most N
    #[arg(short = 'n', long, value_name = "N")]
    pub max_count: Option<usize>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Compare a rewritten branch with what it was.
#[derive(Debug, Args)]
#[command(
    after_help = "Each commit of the version before is put beside the one that it became: `=` is unchanged, `!` is \
changed, `<` is gone, `>` is new.\n\nExamples:\n  git sandbox range-diff fix-login\n  \
git sandbox range-diff fix-login 1a2b3c4      with that version\n\nStatus: 0, or 1 if it was never rewritten."
)]
pub struct RangeDiff {
    /// Which sandbox
    pub name: String,
    /// A former tip of it; the last one that was rewritten when left out
    #[arg(value_name = "OLD")]
    pub old: Option<String>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Show what a sandbox changed.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  git sandbox diff fix-login --stat\n  git sandbox diff fix-login --uncommitted\n  \
git sandbox diff fix-login other-try --stat\n  git sandbox diff fix-login --patch >fix.patch"
)]
pub struct Diff {
    /// Which sandbox
    pub name: String,
    /// Another sandbox: what differs from the first one's commits to those of this one
    #[arg(value_name = "OTHER", conflicts_with = "uncommitted")]
    pub other: Option<String>,
    /// Only which files and how much
    #[arg(long)]
    pub stat: bool,
    /// What is not committed inside, against the state that it started from
    #[arg(long)]
    pub uncommitted: bool,
    /// A patch that `git apply` takes, binary files included; not to a terminal
    #[arg(short, long, conflicts_with_all = ["stat", "uncommitted"])]
    pub patch: bool,
    /// Which files and how much, and what to look at first, as JSON
    #[arg(long, conflicts_with_all = ["stat", "uncommitted", "patch", "other"])]
    pub json: bool,
}

/// Sandboxes, or all.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  git sandbox fetch --all")]
pub struct Many {
    /// Which sandboxes (inside one: none, it is the host that is asked)
    pub names: Vec<String>,
    /// All of this repository
    #[arg(long)]
    pub all: bool,
}

/// Bring commits home.
#[derive(Debug, Args)]
#[command(after_help = "Example (inside a sandbox):\n  git sandbox push")]
pub struct Push {
    /// Which sandbox (inside one: this one)
    pub name: Option<String>,
}

/// Tell which sandboxes collide.
#[derive(Debug, Args)]
#[command(
    after_help = "In the table: `clean` merges without a conflict, `2 paths` collides in two paths, `has it` and `is \
in it` contain one another; to HEAD, the commit that is checked out here, it is `ahead` or `merged`.\n\nStatus: 0 if nothing collides, 1 if something does.\n\nExamples:\n  \
git sandbox conflicts\n  git sandbox conflicts --watch"
)]
pub struct Conflicts {
    /// Which sandboxes; all of this repository when left out
    pub names: Vec<String>,
    /// With what is not committed inside, as if it were
    #[arg(long)]
    pub uncommitted: bool,
    /// Go on, and tell each new collision once
    #[arg(short, long)]
    pub watch: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Merge a sandbox's commits.
#[derive(Debug, Default, Args)]
#[command(
    after_help = "Examples:\n  git sandbox merge fix-login\n  git sandbox merge --squash -m 'Fix login' fix-login\n  \
git sandbox merge --all                  status 1 if one is left out\n  git sandbox merge --atomic --dry-run a b c\n  \
git sandbox merge --check 'cargo test' --all   those that pass together land\n  \
git sandbox merge --resolve theirs:src fix-login     where both changed the same below src, take the sandbox's\n  \
git sandbox merge --into-sandbox fix-login -- claude 'Resolve the conflicts and commit'\n\n\
A sandbox with several repositories (`spawn --with`) is merged into all of them, or into none."
)]
pub struct Merge {
    /// Which sandboxes
    #[arg(value_name = "NAME", required_unless_present = "all", conflicts_with = "all")]
    pub names: Vec<String>,
    /// All of this repository that have commits
    #[arg(long)]
    pub all: bool,
    /// Only if no merge commit is needed
    #[arg(long, conflicts_with_all = ["no_ff", "squash", "rebase"])]
    pub ff_only: bool,
    /// Always make a merge commit
    #[arg(long, conflicts_with_all = ["squash", "rebase"])]
    pub no_ff: bool,
    /// One commit with all changes (of each sandbox)
    #[arg(long, conflicts_with = "rebase")]
    pub squash: bool,
    /// The commits one by one on top of the branch
    #[arg(long)]
    pub rebase: bool,
    /// One commit with all sandboxes as its parents
    #[arg(long, conflicts_with_all = ["ff_only", "squash", "rebase"])]
    pub octopus: bool,
    /// All of them or none; otherwise one that conflicts is left out, and told
    #[arg(long)]
    pub atomic: bool,
    /// In the order given, not in that in which most of them merge
    #[arg(long)]
    pub in_order: bool,
    /// Only in this one of its repositories
    #[arg(long, value_name = "PATH")]
    pub only: Option<PathBuf>,
    /// Message of the commit
    #[arg(short, long, value_name = "MSG")]
    pub message: Option<String>,
    /// Even if what comes in would run by itself: it was looked at
    #[arg(short, long)]
    pub yes: bool,
    /// Land only what this command passes on, run in a sandbox on the result (sandbox.check)
    #[arg(long, value_name = "CMD")]
    pub check: Option<String>,
    /// Land without the check that is set
    #[arg(long, conflicts_with_all = ["check", "check_timeout", "jobs"])]
    pub no_check: bool,
    /// A check that takes longer has failed (90s, 10m, 2h; sandbox.checkTimeout)
    #[arg(long, value_name = "TIME")]
    pub check_timeout: Option<String>,
    /// So many checks at once; half of the processors when left out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub jobs: Option<u32>,
    /// Run your own hooks, as they were before, where `git merge` would
    #[arg(long, conflicts_with_all = ["rebase", "dry_run"])]
    pub with_hooks: bool,
    /// Edit the message first
    #[arg(short, long, conflicts_with_all = ["ff_only", "rebase", "dry_run"])]
    pub edit: bool,
    /// Sign the commits that are made, with the key of user.signingKey or this one (commit.gpgSign)
    #[arg(short = 'S', long, alias = "gpg-sign", value_name = "KEY", num_args = 0..=1, require_equals = true,
        default_missing_value = "", conflicts_with_all = ["ff_only", "no_sign"])]
    pub sign: Option<String>,
    /// Sign nothing, whatever commit.gpgSign says
    #[arg(long, alias = "no-gpg-sign")]
    pub no_sign: bool,
    /// Where both changed the same, take `ours` (what is here) or `theirs`; with :PATH only there; several times
    #[arg(long, value_name = "SIDE[:PATH]", conflicts_with = "ff_only")]
    pub resolve: Vec<String>,
    /// Do not resolve conflicts as git recorded that they were resolved before (git rerere)
    #[arg(long)]
    pub no_rerere: bool,
    /// If it conflicts, leave the merge in progress here, with conflict markers in the files, as `git merge` does
    #[arg(long, conflicts_with_all = ["all", "ff_only", "squash", "rebase", "octopus", "atomic", "in_order", "edit",
        "sign", "with_hooks", "check", "dry_run", "into_sandbox"])]
    pub markers: bool,
    /// Let a conflict be resolved in a fresh sandbox (NAME-merge) that has the merge in progress
    #[arg(long, value_name = "NEW", num_args = 0..=1, require_equals = true, default_missing_value = "",
        conflicts_with_all = ["all", "ff_only", "no_ff", "squash", "rebase", "octopus", "atomic", "in_order", "edit",
            "sign", "no_sign", "resolve", "no_rerere", "check", "dry_run"])]
    pub into_sandbox: Option<String>,
    /// With --into-sandbox: in the background
    #[arg(short, long, requires = "into_sandbox")]
    pub detach: bool,
    /// Show the plan and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// With --into-sandbox: the command there; a shell when left out
    #[arg(last = true, value_name = "CMD", requires = "into_sandbox")]
    pub command: Vec<std::ffi::OsString>,
}

/// Put chosen commits on top.
#[derive(Debug, Args)]
#[command(
    after_help = "REV is a commit that the sandbox made, a range A..B of them, or HEAD, HEAD~2: of the sandbox.\n\n\
Examples:\n  git sandbox pick fix-login\n  git sandbox pick fix-login 1a2b3c4 HEAD~2..HEAD"
)]
pub struct Pick {
    /// Which sandbox
    pub name: String,
    /// Which commits; all that it made when left out, the oldest first
    #[arg(value_name = "REV")]
    pub revs: Vec<String>,
    /// Name the original in the message
    #[arg(short = 'x')]
    pub note: bool,
    /// Even if what comes in would run by itself: it was looked at
    #[arg(short, long)]
    pub yes: bool,
    /// Sign the commits, with the key of user.signingKey or this one (commit.gpgSign)
    #[arg(short = 'S', long, alias = "gpg-sign", value_name = "KEY", num_args = 0..=1, require_equals = true,
        default_missing_value = "", conflicts_with = "no_sign")]
    pub sign: Option<String>,
    /// Sign nothing, whatever commit.gpgSign says
    #[arg(long, alias = "no-gpg-sign")]
    pub no_sign: bool,
    /// Where both changed the same, take `ours` (what is here) or `theirs`; with :PATH only there; several times
    #[arg(long, value_name = "SIDE[:PATH]")]
    pub resolve: Vec<String>,
    /// Do not resolve conflicts as git recorded that they were resolved before (git rerere)
    #[arg(long)]
    pub no_rerere: bool,
    /// Show the plan and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Write commits into a file.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  git sandbox bundle fix-login fix.bundle\n  \
git fetch fix.bundle refs/sandbox/fix-login     in any clone that has the base commit")]
pub struct Bundle {
    /// Which sandbox
    pub name: String,
    /// The file
    pub file: PathBuf,
    /// Even if the file exists
    #[arg(short, long)]
    pub force: bool,
}

/// Put uncommitted changes here.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  git sandbox apply fix-login\n  git sandbox apply fix-login src/login.rs docs\n  \
git sandbox apply --stash fix-login")]
pub struct Apply {
    /// Which sandbox
    pub name: String,
    /// Only these files, and those below these directories
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Into the stash list instead of the working tree
    #[arg(long)]
    pub stash: bool,
    /// Only in this one of its repositories
    #[arg(long, value_name = "PATH")]
    pub only: Option<PathBuf>,
    /// Even if what comes in would run by itself: it was looked at
    #[arg(short, long)]
    pub yes: bool,
    /// Show the plan and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Commit inside.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  git sandbox commit fix-login -m 'Fix login'")]
pub struct Commit {
    /// Which sandbox
    pub name: String,
    /// Message of the commit
    #[arg(short, long, value_name = "MSG")]
    pub message: String,
}

/// Make a branch.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  git sandbox branch fix-login topic/login")]
pub struct Branch {
    /// Which sandbox
    pub name: String,
    /// The new branch
    pub branch: String,
}

/// Copy files.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  git sandbox cp fix-login:out/report.md .\n  git sandbox cp notes.txt fix-login:notes.txt"
)]
pub struct Cp {
    /// From: PATH, or NAME:PATH in a sandbox
    pub source: String,
    /// To: PATH, or NAME:PATH in a sandbox
    pub target: String,
    /// Symbolic links too (only relative ones that stay inside)
    #[arg(long)]
    pub links: bool,
    /// At most this many bytes
    #[arg(long, value_name = "SIZE", default_value = "1g")]
    pub max_size: String,
}

/// Remove sandboxes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  git sandbox drop fix-login\n  git sandbox drop --merged")]
pub struct Drop {
    /// Which sandboxes
    #[arg(required_unless_present_any = ["all", "merged"])]
    pub names: Vec<String>,
    /// All of this repository
    #[arg(long)]
    pub all: bool,
    /// Those whose commits are all in the branch that is checked out here
    #[arg(long)]
    pub merged: bool,
    /// Even if there is work that is not here: it goes to the trash for 30 days
    #[arg(short, long)]
    pub force: bool,
}

/// Make a rescue commit.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  git sandbox rescue fix-login\n  git sandbox rescue fix-login --to ../saved")]
pub struct Rescue {
    /// Which sandbox
    pub name: String,
    /// Copy its own files and commits into this new directory instead: also when what it stands on is gone
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
}

/// What was dropped.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  git sandbox trash list\n  git sandbox trash show fix-login\n  git sandbox trash restore fix-login --as login-2"
)]
pub struct Trash {
    /// list (default), show NAME, restore NAME, empty
    #[command(subcommand)]
    pub action: Option<TrashAction>,
}

/// What to do with the trash.
#[derive(Debug, Subcommand)]
pub enum TrashAction {
    /// List dropped sandboxes
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Tell what is in a dropped sandbox
    Show {
        /// Its name (or id)
        name: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Bring a dropped sandbox back as it was
    Restore {
        /// Its name (or id)
        name: String,
        /// Give it this name instead of its own
        #[arg(long = "as", value_name = "NAME")]
        new: Option<String>,
    },
    /// Delete what was dropped, for good
    Empty {
        /// Without asking
        #[arg(long)]
        yes: bool,
    },
}

/// Take back what a verb did here, exactly or not at all.
#[derive(Debug, Args)]
#[command(
    after_help = "Takes back merge, pick, apply, branch and drop. What changed since is never overwritten: then it is \
refused, and nothing is written.\n\nExamples:\n  git sandbox undo         the last operation here\n  \
git sandbox undo 12      that one; `git sandbox ops` lists them\n  git sandbox undo -n      say what would be put back"
)]
pub struct Undo {
    /// Which operation (default: the last one that was not undone)
    #[arg(value_name = "OP")]
    pub operation: Option<u64>,
    /// Say what would be put back
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

/// List what merges, branches and drops did here, newest first.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  git sandbox ops         what was done here\n  git sandbox ops -n 5    the last five"
)]
pub struct Ops {
    /// At most so many
    #[arg(short = 'n', long, value_name = "NUMBER")]
    pub number: Option<usize>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Capture ahead of time.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  git sandbox warm\n  \
git sandbox warm --quiet --detach        in .git/hooks/post-checkout: no output, over at once, status 0\n\n\
Status: 0 when the tree is captured, 128 when it cannot be. With --quiet it is always 0, and nothing is \n\
done while another capture of the repository is under way.")]
pub struct Warm {
    /// In the background
    #[arg(short, long, conflicts_with = "json")]
    pub detach: bool,
    /// Print nothing, and never fail: for hooks
    #[arg(short, long)]
    pub quiet: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Mend what was left.
#[derive(Debug, Args)]
#[command(
    after_help = "Every command finishes or takes back what a dead one left. This looks at all there is: half-made\n\
sandboxes, names and refs of sandboxes that are gone, unfinished packs, missing layers. What could\n\
be the last copy of something is told of and stays.\n\nA repository that was moved is found again by any command in it. One that came back from a backup or\n\
a clone is named with --repo: it is compared with what its sandboxes were made from.\n\nExamples:\n  git sandbox repair --dry-run\n  git sandbox repair --repo ~/new/place"
)]
pub struct Repair {
    /// Give the repository at this path the sandboxes of the missing one that it is
    #[arg(long, value_name = "NEW")]
    pub repo: Option<PathBuf>,
    /// Show what would be mended
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Clean the store.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  git sandbox gc --dry-run")]
pub struct Gc {
    /// Show what would be removed
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Do nothing if it ran within a day
    #[arg(long)]
    pub auto: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Watch the working tree.
#[derive(Debug, Args)]
#[command(
    after_help = "With a watcher, a spawn looks only at what changed since the last one, however large the tree. In any \
doubt the whole tree is looked at. `git config sandbox.watch always` lets each spawn start one, which ends an hour \
after the last spawn and the last sandbox; `never` uses none.\n\nExamples:\n  git sandbox watch                start a watcher in \
the background\n  git sandbox watch --status       tell whether one runs, and what it watches\n  git sandbox watch --fsmonitor    \
let `git status` ask it too (core.fsmonitor of this repository)\n  git sandbox watch --stop         end it, and take \
core.fsmonitor away again"
)]
pub struct Watch {
    /// End the watcher
    #[arg(long, conflicts_with_all = ["status", "foreground", "fsmonitor"])]
    pub stop: bool,
    /// Tell about it
    #[arg(long, conflicts_with_all = ["foreground", "fsmonitor"])]
    pub status: bool,
    /// With --status: as JSON
    #[arg(long, requires = "status")]
    pub json: bool,
    /// Watch in this process, until it is interrupted
    #[arg(long)]
    pub foreground: bool,
    /// Also set `core.fsmonitor` of this repository, so that git asks it
    #[arg(long)]
    pub fsmonitor: bool,
}

/// Look at the machine.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  git sandbox doctor\n  git sandbox doctor --require isolation=namespace,limits=memory\n  git sandbox doctor --fix"
)]
pub struct Doctor {
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// Status 1 unless these hold: isolation=namespace|vm, limits=memory|pids|cpu, a check's name
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    pub require: Vec<String>,
    /// Make a sandbox and try in it everything that must not work; status 1 if something does
    #[arg(long)]
    pub probe: bool,
    /// Get what can be had without root first: unpack the distribution's kernel for virtual machines
    #[arg(long)]
    pub fix: bool,
}

/// Install what cannot be in the binary.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  git sandbox setup\n  git sandbox setup --remove")]
pub struct Setup {
    /// Take it away again
    #[arg(long)]
    pub remove: bool,
    /// Print the AppArmor profile and how to load it
    #[arg(long)]
    pub apparmor: bool,
    /// Below this directory instead of ~/.local
    #[arg(long, value_name = "DIR")]
    pub prefix: Option<PathBuf>,
}

/// List presets.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  git sandbox presets\n  git sandbox presets claude\n  \
git sandbox presets --sets registries    the hosts that @registries stands for here and now")]
pub struct Presets {
    /// Which preset (with --sets: which set)
    pub name: Option<String>,
    /// Sets of hosts instead, such as @github
    #[arg(long)]
    pub sets: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// Print a completion script.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  git sandbox completions bash > ~/.local/share/bash-completion/completions/git-sandbox"
)]
pub struct Completions {
    /// For which shell
    pub shell: clap_complete::Shell,
}

/// Tell about a verb.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  git sandbox help merge\n  git sandbox help agent       what an agent inside should know"
)]
pub struct Help {
    /// Which verb; `agent`: what an agent inside is told
    pub verb: Option<String>,
    /// With `agent`: which sandbox (inside one: this one)
    pub name: Option<String>,
}
