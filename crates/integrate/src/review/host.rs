//! The host's effective configuration, as far as it makes a path of the tree dangerous: where its hooks
//! are, which programs and files of the tree its settings name, which drivers it has.

use super::{Changed, Finding, Grade};
use crate::path::Mode;
use sandbox_git::config::{Listing, Setting, split_key};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// A hook of the host outside the tree.
#[derive(Clone, Debug, Default)]
pub struct HookFile {
    /// `pre-commit`
    pub name: String,
    /// Its text, as far as it is looked into.
    pub text: Vec<u8>,
    /// Where it leads, if it is a symlink.
    pub target: Option<PathBuf>,
}

/// Who names a path, and how.
#[derive(Clone, Debug)]
struct Naming {
    /// `your 'core.fsmonitor'`
    who: String,
    when: String,
    /// It runs or reads the path whatever that is; otherwise the path may be an argument.
    sure: bool,
}

/// The host's effective configuration.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// The directory of hooks, if it is in the tree; empty: the top.
    hooks: Option<Vec<u8>>,
    /// Commands of configured drivers, by `filter.lfs`.
    drivers: BTreeMap<String, Vec<String>>,
    /// Who names a path of the tree.
    named: BTreeMap<Vec<u8>, Vec<Naming>>,
    /// Git itself goes into submodules.
    pub(super) recurses: bool,
}

/// Events of hooks and the command at which each is run.
const EVENTS: &[(&str, &str)] = &[
    ("pre-commit", "git commit"),
    ("prepare-commit-msg", "git commit"),
    ("commit-msg", "git commit"),
    ("post-commit", "git commit"),
    ("pre-merge-commit", "git merge"),
    ("post-merge", "git merge"),
    ("post-checkout", "git checkout"),
    ("pre-rebase", "git rebase"),
    ("post-rewrite", "git rebase"),
    ("pre-push", "git push"),
    ("applypatch-msg", "git am"),
    ("pre-applypatch", "git am"),
    ("post-applypatch", "git am"),
    ("pre-auto-gc", "git gc"),
    ("sendemail-validate", "git send-email"),
];

impl Host {
    /// Reads the settings of `listing` for the tree at `worktree`. `home` is what `~/` stands for;
    /// `hooks` are the hooks that are not in the tree.
    pub fn new(listing: &Listing, worktree: &Path, home: Option<&Path>, hooks: &[HookFile]) -> Self {
        let mut host = Self::default();
        let tree = Tree { top: worktree, home };
        for setting in &listing.0 {
            host.setting(setting, &tree);
        }
        host.hooks = listing.value("core.hookspath").and_then(|path| tree.inside(path));
        let is_on = |key: &str| listing.get(key).is_some_and(Setting::is_true);
        host.recurses = is_on("submodule.recurse") || is_on("fetch.recursesubmodules");
        for hook in hooks {
            let naming = |sure| Naming { who: format!("your hook '{}'", hook.name), when: event(&hook.name), sure };
            if let Some(path) = hook.target.as_deref().and_then(|target| tree.relative(target)) {
                host.name(path, naming(true));
            }
            for word in tree.words(&String::from_utf8_lossy(&hook.text)) {
                host.name(word, naming(false));
            }
        }
        host
    }

    fn name(&mut self, path: Vec<u8>, naming: Naming) {
        let all = self.named.entry(path).or_default();
        if all.iter().all(|known| known.who != naming.who) {
            all.push(naming);
        }
    }

    fn setting(&mut self, setting: &Setting, tree: &Tree<'_>) {
        let Some(value) = setting.value.as_deref() else { return };
        let (section, sub, name) = split_key(&setting.key);
        let who = || format!("your '{}'", setting.key);
        if let (Some(sub), true) = (sub, matches!(section, "filter" | "diff" | "merge")) {
            let runs = matches!(name, "clean" | "smudge" | "process" | "driver" | "command" | "textconv");
            if runs {
                self.drivers.entry(format!("{section}.{sub}")).or_default().push(value.to_owned());
            }
        }
        // A file of the tree that is itself configuration, read or not yet there.
        let origin = setting.file.as_deref().map(|file| tree.top.join(file));
        if let Some(path) = origin.as_deref().and_then(|file| tree.relative(file)) {
            let naming =
                Naming { who: "your git configuration".into(), when: "at the next git command".into(), sure: true };
            self.name(path, naming);
        }
        if matches!(section, "include" | "includeif") && name == "path" {
            let beside = origin.as_deref().and_then(Path::parent).unwrap_or(tree.top);
            if let Some(path) = tree.relative(&tree.expand(value, beside)) {
                self.name(path, Naming { who: who(), when: "at the next git command".into(), sure: true });
            }
            return;
        }
        // Of aliases only those that are commands of a shell.
        if section == "alias" && !value.starts_with('!') {
            return;
        }
        // No programs of git, nor paths that it reads.
        if matches!(section, "user" | "author" | "committer" | "remote" | "branch" | "url" | "sandbox") {
            return;
        }
        let when = match section {
            "alias" => format!("with `git {}`", sub.unwrap_or(name)),
            "filter" => "at the next checkout or `git add`".into(),
            "diff" => "at the next `git diff`".into(),
            "merge" => "at the next `git merge`".into(),
            _ => "at the next git command".into(),
        };
        for word in tree.words(value) {
            self.name(word, Naming { who: who(), when: when.clone(), sure: true });
        }
    }

    /// The commands of a configured driver; `None`: it is not configured.
    pub(super) fn driver(&self, kind: &str, name: &str) -> Option<String> {
        self.drivers.get(&format!("{kind}.{name}")).map(|commands| commands.join(" | "))
    }

    /// Returns whether it is one of the host's hooks.
    pub(super) fn look(&self, change: &Changed, all: &mut Vec<Finding>) -> bool {
        let (path, mut is_hook) = (&change.path, false);
        if let Some(dir) = &self.hooks
            && let Some(name) = below(path.as_bytes(), dir)
        {
            let name = String::from_utf8_lossy(name);
            let known = all.len();
            if name == "reference-transaction" || EVENTS.iter().any(|(known, _)| *known == name) {
                all.push(Finding::red(path, format!("is your git hook '{name}'")).when(event(&name)).by_host());
            } else if !dir.is_empty() {
                let why = "is among your git hooks, by your 'core.hookspath'";
                all.push(Finding::red(path, why).when("at the next git command with a hook").by_host());
            }
            is_hook = all.len() > known;
        }
        for naming in self.named.get(path.as_bytes()).into_iter().flatten() {
            let grade = if naming.sure || is_program(change) { Grade::Red } else { Grade::Amber };
            let finding = Finding::new(grade, path, format!("is named by {}", naming.who)).when(naming.when.clone());
            all.push(if grade == Grade::Red { finding.by_host() } else { finding });
        }
        is_hook
    }
}

fn event(name: &str) -> String {
    match EVENTS.iter().find(|(event, _)| *event == name) {
        Some((_, command)) => format!("at the next `{command}`"),
        None => "at the next git command".to_owned(),
    }
}

/// What is below a directory; of the top, only what is directly in it.
fn below<'p>(path: &'p [u8], dir: &[u8]) -> Option<&'p [u8]> {
    if dir.is_empty() {
        return (!path.contains(&b'/')).then_some(path);
    }
    path.strip_prefix(dir)?.strip_prefix(b"/")
}

/// Whether it looks like something that is run, not read.
fn is_program(change: &Changed) -> bool {
    let Some(new) = &change.new else { return false };
    let ends = |end: &&str| change.path.name().ends_with(end.as_bytes());
    new.entry.mode == Mode::Executable
        || new.bytes().is_some_and(|bytes| bytes.starts_with(b"#!"))
        || [".sh", ".bash", ".py", ".rb", ".pl", ".js", ".mjs", ".cjs", ".ts"].iter().any(ends)
}

/// The tree, and how names in settings lead into it.
struct Tree<'a> {
    top: &'a Path,
    home: Option<&'a Path>,
}

impl Tree<'_> {
    /// A path as git reads one: `~/`, absolute, or relative to `base`.
    fn expand(&self, text: &str, base: &Path) -> PathBuf {
        match (text.strip_prefix("~/"), self.home) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => base.join(text),
        }
    }

    /// The path relative to the top; `None` if it is not in the tree, or in a git directory.
    fn relative(&self, path: &Path) -> Option<Vec<u8>> {
        let plain = lexical(path);
        let relative = plain.strip_prefix(self.top).ok()?;
        let is_git = relative.components().any(|part| part.as_os_str().eq_ignore_ascii_case(".git"));
        (!is_git).then(|| relative.as_os_str().as_bytes().to_vec())
    }

    /// A directory that a setting names, if it is in the tree.
    fn inside(&self, text: &str) -> Option<Vec<u8>> {
        self.relative(&self.expand(text, self.top))
    }

    /// Words of a command line that could be paths of the tree.
    fn words(&self, text: &str) -> Vec<Vec<u8>> {
        let split = |c: char| c.is_whitespace() || "'\"`;|&()<>={}[],:".contains(c);
        let mut all = Vec::new();
        let first = text.split(split).find(|word| !word.is_empty());
        for word in text.split(split).filter(|word| !word.is_empty() && word.len() < 4096) {
            let word = word.trim_start_matches('!');
            // The first word without a slash is looked up in PATH.
            if !word.contains('/') && first.is_some_and(|first| first.trim_start_matches('!') == word) {
                continue;
            }
            // `$(git rev-parse --show-toplevel)/x` leaves `/x`, `$ROOT/x` a variable before it.
            let rest = word.strip_prefix('$').and_then(|name| name.split_once('/')).map_or(word, |(_, rest)| rest);
            for candidate in [Some(rest), rest.strip_prefix('/')].into_iter().flatten() {
                all.extend(self.inside(candidate).filter(|path| !path.is_empty()));
            }
        }
        all
    }
}

/// Without `.` and `..`, by the text alone.
fn lexical(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(plain.pop()),
            part => plain.push(part),
        }
    }
    plain
}

#[cfg(test)]
impl Host {
    /// Whether anything of the host names this path.
    pub(super) fn names(&self, path: &str) -> bool {
        self.named.contains_key(path.as_bytes())
    }
}
