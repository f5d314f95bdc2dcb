//! `spawn`: capture, make, launch, run.

use super::exec::{interrupted, status, variables};
use super::list::print_json;
use crate::cli;
use crate::context::Context;
use crate::copy_out::{self, Wish};
use crate::error::{CliError, Outcome};
use crate::leave;
use crate::prepare;
use crate::presets;
use crate::presets::carry::Carried;
use crate::presets::network::Policy;
use crate::project::{self, Project};
use crate::report::Report;
use crate::start::{exec_request, shell_batch, shell_command, start, wait_started};
use crate::template;
use crate::terminal::{Ended, Input, interactive, relay, window};
use crate::text::{escape, parse_duration, parse_size};
use crate::view;
use crate::wall::{Demands, weak_words};
use crate::with;
use rustix::termios::isatty;
use sandbox_core::connection::Connection;
use sandbox_core::driver::{Driver, Isolation};
use sandbox_core::host_repo::HostRepo;
use sandbox_core::host_view;
use sandbox_core::id::{Name, SandboxId};
use sandbox_core::launch::{Limits, Mode, NESTED_COST, Network, TreeView, User};
use sandbox_core::prepare::{Source, Taken, check_name, create};
use sandbox_core::record::{RepoMount, SandboxRecord};
use sandbox_core::sandbox::Sandbox;
use sandbox_core::store::{Store, write_json};
use sandbox_protocol::{Message, escape_bytes, unescape_bytes};
use sandbox_sys::clock::unix_seconds;
use sandbox_sys::lock::FileLock;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Fewer processes than this do not even hold the sandbox's own.
const LEAST_PIDS: u32 = 16;
/// Processes and threads, unless `--pids` or `sandbox.pids` says otherwise (DESIGN: default limits).
const DEFAULT_PIDS: u32 = 1024;
/// Bytes of memory at most, unless asked for more: the smaller of this and half of the machine's.
const DEFAULT_MEMORY: u64 = 4 << 30;

pub fn run(context: &Context, args: cli::Spawn) -> Outcome {
    // Before anything else: a job that waits for the report finds one, whatever comes.
    let report = match args.report.as_deref().filter(|_| !args.dry_run) {
        Some(file) => RefCell::new(Some(Report::begin(file, &args.command)?)),
        None => RefCell::new(None),
    };
    let outcome = spawn(context, args, &report);
    match report.into_inner() {
        Some(report) => report.finish(outcome),
        None => outcome,
    }
}

fn spawn(context: &Context, mut args: cli::Spawn, report: &RefCell<Option<Report>>) -> Outcome {
    let copy_out: Vec<Wish> =
        args.copy_out.iter().map(|text| Wish::parse(text, &context.cwd)).collect::<Result<_, _>>()?;
    let wish = leave::wish(context, args.on_exit)?;
    let store = context.store()?;
    let elsewhere;
    let context = match args.from_mirror.take() {
        None => context,
        Some(text) => {
            let source = super::mirror::source::take(context, &store, &text)?;
            args.from = Some(source.revision);
            args.upstream = source.upstream;
            match args.upstream {
                // In a repository of that upstream it is as with any revision.
                None => context,
                Some(_) => {
                    elsewhere = context.at(source.repo.top_or_gitdir(), Some(source.repo.clone()))?;
                    &elsewhere
                }
            }
        }
    };
    let mut made = match make(context, &store, &args)? {
        Asked::Made(made) => made,
        Asked::Shown => return Ok(0),
    };
    let cwd = made.first().map(|(sandbox, _)| sandbox.record.cwd.clone()).unwrap_or_default();
    let launched = Launch {
        detach: args.detach,
        json: args.json,
        quiet: args.quiet,
        tty: args.tty,
        branch: args.branch.as_deref(),
        first: args.first.as_ref(),
        command: &args.command,
        cwd: &cwd,
        wish,
        copy_out: &copy_out,
        report: Some(report),
    };
    match (args.count, made.pop()) {
        (None, Some((sandbox, lock))) => launch(context, &store, &sandbox, lock, &launched),
        (_, last) => {
            made.extend(last);
            launch_many(context, &store, made, &launched)
        }
    }
}

/// What came of a request.
pub enum Asked {
    /// Sandboxes that do not run yet, with their locks.
    Made(Vec<(Sandbox, FileLock)>),
    /// It was only to be shown.
    Shown,
}

/// Captures and makes what is asked for, and tells what there is to tell.
pub fn make(context: &Context, store: &Store, args: &cli::Spawn) -> Result<Asked, CliError> {
    let repo = context.repo()?;
    let source = match (&args.from, args.clean) {
        (Some(rev), _) => Source::Revision(rev.clone()),
        (None, true) => Source::Head,
        (None, false) => Source::WorkTree,
    };
    if source == Source::WorkTree {
        repo.worktree().map_err(|error| prepare::bare_hint(CliError::from(error)))?;
    }
    store.writable()?;
    context.disk_reserve()?;
    let names = match args.count {
        Some(count) => template::names(args.name.as_deref(), count)?,
        None => vec![args.name.as_deref().map(Name::parse).transpose()?],
    };
    if let Some(id) = repo.known_id(store)? {
        for name in names.iter().flatten() {
            check_name(store, &id, name, None)?;
        }
    }
    let top = repo.top_or_gitdir().to_owned();
    Demands::read(context, None)?.refuse_lowering(context, &args.allow_weak)?;
    let mut project = Project::read(&top)?;
    let mut demands = Demands::read(context, Some(&project))?;
    demands.min = demands.min.max(args.isolation.map(isolation));
    let driver_name = chosen_driver(context, args.driver.as_deref(), demands.min)?;
    let driver = driver(&driver_name)?;
    prepare::refuse_place(context, store, &top)?;
    let mut user = context.user(&top)?;
    user.root = args.root;
    let wish_view = view::wish(context, args.view)?;
    let view = view::look(context, store, driver, (user.uid, user.gid), wish_view)?;
    view.choose(None)?;
    let places = with::places(context, store, repo, &top, args, &project)?;
    for place in &places {
        project.and(&place.project);
        let known = match &place.repo {
            Some(repo) => repo.known_id(store)?,
            None => sandbox_core::directory::known_id(store, &place.path)?,
        };
        for (id, name) in known.iter().flat_map(|id| names.iter().flatten().map(move |name| (id, name))) {
            check_name(store, id, name, Some(&place.path))?;
        }
    }

    // Everything that may be wrong with the request, before the tree is captured.
    let asked_for = demands.min;
    demands = Demands::read(context, Some(&project))?;
    demands.min = demands.min.max(asked_for);
    demands.refuse_weaker(driver)?;
    let preset = presets::choose(context, args.preset.as_deref(), args.command.first().map(OsString::as_os_str))?;
    let network = presets::network::choose(context, args, &project, preset.as_ref())?;
    let policy = match network {
        Network::Allow => Some(presets::network::policy(context, &args.allow, &project, preset.as_ref())?),
        Network::None | Network::Host => None,
    };
    let asked_limits =
        AskedLimits { memory: args.memory.as_deref(), cpus: args.cpus, pids: args.pids, disk: args.disk.as_deref() };
    let limits = project.tighten(limits(context, &asked_limits, driver.isolation())?);
    let timeout = args.timeout.as_deref().map(time).transpose()?.into_iter().chain(project.timeout).min();
    let asked = variables(context, &args.env)?;
    let way = super::mirror::access::way(context, driver, repo, network, args.upstream.is_some())?;
    let mut carried = Carried::look(context, store, repo, args, preset, &top)?;

    let (ask, view_of) = (true, Some(&view));
    let wanted =
        prepare::Asked { grant: &args.grant, carry_secrets: args.carry_secrets, quiet: args.quiet, ask, view: view_of };
    let theirs = if args.clean { &Source::Head } else { &Source::WorkTree };
    let all_taken = take(context, store, (repo, &source), &user, &wanted, &project, (&places, theirs))?;
    let taken: Vec<&Taken> = all_taken.iter().collect();
    let bytes = |taken: &&Taken| taken.bytes(store);
    let bytes = view.most().map(|_| taken.iter().map(bytes).sum::<Result<u64, _>>()).transpose()?;
    let tree_view = view.choose(bytes)?;
    carried.ask(store, &taken[0].repo, args.dry_run)?;
    let cwd = if context.cwd.starts_with(&top) { context.cwd.clone() } else { top.clone() };
    let path = program_path(context, &args.command);
    let trees: Vec<PathBuf> = std::iter::once(&top).chain(places.iter().map(|place| &place.path)).cloned().collect();
    let spelled = places.iter().filter_map(|place| Some((place.spelled.clone()?, place.path.clone())));
    let extra: Vec<PathBuf> = context.settings("sandbox.toolchain").iter().map(PathBuf::from).collect();
    let record = SandboxRecord {
        // Given when it is made.
        sequence: 0,
        id: SandboxId::random(),
        unnamed: args.name.is_none(),
        name: Name::random(),
        rm: args.rm,
        driver: driver_name,
        repos: taken.iter().enumerate().map(|(n, taken)| mount(taken, n.checked_sub(1).map(|n| &places[n]))).collect(),
        created: unix_seconds(),
        argv: Vec::new(),
        cwd: cwd.clone(),
        home: context.home.clone(),
        user,
        env: carried.environment(context, asked),
        network,
        limits,
        toolchains: host_view::toolchains(&context.home, &path, &extra, &trees)
            .into_iter()
            .map(|m| (m.source, m.at))
            .collect(),
        links: links(context, &top).into_iter().chain(spelled).collect(),
        timeout,
        allow_weak: args.allow_weak.clone(),
        require: demands.require,
        min_isolation: demands.min,
        nested: args.nested,
        preset: carried.preset.as_ref().map(|preset| preset.name.clone()),
        view: tree_view,
        guest_disk: !driver.writes_on_host(),
        auto_commit: args.auto_commit || super::commit::automatic(context)?,
        rescue_every: super::rescue::every(context)?,
        forked: None,
        upstream: args.upstream.clone(),
        mirror: None,
    };
    driver.refuse(&record)?;
    if args.dry_run {
        let name = names.into_iter().next().flatten().unwrap_or(record.name);
        let argv = own_argv(args, &name, 1);
        let record = SandboxRecord { name, argv, ..record };
        let sandbox = Sandbox::new(store.sandbox(&record.id), record);
        dry_run(context, store, &sandbox, &carried, policy.as_ref())?;
        if !args.quiet {
            carried.tell(context, args, policy.as_ref());
        }
        return Ok(Asked::Shown);
    }
    let (mut made, mut notes) = (Vec::new(), Vec::new());
    for (n, name) in names.into_iter().enumerate() {
        let id = SandboxId::random();
        let name = name.unwrap_or_else(Name::random);
        let argv = own_argv(args, &name, n + 1);
        let record = SandboxRecord { id, name, argv, ..record.clone() };
        let bar = prepare::Bar::new(args.quiet, None);
        let written = create(store, record, &taken, prepare::threads(), &bar);
        bar.finish();
        let written = written.map_err(CliError::from).and_then(|(mut sandbox, lock)| {
            // A made-up name may have been taken.
            let argv = own_argv(args, &sandbox.record.name, n + 1);
            if argv != sandbox.record.argv {
                sandbox.record.argv = argv;
                write_json(&sandbox.dir.record(), &sandbox.record, false)?;
            }
            if let Some(way) = &way {
                notes.extend(way.give(context, &mut sandbox, taken[0].snapshot.git.base.as_deref())?);
            }
            made.push((sandbox.clone(), lock));
            carried.write(&sandbox, policy.as_ref())
        });
        if let Err(error) = written {
            for (sandbox, lock) in made {
                drop(lock);
                sandbox_core::prepare::undo(store, &sandbox);
            }
            return Err(error);
        }
    }
    if !args.quiet {
        match made.as_slice() {
            [(sandbox, _)] => {
                eprintln!("sandbox '{}'{}: {}", sandbox.name(), weak_words(&sandbox.record), taken[0].told);
            }
            [(sandbox, _), ..] => {
                eprintln!("{} sandboxes{}, each: {}", made.len(), weak_words(&sandbox.record), taken[0].told);
            }
            [] => {}
        }
        for (place, taken) in places.iter().zip(&taken[1..]) {
            let how = match (place.read_only, place.repo.is_none()) {
                (true, true) => " (a directory, read-only)",
                (true, false) => " (read-only)",
                (false, true) => " (a directory)",
                (false, false) => "",
            };
            eprintln!("with '{}'{how}: {}", escape_bytes_of(&place.path), taken.told);
        }
        if let Some(line) = view.line().filter(|_| tree_view == TreeView::Copy) {
            eprintln!("note: {line}");
        }
        if args.nested {
            eprintln!("note: {NESTED_COST}");
        }
        notes.dedup();
        for note in &notes {
            eprintln!("note: {}", escape(note));
        }
        carried.tell(context, args, policy.as_ref());
        if network == Network::Host && !project.deny.is_empty() {
            eprintln!("note: `deny` of '{}' has no effect: with --net host, everything can be reached", project::FILE);
        }
    }
    // The next spawn of this repository need not wait until the command has ended.
    drop(all_taken);
    Ok(Asked::Made(made))
}

/// The command of one sandbox, as its record says it; of several at once, filled with its own name and number.
fn own_argv(args: &cli::Spawn, name: &Name, index: usize) -> Vec<String> {
    let own = |arg: &OsString| match args.count {
        Some(_) => template::fill(arg, name.as_str(), index),
        None => arg.clone(),
    };
    args.command.iter().map(|arg| escape_bytes(own(arg).as_bytes())).collect()
}

/// The command of a sandbox that was just made.
fn command(sandbox: &Sandbox) -> Vec<OsString> {
    sandbox.record.argv.iter().map(|arg| OsString::from_vec(unescape_bytes(arg))).collect()
}

/// Captures the working tree and what comes along, in the order of the sandbox's trees. The locks of the
/// repositories are taken in the order of their ids.
fn take(
    context: &Context,
    store: &Store,
    (repo, source): (&HostRepo, &Source),
    user: &User,
    wanted: &prepare::Asked<'_>,
    project: &Project,
    // A revision is one of the main repository.
    (places, theirs): (&[with::Place], &Source),
) -> Result<Vec<Taken>, CliError> {
    let main = prepare::Of { repo: Some(repo), top: repo.top_or_gitdir(), source, along: false };
    let of = |n: usize| match n.checked_sub(1) {
        None => main,
        Some(n) => prepare::Of { repo: places[n].repo.as_ref(), top: &places[n].path, source: theirs, along: true },
    };
    let mut order = vec![(sandbox_core::prepare::id(store, Some(repo), main.top)?, 0)];
    for (n, place) in places.iter().enumerate() {
        order.push((sandbox_core::prepare::id(store, place.repo.as_ref(), &place.path)?, n + 1));
    }
    order.sort();
    let mut answers: BTreeMap<usize, bool> = BTreeMap::new();
    // Each question lets go of all that was taken, and is asked once.
    let mut taken = 'all: loop {
        let mut taken = Vec::new();
        for (_, n) in &order {
            let answer = answers.get(n).copied();
            let (one, question) = match n.checked_sub(1).map(|n| &places[n]) {
                None => prepare::take(context, store, main, user, wanted, project, answer)?,
                Some(place) => prepare::take(&place.context, store, of(*n), user, wanted, &place.project, answer)
                    .map_err(|error| {
                        error.cause(format!("in '{}', which comes along", escape_bytes_of(&place.path)))
                    })?,
            };
            taken.push((*n, one));
            if let Some(question) = question {
                drop(taken);
                answers.insert(*n, prepare::ask_secrets(store, &question, of(*n))?);
                continue 'all;
            }
        }
        break taken;
    };
    if !wanted.quiet {
        for (n, one) in &taken {
            prepare::tell(n.checked_sub(1).map_or(context, |n| &places[n].context), one, of(*n));
        }
    }
    taken.sort_by_key(|(n, _)| *n);
    Ok(taken.into_iter().map(|(_, taken)| taken).collect())
}

/// One tree of the record.
pub fn mount(taken: &Taken, place: Option<&with::Place>) -> RepoMount {
    RepoMount {
        repo: taken.repo.clone(),
        worktree: taken.snapshot.worktree.clone(),
        snapshot: taken.snapshot.id.clone(),
        read_only: place.is_some_and(|place| place.read_only),
        directory: place.is_some_and(|place| place.repo.is_none()),
    }
}

fn escape_bytes_of(path: &Path) -> String {
    crate::text::escape_bytes(path.as_os_str().as_bytes())
}

/// What runs inside a sandbox that was just made, before its command: a failure takes the sandbox back.
#[derive(Clone, Debug)]
pub struct First {
    /// The command.
    pub argv: Vec<String>,
    /// What it is for: `cannot …`.
    pub what: String,
}

/// How a sandbox that was just made is started.
pub struct Launch<'a> {
    /// In the background.
    pub detach: bool,
    /// One JSON object about it, with `detach`.
    pub json: bool,
    /// Nothing is told.
    pub quiet: bool,
    /// A terminal for the command even if ours is none.
    pub tty: bool,
    /// A branch to make and check out first.
    pub branch: Option<&'a str>,
    /// What runs before the command.
    pub first: Option<&'a First>,
    /// The command; a shell (or nothing, in the background) when empty.
    pub command: &'a [OsString],
    /// Where it starts inside.
    pub cwd: &'a Path,
    /// What happens to commits at its end.
    pub wish: cli::OnExit,
    /// What is copied out at its end.
    pub copy_out: &'a [Wish],
    /// What is told of the run, if somebody wants to know.
    pub report: Option<&'a RefCell<Option<Report>>>,
}

impl Launch<'_> {
    fn tell(&self, what: impl FnOnce(&mut Report)) {
        let Some(report) = self.report else { return };
        if let Some(report) = report.borrow_mut().as_mut() {
            what(report);
        }
    }

    /// What is to be done before anything of the sandbox goes: results are brought out, and the report knows all.
    /// Returns whether everything that was asked for was copied.
    fn bring_out(&self, context: &Context, store: &Store, sandbox: &Sandbox) -> bool {
        self.tell(|report| report.ended(sandbox));
        if self.copy_out.is_empty() {
            return true;
        }
        let copied = copy_out::all(context, store, sandbox, self.copy_out, self.quiet);
        let whole = copied.iter().all(|copied| copied.error.is_none());
        self.tell(|report| report.copied(copied));
        whole
    }
}

/// Starts a sandbox that was just made and whose lock is held, and runs its command. A launch that
/// fails takes the sandbox with it.
pub fn launch(context: &Context, store: &Store, sandbox: &Sandbox, lock: FileLock, args: &Launch<'_>) -> Outcome {
    let mut connection = match start(context, store, sandbox, lock, !(args.detach && args.command.is_empty())) {
        Ok(connection) => connection,
        Err(error) => {
            sandbox_core::prepare::undo(store, sandbox);
            return Err(error);
        }
    };
    let mut syncing = crate::plumbing::sync::start(&context.program, store, sandbox, !args.detach);
    super::watch::start_always(context, store, sandbox);
    if args.detach {
        return detached(context, store, sandbox, &mut connection, args);
    }
    if let Err(error) = begin_inside(&mut connection, sandbox, args) {
        // No command has run in it: it goes as it came.
        drop(connection);
        let _ = super::stop::stop(sandbox, Duration::ZERO);
        sandbox_core::prepare::undo(store, sandbox);
        return Err(error);
    }
    args.tell(|report| report.made(sandbox));
    let (tty, input) = standard(args.tty);
    let shell = &sandbox.record.user.shell;
    let command = match args.command {
        [] if tty => shell_command(shell),
        [] => shell_batch(shell),
        command => command.to_vec(),
    };
    let stream = connection.open();
    connection.send(stream, &Message::Exec(exec_request(&command, args.cwd, tty, true)))?;
    let ended = relay(&mut connection, stream, input, true, false, sandbox.name())?;
    // What follows may start helpers.
    syncing.pause();
    match ended {
        Ended::Detached => {
            args.tell(|report| report.state("detached"));
            status(sandbox, ended)
        }
        Ended::Refused(_) if !started(sandbox) => {
            // The launch failed: nothing was ever done in it.
            let failed = status(sandbox, ended);
            sandbox_core::prepare::undo(store, sandbox);
            args.tell(Report::dropped);
            failed
        }
        Ended::Interrupted => {
            drop(connection);
            let code = interrupted(context, store, sandbox)?;
            let whole = args.bring_out(context, store, sandbox);
            args.tell(|report| report.state("interrupted"));
            // Whoever interrupts twice wants no questions.
            go(context, store, sandbox, args, cli::OnExit::Keep, whole)?;
            Ok(code)
        }
        ended => {
            let code = status(sandbox, ended);
            finish(connection, sandbox)?;
            let timed_out = sandbox.status()?.timed_out;
            if timed_out {
                eprintln!(
                    "timed out: the command was ended after {}",
                    crate::text::age(sandbox.record.timeout.unwrap_or(0))
                );
            }
            let whole = args.bring_out(context, store, sandbox);
            if let Err(error) = go(context, store, sandbox, args, args.wish, whole) {
                // The command's own status is what a script asks for; what went wrong afterwards is told.
                error.print();
                return if matches!(code, Ok(0)) { Ok(125) } else { code };
            }
            match code {
                _ if timed_out => Ok(124),
                Ok(0) if !whole => Ok(125),
                code => code,
            }
        }
    }
}

/// Leaves a sandbox whose command has ended. One of which something could not be copied out is not dropped: it has
/// the only copy.
fn go(
    context: &Context,
    store: &Store,
    sandbox: &Sandbox,
    args: &Launch<'_>,
    wish: cli::OnExit,
    whole: bool,
) -> Result<(), CliError> {
    let mut left = sandbox.clone();
    if !whole {
        (left.record.rm, left.record.unnamed) = (false, false);
    }
    leave::leave(context, store, &left, wish, args.quiet)?;
    if !sandbox.dir.record().exists() {
        args.tell(Report::dropped);
    } else if !whole {
        eprintln!(
            "kept: '{0}' has what could not be copied; `git sandbox cp {0}:PATH DST` tries again",
            sandbox.name()
        );
    }
    Ok(())
}

/// The launch got so far that a supervisor wrote its status.
fn started(sandbox: &Sandbox) -> bool {
    sandbox.status().is_ok_and(|status| status.started.is_some())
}

/// Waits until the supervisor has ended; it does so by itself after the last session.
fn finish(mut connection: Connection, sandbox: &Sandbox) -> Result<(), CliError> {
    while connection.recv().is_ok() {}
    drop(sandbox.take(Duration::from_secs(150))?);
    Ok(())
}

/// What is done inside before the command starts.
fn begin_inside(connection: &mut Connection, sandbox: &Sandbox, args: &Launch<'_>) -> Result<(), CliError> {
    if let Some(branch) = args.branch {
        checkout(connection, sandbox, branch)?;
    }
    let Some(first) = args.first else { return Ok(()) };
    let argv = first.argv.iter().map(|arg| escape_bytes(arg.as_bytes())).collect();
    let cwd = escape_bytes(sandbox.at(0).mount().worktree.as_os_str().as_bytes());
    let exec = sandbox_protocol::Exec { argv, cwd, internal: true, ..Default::default() };
    let (status, out, err) = connection.run(exec, b"", 1 << 16)?;
    if status.shell() == 0 {
        return Ok(());
    }
    let failure = CliError::new(format!("cannot {}", first.what)).hint("no sandbox was made");
    let said = [out, err].concat();
    let said = String::from_utf8_lossy(&said);
    let lines = said.lines().filter(|line| !line.trim().is_empty()).take(5);
    Err(lines.fold(failure, |failure, line| failure.cause(escape(line))))
}

/// Checks out a new branch inside, before the command starts.
fn checkout(connection: &mut Connection, sandbox: &Sandbox, branch: &str) -> Result<(), CliError> {
    let argv = ["git", "checkout", "--quiet", "-b", branch].map(|arg| escape_bytes(arg.as_bytes()));
    let cwd = escape_bytes(sandbox.at(0).mount().worktree.as_os_str().as_bytes());
    let exec = sandbox_protocol::Exec { argv: argv.into(), cwd, internal: true, ..Default::default() };
    let (status, _, err) = connection.run(exec, b"", 1 << 16)?;
    if status.shell() == 0 {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&err);
    let said = said.lines().next().unwrap_or_default().trim_start_matches("fatal: ");
    Err(CliError::new(format!("cannot check out a new branch '{}' inside", escape(branch)))
        .cause(escape(said))
        .hint("take another name for the branch; no sandbox was made"))
}

/// Starts several sandboxes that were just made, and tells which ones run.
pub fn launch_many(context: &Context, store: &Store, made: Vec<(Sandbox, FileLock)>, args: &Launch<'_>) -> Outcome {
    let total = made.len();
    let (started, failed) = start_many(context, store, made, args);
    let mut rows = Vec::new();
    for sandbox in &started {
        match args.json {
            true => rows.push(super::list::row(context, store, sandbox, &super::list::memory_by_namespace())?),
            false => println!("{}", sandbox.name()),
        }
    }
    if args.json {
        print_json(&rows)?;
    }
    match not_started(failed, total) {
        Some(error) => Err(error),
        None => Ok(0),
    }
}

/// What is wrong with those that could not be started; `None` if all run.
pub fn not_started(failed: Vec<(String, CliError)>, total: usize) -> Option<CliError> {
    let others = total - failed.len();
    let (_, first) = failed.first()?;
    let names: Vec<String> = failed.iter().map(|(name, _)| format!("'{name}'")).collect();
    let mut causes = vec![first.message.clone()];
    causes.extend(first.causes.iter().cloned());
    let mut hints = first.hints.clone();
    if others > 0 {
        hints.push(format!("{others} of {total} run: `git sandbox list` shows them"));
    }
    Some(CliError { message: format!("cannot start {}", names.join(", ")), causes, hints, status: first.status })
}

/// Starts several sandboxes that were just made, all at once. Those that cannot be started go as
/// they came, and are named; the others stay.
pub fn start_many(
    context: &Context,
    store: &Store,
    made: Vec<(Sandbox, FileLock)>,
    args: &Launch<'_>,
) -> (Vec<Sandbox>, Vec<(String, CliError)>) {
    let mut failed: Vec<(String, CliError)> = Vec::new();
    let mut running = Vec::new();
    // Each step for all of them before the next: nobody waits for another one's launch.
    for (sandbox, lock) in made {
        match start(context, store, &sandbox, lock, !args.command.is_empty()) {
            Ok(connection) => running.push((sandbox, connection)),
            Err(error) => {
                sandbox_core::prepare::undo(store, &sandbox);
                failed.push((sandbox.name().to_owned(), error));
            }
        }
    }
    let mut begun = Vec::new();
    let mut syncing = Vec::new();
    for (sandbox, mut connection) in running {
        syncing.push(crate::plumbing::sync::start(&context.program, store, &sandbox, false));
        super::watch::start_always(context, store, &sandbox);
        match begin(store, &sandbox, &mut connection, args) {
            Ok(stream) => begun.push((sandbox, connection, stream)),
            Err(error) => failed.push((sandbox.name().to_owned(), error)),
        }
    }
    let mut started = Vec::new();
    for (sandbox, mut connection, stream) in begun {
        match began(store, &sandbox, &mut connection, stream, args) {
            Ok(()) => started.push(sandbox),
            Err(error) => failed.push((sandbox.name().to_owned(), error)),
        }
    }
    (started, failed)
}

/// Checks out a branch if one is asked for, and asks for the command. What was never started is
/// taken back.
fn begin(store: &Store, sandbox: &Sandbox, connection: &mut Connection, args: &Launch<'_>) -> Result<u32, CliError> {
    if let Err(error) = begin_inside(connection, sandbox, args) {
        let _ = super::stop::stop(sandbox, Duration::ZERO);
        sandbox_core::prepare::undo(store, sandbox);
        return Err(error);
    }
    let stream = connection.open();
    if !args.command.is_empty() {
        let mut request = exec_request(&command(sandbox), args.cwd, false, true);
        request.tty = args.tty.then(window);
        connection.send(stream, &Message::Exec(request))?;
    }
    Ok(stream)
}

/// Waits until the command (or, without one, the sandbox) runs.
fn began(
    store: &Store,
    sandbox: &Sandbox,
    connection: &mut Connection,
    stream: u32,
    args: &Launch<'_>,
) -> Result<(), CliError> {
    if args.command.is_empty() {
        let answer = connection.ask(&Message::AskStatus, 1 << 20);
        if let Err(sandbox_core::connection::ConnectionError::Refused(failure)) = answer {
            sandbox_core::prepare::undo(store, sandbox);
            return Err(crate::start::refused(&failure));
        }
        answer?;
        return Ok(());
    }
    if let Err(error) = wait_started(connection, stream) {
        if started(sandbox) {
            drop(sandbox.take(sandbox.patience()));
        } else {
            sandbox_core::prepare::undo(store, sandbox);
        }
        return Err(error);
    }
    connection.send(stream, &Message::CloseStdin)?;
    Ok(())
}

fn detached(
    context: &Context,
    store: &Store,
    sandbox: &Sandbox,
    connection: &mut Connection,
    args: &Launch<'_>,
) -> Outcome {
    let stream = begin(store, sandbox, connection, args)?;
    began(store, sandbox, connection, stream, args)?;
    if args.json {
        print_json(&super::list::row(context, store, sandbox, &super::list::memory_by_namespace())?)?;
    } else {
        println!("{}", sandbox.name());
        if !args.quiet && isatty(io::stderr()) {
            eprintln!(
                "hint: `git sandbox logs -f {0}` shows its output, `git sandbox shell {0}` opens a shell in it",
                sandbox.name()
            );
        }
    }
    Ok(0)
}

fn dry_run(context: &Context, store: &Store, sandbox: &Sandbox, carried: &Carried, policy: Option<&Policy>) -> Outcome {
    let spec = crate::vm::launch_spec(context, store, sandbox, Mode::Work)?;
    print!("{}", driver(&sandbox.record.driver)?.plan(&spec)?);
    for item in carried.items() {
        println!("carry     ~/{}", escape(&item.at.to_string_lossy()));
    }
    for rule in policy.iter().flat_map(|policy| &policy.rules.allow) {
        println!("allow     {rule}");
    }
    for rule in policy.iter().flat_map(|policy| &policy.rules.deny) {
        println!("deny      {rule}");
    }
    Ok(0)
}

/// A driver by its name.
pub fn driver(name: &str) -> Result<&'static dyn Driver, CliError> {
    sandbox_drivers::by_name(name).ok_or_else(|| {
        let known: Vec<&str> = sandbox_drivers::all().iter().map(|driver| driver.name()).collect();
        CliError::usage(format!("there is no driver '{}'", escape(name)))
            .hint(format!("one of: {}; `git sandbox doctor` tells about them", known.join(", ")))
    })
}

/// The driver that is asked for, else the first that this program has with a wall as hard as is asked for.
pub fn chosen_driver(context: &Context, flag: Option<&str>, min: Option<Isolation>) -> Result<String, CliError> {
    let name = flag.map(str::to_owned).or_else(|| context.setting("sandbox.driver")).unwrap_or_else(|| "auto".into());
    if name != "auto" {
        return Ok(name);
    }
    let all = sandbox_drivers::all();
    let hard = all.iter().find(|driver| min.is_none_or(|min| driver.isolation() >= min));
    // Where none is, what is missing is said of the first.
    let driver = hard.or(all.first()).ok_or_else(|| CliError::new("this program has no driver"))?;
    Ok(driver.name().to_owned())
}

fn isolation(wish: cli::IsolationWish) -> Isolation {
    match wish {
        cli::IsolationWish::Namespace => Isolation::Namespace,
        cli::IsolationWish::Vm => Isolation::Vm,
    }
}

/// Where programs are looked for: `PATH`, and before it the directory of a command that is named by
/// its whole path.
fn program_path(context: &Context, command: &[OsString]) -> OsString {
    let mut path = OsString::new();
    if let Some(dir) = command.first().map(Path::new).filter(|word| word.is_absolute()).and_then(Path::parent) {
        path.push(dir);
        path.push(":");
    }
    path.push(context.vars.get("PATH").map_or("", String::as_str));
    path
}

/// A terminal for the command when both ends of ours are one.
fn standard(asked: bool) -> (bool, Input) {
    let terminal = interactive();
    let tty = asked || terminal;
    let input = match (terminal, isatty(io::stdin())) {
        (true, _) => Input::Terminal,
        // A terminal whose output goes elsewhere: keys are for the shell that reads it.
        (false, true) => Input::None,
        (false, false) => Input::Pipe,
    };
    (tty, input)
}

fn time(text: &str) -> Result<u64, CliError> {
    parse_duration(text)
        .filter(|seconds| *seconds > 0)
        .ok_or_else(|| CliError::usage(format!("'{}' is not a time", escape(text))).hint("for example 90s, 10m, 2h"))
}

/// Limits as the command line says them.
#[derive(Clone, Copy, Default)]
pub struct AskedLimits<'a> {
    /// `--memory SIZE`.
    pub memory: Option<&'a str>,
    /// `--cpus N`.
    pub cpus: Option<f64>,
    /// `--pids N`.
    pub pids: Option<u32>,
    /// `--disk SIZE`.
    pub disk: Option<&'a str>,
}

/// The limits of a sandbox: what is asked for, what is set, else what everybody gets.
pub fn limits(context: &Context, args: &AskedLimits<'_>, isolation: Isolation) -> Result<Limits, CliError> {
    let bytes = |text: &str| parse_size(text).filter(|size| *size > 0);
    // A machine of its own has its memory from the start, and all of it: another size may suit it.
    let (key, own) = match isolation {
        Isolation::Vm if context.setting("sandbox.vm.memory").is_some() => ("sandbox.vm.memory", true),
        _ => ("sandbox.memory", false),
    };
    let memory = match (args.memory, context.setting(key)) {
        (Some("none"), _) => None,
        (Some(text), _) => Some(bytes(text).ok_or_else(|| {
            CliError::usage(format!("'{}' is not a size", escape(text))).hint("for example 512m, 4g, or none")
        })?),
        (None, Some(text)) if text == "none" && !own => None,
        (None, Some(text)) => Some(bytes(&text).ok_or_else(|| {
            let hint = if own { "it is a size such as 4g" } else { "it is a size such as 4g, or none" };
            CliError::new(format!("'{}' is not a value of {key}", escape(&text))).hint(hint)
        })?),
        (None, None) => Some(DEFAULT_MEMORY.min(machine_memory() / 2)),
    };
    let cpu_percent = match args.cpus {
        Some(cpus) if cpus > 0.0 && cpus.is_finite() => Some((cpus * 100.0).round().max(1.0) as u32),
        Some(cpus) => {
            return Err(CliError::usage(format!("'{cpus}' is not a number of processors")).hint("for example 1.5"));
        }
        None => None,
    };
    let pids = match (args.pids, context.setting("sandbox.pids")) {
        (Some(pids), _) if pids >= LEAST_PIDS => pids,
        (Some(pids), _) => {
            return Err(CliError::usage(format!("{pids} processes are too few"))
                .hint(format!("at least {LEAST_PIDS}: some are the sandbox's own")));
        }
        (None, Some(text)) => text.parse().ok().filter(|pids| *pids >= LEAST_PIDS).ok_or_else(|| {
            CliError::new(format!("'{}' is not a value of sandbox.pids", escape(&text)))
                .hint(format!("it is a number, at least {LEAST_PIDS}"))
        })?,
        (None, None) => DEFAULT_PIDS,
    };
    let disk = match (args.disk, context.setting("sandbox.disk")) {
        (Some(text), _) => disk_limit(text)?,
        (None, Some(text)) if text == "none" => None,
        (None, Some(text)) => Some(bytes(&text).ok_or_else(|| {
            CliError::new(format!("'{}' is not a value of sandbox.disk", escape(&text)))
                .hint("it is a size such as 20g, or none")
        })?),
        (None, None) => None,
    };
    Ok(Limits { memory, pids: Some(pids), cpu_percent, disk })
}

/// The value of `--disk`.
pub fn disk_limit(text: &str) -> Result<Option<u64>, CliError> {
    match parse_size(text).filter(|size| *size > 0) {
        None if text == "none" => Ok(None),
        None => {
            Err(CliError::usage(format!("'{}' is not a size", escape(text))).hint("for example 512m, 20g, or none"))
        }
        size => Ok(size),
    }
}

fn machine_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram as u64 * u64::from(info.mem_unit)
}

/// The caller's own spelling of the tree's path, as a link.
pub fn links(context: &Context, top: &Path) -> Vec<(PathBuf, PathBuf)> {
    let Some(spelled) = &context.spelled else { return Vec::new() };
    let Ok(below) = context.cwd.strip_prefix(top) else { return Vec::new() };
    let mut link = spelled.clone();
    for _ in below.components() {
        link.pop();
    }
    // Only if cutting the same number of components still names the tree.
    match std::fs::canonicalize(&link) {
        Ok(real) if real == top && link != top => vec![(link, top.to_owned())],
        _ => Vec::new(),
    }
}
