//! Every state that a working tree can be in when a sandbox is spawned from it: the rows of the
//! contract suite's table.

use crate::env::TestEnv;
use crate::repo::{Repo, set_mtimes};
use std::fs;
use std::os::unix::fs::symlink;

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Some commits, a tag, another branch, ignored and untracked nothing.
    Plain,
    /// Changed, deleted, untracked and ignored files, a changed mode.
    Dirty,
    /// Added, changed, renamed and removed in the index; the work tree agrees.
    Staged,
    /// Staged, then changed again; `add -N`; staged and deleted.
    StagedThenChanged,
    /// A merge that stopped at conflicts.
    Conflict,
    /// An interactive rebase that stopped at a conflict (merge backend).
    RebaseMerge,
    /// A rebase that stopped at a conflict (apply backend).
    RebaseApply,
    /// A cherry-pick of several commits that stopped at the first.
    CherryPick,
    /// A bisection under way.
    Bisect,
    /// Two stash entries, one with untracked files.
    Stash,
    /// `HEAD` names a commit.
    Detached,
    /// No commit yet, files staged and not.
    Unborn,
    /// A linked worktree of another repository.
    LinkedWorktree,
    /// A submodule with a change of its own.
    Submodule,
    /// Sparse checkout (cone) of one directory.
    Sparse,
    /// A shallow clone.
    Shallow,
    /// A partial clone: blobs are missing.
    Partial,
    /// Files that are pointers of Git LFS, and no LFS program.
    LfsPointers,
    /// SHA-256 object format.
    Sha256,
    /// The ref storage of git ≥ 2.45.
    Reftable,
    /// A repository inside that is not a submodule.
    Nested,
    /// Thousands of ignored files.
    LargeIgnored,
}

impl State {
    /// All rows.
    pub const ALL: &[Self] = &[
        Self::Plain,
        Self::Dirty,
        Self::Staged,
        Self::StagedThenChanged,
        Self::Conflict,
        Self::RebaseMerge,
        Self::RebaseApply,
        Self::CherryPick,
        Self::Bisect,
        Self::Stash,
        Self::Detached,
        Self::Unborn,
        Self::LinkedWorktree,
        Self::Submodule,
        Self::Sparse,
        Self::Shallow,
        Self::Partial,
        Self::LfsPointers,
        Self::Sha256,
        Self::Reftable,
        Self::Nested,
        Self::LargeIgnored,
    ];

    /// Why this git cannot make the state, if so.
    pub fn unavailable(self, env: &TestEnv) -> Option<String> {
        let old = self == Self::Reftable && !env.git_is_at_least(2, 45);
        old.then(|| format!("{} has no reftable", env.git_used()))
    }

    /// Makes a repository in this state.
    ///
    /// # Panics
    /// If git refuses a step of it.
    #[track_caller]
    pub fn build<'e>(self, env: &'e TestEnv, name: &str) -> Repo<'e> {
        let repo = env.repo_at(name);
        match self {
            Self::LinkedWorktree => {
                let main = base(env, &format!("{name}-main"));
                main.git(&["worktree", "add", "-q", "-b", "side", &repo.dir().to_string_lossy()]).ok();
                repo.write("src/a.c", "changed in the linked worktree\n");
                repo.write("new.txt", "new\n");
            }
            Self::Shallow | Self::Partial => {
                let origin = base(env, &format!("{name}-origin"));
                let url = format!("file://{}", origin.dir().display());
                origin.git(&["config", "uploadpack.allowFilter", "true"]).ok();
                let how: &[&str] = if self == Self::Shallow { &["--depth=1"] } else { &["--filter=blob:none"] };
                let dir = repo.dir().to_string_lossy();
                env.git(&env.home(), &[&["clone", "-q"], how, &[&url, &*dir]].concat()).ok();
                repo.write("src/a.c", "changed in the clone\n");
            }
            Self::Unborn => {
                fs::create_dir_all(repo.dir()).expect("new");
                repo.git(&["init", "-q"]).ok();
                fill(&repo);
                set_mtimes(repo.dir());
                repo.git(&["add", "src"]).ok();
            }
            Self::Sha256 => {
                fs::create_dir_all(repo.dir()).expect("new");
                repo.git(&["init", "-q", "--object-format=sha256"]).ok();
                history(&repo);
                repo.write("src/a.c", "changed\n");
            }
            Self::Reftable => {
                fs::create_dir_all(repo.dir()).expect("new");
                repo.git(&["init", "-q", "--ref-format=reftable"]).ok();
                history(&repo);
                repo.write("src/a.c", "changed\n");
            }
            _ => {
                init(&repo);
                self.change(&repo);
            }
        }
        repo
    }

    /// Brings a plain repository into the state.
    fn change(self, repo: &Repo) {
        match self {
            Self::Dirty => dirty(repo),
            Self::Staged => {
                repo.write("added.txt", "added\n");
                repo.write("src/a.c", "staged\n");
                repo.git(&["add", "added.txt", "src/a.c"]).ok();
                repo.git(&["mv", "src/b.c", "src/renamed.c"]).ok();
                repo.git(&["rm", "-q", "docs/guide.md"]).ok();
            }
            Self::StagedThenChanged => {
                repo.write("src/a.c", "staged\n");
                repo.write("both.txt", "added\n");
                repo.write("gone.txt", "added, then deleted\n");
                repo.git(&["add", "src/a.c", "both.txt", "gone.txt"]).ok();
                repo.write("src/a.c", "staged, then changed\n");
                repo.write("both.txt", "added, then changed\n");
                fs::remove_file(repo.dir().join("gone.txt")).expect("just made");
                repo.write("later.txt", "intent to add\n");
                repo.git(&["add", "-N", "later.txt"]).ok();
            }
            Self::Conflict => {
                repo.git(&["merge", "-q", "other"]).expect(1);
            }
            Self::RebaseMerge => {
                repo.git(&["rebase", "-q", "--merge", "other"]).expect(1);
            }
            Self::RebaseApply => {
                repo.git(&["rebase", "-q", "--apply", "other"]).expect(1);
            }
            Self::CherryPick => {
                repo.git(&["cherry-pick", "other~1", "other"]).expect(1);
            }
            Self::Bisect => {
                repo.git(&["bisect", "start", "HEAD", "HEAD~3"]).ok();
            }
            Self::Stash => {
                repo.write("src/a.c", "stashed first\n");
                repo.git(&["stash", "push", "-q", "-m", "first"]).ok();
                repo.write("src/b.c", "stashed second\n");
                repo.write("untracked.txt", "stashed too\n");
                repo.git(&["stash", "push", "-q", "-u", "-m", "second"]).ok();
                repo.write("src/a.c", "and now this\n");
            }
            Self::Detached => {
                repo.git(&["checkout", "-q", "HEAD~1"]).ok();
                repo.write("src/a.c", "changed while detached\n");
            }
            Self::Submodule => submodule(repo),
            Self::Sparse => {
                repo.git(&["sparse-checkout", "set", "--cone", "src"]).ok();
                repo.write("src/a.c", "changed in the cone\n");
            }
            Self::LfsPointers => lfs(repo),
            Self::Nested => {
                let inner = Repo::new(repo.env(), repo.dir().join("vendor/inner"));
                init(&inner);
                inner.write("src/a.c", "changed in the nested one\n");
                dirty(repo);
            }
            Self::LargeIgnored => {
                for dir in 0..40 {
                    for file in 0..75 {
                        repo.write(&format!("build/d{dir}/f{file}.o"), format!("{dir} {file}\n"));
                    }
                }
                dirty(repo);
            }
            // The others are made from nothing, not from a plain repository.
            _ => {}
        }
    }
}

/// A plain repository beside the one under test.
fn base<'e>(env: &'e TestEnv, name: &str) -> Repo<'e> {
    let repo = env.repo_at(name);
    init(&repo);
    repo
}

fn init(repo: &Repo) {
    fs::create_dir_all(repo.dir()).expect("new");
    repo.git(&["init", "-q"]).ok();
    history(repo);
}

/// The files that every row starts with.
fn fill(repo: &Repo) {
    repo.write("README.md", "A small project.\n");
    repo.write("src/a.c", "int a(void)\n{\n\treturn 1;\n}\n");
    repo.write("src/b.c", (1..=20).map(|n| format!("line {n}\n")).collect::<String>());
    repo.write("src/deep/er/c.c", "deep\n");
    repo.write("docs/guide.md", "How to use it.\n");
    repo.write("docs/name with space.txt", "space\n");
    repo.write("docs/h\u{e9}llo.txt", "not ASCII\n");
    repo.write("empty.txt", "");
    repo.write("bin/run.sh", "#!/bin/sh\necho run\n");
    repo.write(".gitignore", "build/\n*.log\n");
    repo.chmod("bin/run.sh", 0o755);
    symlink("README.md", repo.dir().join("link")).expect("new");
}

/// A few commits, a tag and a branch `other` that conflicts with `main`.
fn history(repo: &Repo) {
    fill(repo);
    set_mtimes(repo.dir());
    repo.git(&["add", "-A"]).ok();
    repo.git(&["commit", "-q", "-m", "Start"]).ok();
    repo.git(&["tag", "-a", "-m", "The first", "v1"]).ok();
    repo.git(&["checkout", "-q", "-b", "other"]).ok();
    repo.commit("docs/other.md", "other\n");
    repo.commit("src/a.c", "int a(void)\n{\n\treturn 2;\n}\n");
    repo.git(&["checkout", "-q", "main"]).ok();
    repo.commit("docs/main.md", "main\n");
    repo.commit("src/a.c", "int a(void)\n{\n\treturn 3;\n}\n");
    repo.commit("docs/more.md", "more\n");
    set_mtimes(repo.dir());
    repo.git(&["update-index", "-q", "--refresh"]).ok();
}

/// One of each kind of uncommitted change.
fn dirty(repo: &Repo) {
    repo.write("src/a.c", "changed\n");
    repo.chmod("src/b.c", 0o755);
    fs::remove_file(repo.dir().join("docs/guide.md")).expect("part of every row");
    fs::remove_file(repo.dir().join("link")).expect("part of every row");
    symlink("src", repo.dir().join("link")).expect("just removed");
    repo.write("new file.txt", "untracked\n");
    repo.write("newdir/x.txt", "untracked\n");
    repo.write("build/out.o", "ignored\n");
    repo.write("trace.log", "ignored\n");
    repo.write("private.txt", "for me\n");
    repo.chmod("private.txt", 0o600);
    repo.write("constant.txt", "read only\n");
    repo.chmod("constant.txt", 0o444);
    fs::create_dir_all(repo.dir().join("empty")).expect("new");
}

/// A submodule with one commit more than recorded and an uncommitted change.
fn submodule(repo: &Repo) {
    let name = repo.dir().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let library = base(repo.env(), &format!("{name}-library"));
    let path = library.dir().to_string_lossy().into_owned();
    repo.git(&["-c", "protocol.file.allow=always", "submodule", "add", "-q", &path, "lib"]).ok();
    repo.git(&["commit", "-q", "-m", "Add the library"]).ok();
    let inner = Repo::new(repo.env(), repo.dir().join("lib"));
    inner.commit("docs/in-submodule.md", "new\n");
    inner.write("src/a.c", "changed in the submodule\n");
}

/// Pointers as Git LFS writes them, with the filter in the attributes and not in the config.
fn lfs(repo: &Repo) {
    let oid = "4665a5ea423c2713d436b5ee50593a9640e0018c1550b5a0002f74190d6caea8";
    repo.write(".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n");
    repo.write("big.bin", format!("version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 12\n"));
    repo.git(&["add", "-A"]).ok();
    repo.git(&["commit", "-q", "-m", "Track large files"]).ok();
    repo.write("other.bin", format!("version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 13\n"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{gits, tree_digest};

    /// What makes each state that state, as a shell condition.
    fn sign(state: State) -> &'static str {
        match state {
            State::Plain => "test -z \"$(git status --porcelain)\" && git rev-parse -q --verify other",
            State::Dirty => "test $(git status --porcelain --ignored | wc -l) -eq 10",
            State::Staged => "git diff --quiet && test $(git diff --cached --name-only --no-renames | wc -l) -eq 5",
            State::StagedThenChanged => {
                "test \"$(git status --porcelain)\" = \"AM both.txt\nAD gone.txt\n A later.txt\nMM src/a.c\"
                 git status --porcelain | grep -q '^AD gone' && git status --porcelain | grep -q '^ A later'"
            }
            State::Conflict => "test -f .git/MERGE_HEAD && test -n \"$(git ls-files -u)\"",
            State::RebaseMerge => "test -d .git/rebase-merge && test -n \"$(git ls-files -u)\"",
            State::RebaseApply => "test -d .git/rebase-apply && test -n \"$(git ls-files -u)\"",
            State::CherryPick => "test -f .git/CHERRY_PICK_HEAD && git ls-files -u | grep -q src/a.c",
            State::Bisect => "test -f .git/BISECT_LOG && ! git symbolic-ref -q HEAD",
            State::Stash => "test $(git stash list | wc -l) -eq 2 && git rev-parse -q --verify stash@{0}^3",
            State::Detached => "! git symbolic-ref -q HEAD",
            State::Unborn => "! git rev-parse -q --verify HEAD && test -n \"$(git ls-files)\"",
            State::LinkedWorktree => "test -f .git && test $(git rev-parse --abbrev-ref HEAD) = side",
            State::Submodule => "git submodule status | grep -q '^+' && git -C lib status --porcelain | grep -q a.c",
            State::Sparse => "git ls-files -t | grep -q '^S docs' && test ! -e docs",
            State::Shallow => "test $(git rev-parse --is-shallow-repository) = true",
            State::Partial => "git rev-list --objects --missing=print HEAD | grep -q '^?'",
            State::LfsPointers => "git check-attr filter big.bin | grep -q lfs && grep -q oid other.bin",
            State::Sha256 => "test $(git rev-parse --show-object-format) = sha256",
            State::Reftable => "test -d .git/reftable",
            State::Nested => "test -d vendor/inner/.git && git status --porcelain | grep -q vendor",
            State::LargeIgnored => "test $(find build -type f | wc -l) -eq 3001",
        }
    }

    #[test]
    fn each_state_is_what_its_name_says() {
        std::thread::scope(|scope| {
            for git in gits() {
                scope.spawn(|| check_all(&TestEnv::with_git(git)));
            }
        });
    }

    fn check_all(env: &TestEnv) {
        for (n, state) in State::ALL.iter().enumerate() {
            if let Some(reason) = state.unavailable(env) {
                println!("{state:?}: {reason}");
                continue;
            }
            let repo = state.build(env, &format!("r{n}"));
            let seen = repo.sh(sign(*state));
            assert_eq!(seen.status, 0, "{state:?} with {}: {seen}\n{}", env.git_used(), repo.git(&["status"]).stdout);
        }
    }

    #[test]
    fn looking_changes_nothing() {
        let env = TestEnv::new();
        let repo = State::Dirty.build(&env, "r");
        let before = tree_digest(repo.dir());
        repo.git(&["status"]).ok();
        assert_eq!(tree_digest(repo.dir()), before);
        assert!(before.contains("constant.txt\tf 444 10 "), "{before}");
        assert!(before.contains("link\tl "), "{before}");
    }
}
