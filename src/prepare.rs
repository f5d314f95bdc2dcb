//! Capturing on behalf of `spawn`: what the user is asked and shown around it.

use crate::cli;
use crate::context::Context;
use crate::error::CliError;
use crate::project::Project;
use crate::signals::Interrupt;
use crate::text::{count, escape_bytes, size};
use crate::view::{View, capture_limit};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::termios::isatty;
use sandbox_capture::{Decision, Estimate, Progress, Secrets};
use sandbox_core::gitdir::Grant;
use sandbox_core::host_repo::HostRepo;
use sandbox_core::id::RepoId;
use sandbox_core::launch::User;
use sandbox_core::prepare::{Request, Source, Taken};
use sandbox_core::record::RepoRecord;
use sandbox_core::store::{RepoLocks, Store, read_json, write_twice};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Names that are shown of a longer list.
const NAMED: usize = 5;

/// What the command line says about a capture.
pub struct Asked<'a> {
    /// Refs that are granted besides those of `sandbox.grant`.
    pub grant: &'a [String],
    /// Files that look like secrets are carried, or not, without a question.
    pub carry_secrets: Option<cli::YesNo>,
    /// Nothing is told.
    pub quiet: bool,
    /// A question may be asked.
    pub ask: bool,
    /// What a sandbox is to stand on: of what is too large for it nothing is captured.
    pub view: Option<&'a View>,
}

/// What is captured.
#[derive(Clone, Copy)]
pub struct Of<'a> {
    /// The repository; a plain directory has none.
    pub repo: Option<&'a HostRepo>,
    /// The top of the working tree.
    pub top: &'a Path,
    /// Of what.
    pub source: &'a Source,
    /// It comes along with another one.
    pub along: bool,
}

impl Of<'_> {
    /// A path in it, as it is told.
    fn shown(&self, path: &Path) -> String {
        let path = match (self.along, path.as_os_str().is_empty()) {
            (false, _) => path.to_owned(),
            (true, true) => self.top.to_owned(),
            (true, false) => self.top.join(path),
        };
        escape_bytes(path.as_os_str().as_bytes())
    }

    /// What carries secrets, or leaves them out, from now on.
    fn setting(&self, value: &str) -> String {
        match (self.repo, self.along) {
            (None, _) => format!("`--carry-secrets {}`", if value == "false" { "no" } else { "yes" }),
            (Some(_), true) => format!("`git -C '{}' config sandbox.carrySecrets {value}`", self.shown(Path::new(""))),
            (Some(_), false) => format!("`git config sandbox.carrySecrets {value}`"),
        }
    }
}

/// Files look like secrets, and nobody said what is to become of such files. It is asked when what was taken is let
/// go: whoever waits for a lock would wait for the user. Then it is captured anew.
pub struct Question {
    repo: RepoId,
    left: Vec<PathBuf>,
}

/// Captures; [`tell`] tells of it. `answer` is the user's, if there was a [`Question`].
pub fn take(
    context: &Context,
    store: &Store,
    of: Of<'_>,
    user: &User,
    args: &Asked<'_>,
    project: &Project,
    answer: Option<bool>,
) -> Result<(Taken, Option<Question>), CliError> {
    let secrets = match (project.no_secrets, answer) {
        (true, _) => Some(false),
        (false, Some(answer)) => Some(answer),
        (false, None) => secrets(context, store, of, args)?,
    };
    let limit = capture_limit(context)?;
    let with: Vec<PathBuf> = context.settings("sandbox.captureWith").iter().map(PathBuf::from).collect();
    let mut grants: Vec<Grant> =
        args.grant.iter().map(|pattern| Grant { pattern: pattern.clone(), required: true }).collect();
    if of.along {
        // What is granted by name is of the main repository.
        grants.clear();
    }
    grants.extend(context.settings("sandbox.grant").into_iter().map(|pattern| Grant { pattern, required: false }));
    let all_objects = all_objects(context);
    let bar = Bar::new(args.quiet, args.view.and_then(View::most));
    let interrupted =
        |error| if bar.asked.load(Ordering::SeqCst) { interrupted_error() } else { CliError::from(error) };
    let request = Request {
        git: context.git()?,
        store,
        host: of.repo,
        top: of.top,
        source: of.source,
        user,
        secrets: if secrets == Some(true) { Secrets::Carry } else { Secrets::LeaveOut },
        capture_limit: limit,
        with: &with,
        grants: &grants,
        all_objects,
        threads: threads(),
        progress: &bar,
        watch: crate::verbs::watch::wish(context)? != crate::verbs::watch::Wish::Never,
    };
    let listening = Interrupt::listen(&bar.asked);
    let taken = sandbox_core::prepare::take(&request);
    drop(listening);
    bar.finish();
    if let (Some(bytes), Some(view)) = (bar.refused(), args.view) {
        view.choose(Some(bytes))?;
    }
    let taken = taken.map_err(interrupted)?;
    if bar.asked.load(Ordering::SeqCst) {
        return Err(interrupted_error());
    }
    let ask = args.ask && secrets.is_none() && !taken.told.secrets_left.is_empty() && asks();
    let question = ask.then(|| Question { repo: taken.repo.clone(), left: taken.told.secrets_left.clone() });
    Ok((taken, question))
}

/// `sandbox.objects = all`.
fn all_objects(context: &Context) -> bool {
    context.setting("sandbox.objects").as_deref() == Some("all")
}

/// Threads to scan and copy with.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(1, 8)
}

/// Somebody wanted no sandbox any more while it was being made.
fn interrupted_error() -> CliError {
    CliError::new("interrupted: no sandbox was made, and nothing of it is left").status(130)
}

/// Whether there is somebody to ask.
pub fn asks() -> bool {
    isatty(io::stdin()) && isatty(io::stderr())
}

/// What is known of the user's wish: the flag, `sandbox.carrySecrets`, the answer given before.
fn secrets(context: &Context, store: &Store, of: Of<'_>, args: &Asked<'_>) -> Result<Option<bool>, CliError> {
    if let Some(flag) = args.carry_secrets {
        return Ok(Some(flag == cli::YesNo::Yes));
    }
    if let Some(setting) = context.setting("sandbox.carrySecrets") {
        return match setting.as_str() {
            "true" | "yes" | "on" | "1" => Ok(Some(true)),
            "false" | "no" | "off" | "0" => Ok(Some(false)),
            other => {
                Err(CliError::new(format!("'{}' is not a value of sandbox.carrySecrets", crate::text::escape(other)))
                    .hint("it is true or false"))
            }
        };
    }
    let known = match of.repo {
        Some(repo) => repo.known_id(store)?,
        None => sandbox_core::directory::known_id(store, of.top)?,
    };
    let Some(id) = known else { return Ok(None) };
    let record: Option<RepoRecord> = read_json(&store.repo(&id).record())?;
    Ok(record.and_then(|record| record.carry_secrets))
}

/// Asks, and remembers the answer. The caller holds no lock of a repository.
pub fn ask_secrets(store: &Store, question: &Question, of: Of<'_>) -> Result<bool, CliError> {
    let left = &question.left;
    match left.len() {
        1 => eprintln!("1 file looks like a secret and is not in git:"),
        n => eprintln!("{n} files look like secrets and are not in git:"),
    }
    for path in left.iter().take(NAMED) {
        eprintln!("  {}", of.shown(path));
    }
    if left.len() > NAMED {
        eprintln!("  … and {} more", left.len() - NAMED);
    }
    match (of.along, of.repo) {
        (false, _) => eprint!("shall sandboxes of this repository have them? [y/N] "),
        (true, Some(_)) => eprint!("shall sandboxes that have that repository have them? [y/N] "),
        (true, None) => eprint!("shall sandboxes that have that directory have them? [y/N] "),
    }
    let _ = io::stderr().flush();
    let carry = crate::leave::yes(false);
    let path = store.repo(&question.repo).record();
    let _lock = RepoLocks::take(store, [&question.repo])?;
    if let Some(mut record) = read_json::<RepoRecord>(&path)? {
        record.carry_secrets = Some(carry);
        write_twice(&path, &record, true)?;
    }
    match of.repo {
        Some(_) => eprintln!("remembered: {} changes it", of.setting("true|false")),
        None => eprintln!("remembered: `--carry-secrets yes|no` says otherwise for one sandbox"),
    }
    Ok(carry)
}

/// Says what is not as the user sees it.
pub fn tell(context: &Context, taken: &Taken, of: Of<'_>) {
    let names = |paths: &[PathBuf]| {
        let shown: Vec<String> = paths.iter().take(NAMED).map(|path| of.shown(path)).collect();
        let more = if paths.len() > NAMED { format!(", … ({} more)", paths.len() - NAMED) } else { String::new() };
        shown.join(", ") + &more
    };
    let told = &taken.told;
    if !told.secrets_left.is_empty() {
        eprintln!("left out, because it looks like a secret: {}", names(&told.secrets_left));
        eprintln!("hint: {} carries such files", of.setting("true"));
    }
    if !told.secrets_carried.is_empty() {
        eprintln!("carried although it looks like a secret: {}", names(&told.secrets_carried));
    }
    let mut reasons: Vec<&str> = told.left_out.iter().map(|(_, why)| *why).collect();
    reasons.sort_unstable();
    reasons.dedup();
    for why in reasons {
        let paths: Vec<PathBuf> =
            told.left_out.iter().filter(|(_, w)| *w == why).map(|(path, _)| path.clone()).collect();
        eprintln!("left out ({why}): {}", names(&paths));
    }
    if !told.unsettled.is_empty() {
        eprintln!("kept changing while it was captured: {}", names(&told.unsettled));
    }
    for note in &told.notes {
        match of.along {
            true => eprintln!("note: in '{}': {}", of.shown(Path::new("")), crate::text::escape(note)),
            false => eprintln!("note: {}", crate::text::escape(note)),
        }
    }
    if all_objects(context) && of.repo.is_some() {
        let which = if of.along { format!("'{}'", of.shown(Path::new(""))) } else { "this repository".into() };
        eprintln!("note: every object of {which} is visible inside (sandbox.objects = all)");
    }
}

/// The progress of a first copy, and of a full copy for one sandbox.
pub struct Bar {
    bar: Mutex<Option<ProgressBar>>,
    quiet: bool,
    /// Bytes from which on nothing is copied.
    most: Option<u64>,
    refused: Mutex<Option<u64>>,
    /// Somebody wants an end of it.
    asked: Arc<AtomicBool>,
}

impl Bar {
    /// Begins with nothing drawn. A capture of more than `most` bytes is given up.
    pub fn new(quiet: bool, most: Option<u64>) -> Self {
        Self { bar: Mutex::new(None), quiet, most, refused: Mutex::new(None), asked: Arc::default() }
    }

    /// The bytes of a capture that was given up.
    fn refused(&self) -> Option<u64> {
        self.refused.lock().ok().and_then(|refused| *refused)
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = self.bar.lock().ok().and_then(|mut bar| bar.take()) {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bar {
    fn estimate(&self, estimate: &Estimate) -> Decision {
        if self.most.is_some_and(|most| estimate.bytes > most) {
            if let Ok(mut refused) = self.refused.lock() {
                *refused = Some(estimate.bytes);
            }
            return Decision::Abort;
        }
        if self.quiet {
            return Decision::Continue;
        }
        eprintln!(
            "first capture: {} of {} will be copied, once",
            count(estimate.files as usize, "file"),
            size(estimate.bytes)
        );
        for (path, bytes) in &estimate.largest {
            eprintln!("  {:>10}  {}", size(*bytes), escape_bytes(path.as_os_str().as_bytes()));
        }
        if let Some((path, _)) = estimate.largest.first() {
            eprintln!(
                "hint: to leave it out: echo '/{}/' >> .sandboxignore",
                escape_bytes(path.as_os_str().as_bytes())
            );
        }
        if let Ok(mut bar) = self.bar.lock() {
            *bar = Some(progress_bar("capturing", estimate.bytes));
        }
        Decision::Continue
    }

    fn whole(&self, _files: u64, bytes: u64) {
        if !self.quiet
            && bytes > ANNOUNCED_COPY
            && let Ok(mut bar) = self.bar.lock()
        {
            *bar = Some(progress_bar("copying", bytes));
        }
    }

    fn goes_on(&self) -> bool {
        !self.asked.load(Ordering::Relaxed)
    }

    fn copied(&self, _files: u64, bytes: u64) {
        // Small copies are over before a bar is worth drawing.
        if self.quiet {
            return;
        }
        if let Ok(bar) = self.bar.lock()
            && let Some(bar) = bar.as_ref()
        {
            bar.inc(bytes);
        }
    }
}

/// A full copy of more bytes than this has a bar: it takes longer than anybody waits without asking why.
const ANNOUNCED_COPY: u64 = 128 << 20;

fn progress_bar(what: &str, total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    if let Ok(style) =
        ProgressStyle::with_template(&format!("{what} {{bar:30}} {{bytes}}/{{total_bytes}}, {{eta}} left"))
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Places that cannot be a sandbox's tree.
pub fn refuse_place(context: &Context, store: &Store, top: &Path) -> Result<(), CliError> {
    let shown = top.display();
    // Records are JSON and say paths as text.
    if let Some(path) = [top, context.cwd.as_path(), context.home.as_path()].iter().find(|path| path.to_str().is_none())
    {
        return Err(CliError::new(format!("'{}' is not valid UTF-8", escape_bytes(path.as_os_str().as_bytes())))
            .hint("rename the directory: a sandbox's tree is at the same path"));
    }
    let system = ["/", "/etc", "/usr", "/bin", "/lib", "/proc", "/sys", "/dev", "/run", "/boot"];
    if system.iter().any(|dir| top == Path::new(dir)) {
        return Err(CliError::new(format!("'{shown}' cannot be a sandbox's working tree"))
            .cause("it is part of the system's own view inside".to_owned())
            .hint("use a repository in a directory of its own"));
    }
    if top.starts_with(store.root()) && !top.starts_with(store.mirrored()) {
        return Err(
            CliError::new(format!("'{shown}' is inside the state directory")).hint("use a repository outside of it")
        );
    }
    if store.root().starts_with(top) && top != context.home {
        return Err(CliError::new(format!(
            "the state directory '{}' is inside the working tree '{shown}'",
            store.root().display()
        ))
        .hint("`git config --global sandbox.stateDir DIR` names a directory outside of it"));
    }
    Ok(())
}

/// The name of the file system that a path is on.
pub fn filesystem(path: &Path) -> String {
    match rustix::fs::statfs(path).map(|stat| stat.f_type as u64 & 0xffff_ffff) {
        Ok(0x794c_7630) => "overlay".into(),
        Ok(0x6969) => "nfs".into(),
        Ok(0x0102_1994) => "tmpfs".into(),
        Ok(0xef53) => "ext4".into(),
        Ok(0x5846_5342) => "xfs".into(),
        Ok(0x9123_683e) => "btrfs".into(),
        Ok(0xca45_1a4e) => "bcachefs".into(),
        Ok(0x2fc1_2fc1) => "zfs".into(),
        Ok(other) => format!("file system 0x{other:x}"),
        Err(error) => error.to_string(),
    }
}

/// A bare repository has no working tree to take.
pub fn bare_hint(error: CliError) -> CliError {
    if error.message.contains("bare repository") {
        CliError { hints: vec!["`git sandbox spawn --from REV` takes the files of a revision".into()], ..error }
    } else {
        error
    }
}
