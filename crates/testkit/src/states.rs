//! Every state that a working tree can be in when a sandbox is spawned from it: the rows of the
//! contract suite's table.

use crate::env::TestEnv;
use crate::repo::{Repo, set_mtimes};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

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
    /// Entries marked skip-worktree and assume-unchanged, both changed.
    SkippedEntries,
    /// A revert that stopped at a conflict.
    Revert,
    /// Patches of a mailbox that stopped at one that does not apply.
    Am,
    /// Notes on commits, and a replaced commit.
    Notes,
    /// An index in two files.
    SplitIndex,
    /// An index that remembers what is untracked.
    UntrackedCache,
    /// Sparse checkout with whole directories as one entry of the index.
    SparseIndex,
    /// An index that was filled with the help of a file system monitor.
    FsMonitor,
    /// Objects of another repository, borrowed through `objects/info/alternates`.
    Alternates,
    /// A `.git` file that names a directory elsewhere.
    SeparateGitDir,
    /// Names that are not UTF-8, with newlines and quotes, and two that differ only in case.
    OddNames,
    /// Hard links, a sparse file, dangling and absolute symbolic links, files that may not be written.
    FileKinds,
    /// `core.fileMode=false`, `core.autocrlf`, `info/exclude`, `info/attributes`, `core.hooksPath`.
    Settings,
    /// A file changed to the same size in the same tick as the index was written.
    RacyChange,
    /// A hundred thousand tags and branches, packed.
    ManyRefs,
    /// A FIFO, a socket and, made by root, a device.
    SpecialFiles,
    /// A file and a directory with mode 000.
    Unreadable,
    /// A file of 5 GiB with data at both ends and in the middle.
    Huge,
    /// Attributes and access control lists, of files and of a directory.
    Attributes,
    /// A commit with other parents than it says, by `info/grafts`.
    Grafts,
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
        Self::SkippedEntries,
        Self::Revert,
        Self::Am,
        Self::Notes,
        Self::SplitIndex,
        Self::UntrackedCache,
        Self::SparseIndex,
        Self::FsMonitor,
        Self::Alternates,
        Self::SeparateGitDir,
        Self::OddNames,
        Self::FileKinds,
        Self::Settings,
        Self::RacyChange,
        Self::ManyRefs,
        Self::SpecialFiles,
        Self::Unreadable,
        Self::Huge,
        Self::Attributes,
        Self::Grafts,
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
            Self::Alternates => {
                let origin = base(env, &format!("{name}-origin"));
                let dirs = (origin.dir().to_string_lossy(), repo.dir().to_string_lossy());
                env.git(&env.home(), &["clone", "-q", "--shared", &dirs.0, &dirs.1]).ok();
                repo.commit("own.txt", "in the objects of its own\n");
                repo.write("src/a.c", "changed in the clone\n");
            }
            Self::SeparateGitDir => {
                fs::create_dir_all(repo.dir()).expect("new");
                let elsewhere = env.root().join(format!("{name}-gitdir"));
                repo.git(&["init", "-q", "--separate-git-dir", &elsewhere.to_string_lossy()]).ok();
                history(&repo);
                repo.write("src/a.c", "changed\n");
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
            Self::SkippedEntries => {
                repo.git(&["update-index", "--skip-worktree", "src/b.c", "empty.txt"]).ok();
                repo.git(&["update-index", "--assume-unchanged", "docs/guide.md"]).ok();
                repo.write("src/b.c", "not to be seen\n");
                fs::remove_file(repo.dir().join("empty.txt")).expect("part of every row");
                repo.write("docs/guide.md", "not to be seen either\n");
                repo.write("src/a.c", "to be seen\n");
            }
            Self::Revert => {
                repo.git(&["revert", "--no-edit", "HEAD~3", "HEAD~1"]).expect(1);
            }
            Self::Am => {
                let series = repo.git(&["format-patch", "--stdout", "main..other"]).ok();
                let path = repo.env().root().join("series.mbox");
                fs::write(&path, series).expect("a directory of the test");
                repo.git(&["am", "-q", "--3way", &path.to_string_lossy()]).expect(128);
            }
            Self::Notes => {
                repo.git(&["notes", "add", "-m", "looked at", "HEAD"]).ok();
                repo.git(&["notes", "--ref=ci", "add", "-m", "green", "HEAD~1"]).ok();
                let other = repo.git(&["commit-tree", "-m", "Start anew", "HEAD~3^{tree}"]).ok();
                repo.git(&["replace", "HEAD~3", other.trim()]).ok();
                repo.write("src/a.c", "changed\n");
            }
            Self::SplitIndex => {
                repo.git(&["update-index", "--split-index"]).ok();
                repo.write("src/a.c", "staged\n");
                repo.git(&["add", "src/a.c"]).ok();
                repo.write("src/b.c", "changed\n");
            }
            Self::UntrackedCache => {
                repo.git(&["config", "core.untrackedCache", "true"]).ok();
                dirty(repo);
                repo.git(&["update-index", "--force-untracked-cache"]).ok();
                repo.git(&["status"]).ok();
                repo.git(&["status"]).ok();
                repo.write("newdir/after.txt", "untracked, and new to the cache\n");
            }
            Self::SparseIndex => {
                repo.git(&["sparse-checkout", "set", "--cone", "--sparse-index", "src"]).ok();
                repo.write("src/a.c", "changed in the cone\n");
            }
            Self::FsMonitor => {
                let hook = repo.env().root().join("monitor");
                // Version 2 of the hook's protocol: a token, and "anything may have changed".
                fs::write(&hook, "#!/bin/sh\nprintf 'token\\0/\\0'\n").expect("a directory of the test");
                fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("just made");
                repo.git(&["config", "core.fsmonitor", &hook.to_string_lossy()]).ok();
                repo.git(&["status"]).ok();
                dirty(repo);
            }
            Self::OddNames => {
                use std::os::unix::ffi::OsStrExt;
                for name in
                    [&b"latin-\xe9"[..], b"two\nlines", b"quo\"te", b"back\\slash", b"tab\there", b"Case", b"cASE"]
                {
                    let path = repo.dir().join(std::ffi::OsStr::from_bytes(name));
                    fs::write(&path, name).expect("any name is a name");
                }
                repo.git(&["add", "--", "Case", "cASE", "quo\"te", "two\nlines"]).ok();
                repo.sh("git add -- \"$(printf 'latin-\\351')\"").ok();
                fs::create_dir(repo.dir().join(std::ffi::OsStr::from_bytes(b"dir-\xff"))).expect("new");
                let inner = std::ffi::OsStr::from_bytes(b"dir-\xff/in");
                fs::write(repo.dir().join(inner), "inside").expect("new");
            }
            Self::FileKinds => {
                fs::hard_link(repo.dir().join("src/a.c"), repo.dir().join("src/also-a.c")).expect("one file system");
                repo.write("pair-1", "two names\n");
                fs::hard_link(repo.dir().join("pair-1"), repo.dir().join("pair-2")).expect("one file system");
                let sparse = fs::File::create(repo.dir().join("sparse.img")).expect("new");
                sparse.set_len(256 << 20).expect("holes cost nothing");
                symlink("/nonexistent/absolute", repo.dir().join("absolute")).expect("new");
                symlink("nowhere", repo.dir().join("dangling")).expect("new");
                symlink("..", repo.dir().join("up")).expect("new");
                for (name, mode) in [("none.txt", 0o400), ("suid.sh", 0o755), ("group.txt", 0o664)] {
                    repo.write(name, "a mode of its own\n");
                    repo.chmod(name, mode);
                }
                repo.write("closed/file.txt", "in a directory that cannot be written\n");
                repo.chmod("closed", 0o555);
            }
            Self::Settings => {
                repo.git(&["config", "core.fileMode", "false"]).ok();
                repo.git(&["config", "core.autocrlf", "input"]).ok();
                repo.git(&["config", "core.ignoreCase", "true"]).ok();
                repo.git(&["config", "core.hooksPath", ".hooks"]).ok();
                repo.write(".git/info/exclude", "*.private\n");
                repo.write(".git/info/attributes", "*.dat -text diff=none\n");
                repo.write(".hooks/pre-commit", "#!/bin/sh\nexit 0\n");
                repo.chmod("src/b.c", 0o755);
                repo.write("crlf.txt", "one\r\ntwo\r\n");
                repo.git(&["add", "crlf.txt"]).ok();
                repo.write("x.private", "ignored\n");
                repo.write("x.dat", "a\r\nb\n");
            }
            Self::RacyChange => {
                repo.write("racy.txt", "one\n");
                repo.git(&["add", "racy.txt"]).ok();
                repo.write("racy.txt", "two\n");
                let index = fs::metadata(repo.dir().join(".git/index")).and_then(|meta| meta.modified());
                let file = fs::File::options().write(true).open(repo.dir().join("racy.txt")).expect("just made");
                file.set_modified(index.expect("git has written it")).expect("our own file");
            }
            Self::ManyRefs => {
                let head = repo.id("HEAD");
                let mut names: Vec<String> =
                    (0..50_000).flat_map(|n| [format!("refs/tags/t/{n}"), format!("refs/heads/b/{n}")]).collect();
                names.sort();
                // The file itself: git would make a hundred thousand files of them first.
                let lines: String = names.iter().map(|name| format!("{head} {name}\n")).collect();
                repo.write(".git/packed-refs", format!("# pack-refs with: peeled fully-peeled sorted \n{lines}"));
                repo.write("src/a.c", "changed\n");
            }
            Self::SpecialFiles => special(repo),
            Self::Unreadable => {
                repo.write("closed.txt", "nobody reads this\n");
                repo.chmod("closed.txt", 0o000);
                repo.write("shut/file.txt", "nor this\n");
                repo.chmod("shut", 0o000);
                repo.write("src/a.c", "changed\n");
            }
            Self::Huge => {
                let file = fs::File::create(repo.dir().join("disk.img")).expect("new");
                file.set_len(5 << 30).expect("holes cost nothing");
                for at in [0, 5 << 29, (5 << 30) - 5] {
                    std::os::unix::fs::FileExt::write_all_at(&file, b"data\n", at).expect("there is room");
                }
                repo.write("src/a.c", "changed\n");
            }
            Self::Attributes => attributes(repo),
            Self::Grafts => {
                let (tip, before) = (repo.id("HEAD"), repo.id("HEAD~2"));
                repo.write(".git/info/grafts", format!("{tip} {before}\n"));
                repo.write("src/a.c", "changed\n");
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

/// What a layer cannot hold, beside what it can.
fn special(repo: &Repo) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let at = |name: &str| repo.dir().join(name);
    mknodat(CWD, at("src/pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("new");
    // Below /proc: an address may not be longer than 107 bytes.
    let dir = fs::File::open(at("")).expect("a directory");
    let address = format!("/proc/self/fd/{}/socket", std::os::fd::AsRawFd::as_raw_fd(&dir));
    drop(std::os::unix::net::UnixListener::bind(address).expect("new"));
    if crate::is_root() {
        let null = rustix::fs::makedev(1, 3);
        mknodat(CWD, at("device"), FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, null).expect("root may");
    }
    repo.write("src/a.c", "changed\n");
}

/// Attributes that mean something to the one user who exists inside: when root runs it, a number that nobody has.
fn attributes(repo: &Repo) {
    use rustix::fs::{XattrFlags, setxattr};
    let set = |path: &str, name: &str, value: &[u8]| {
        setxattr(repo.dir().join(path), name, value, XattrFlags::empty()).expect("a file system with attributes");
    };
    set("src/a.c", "user.note", b"of a file");
    set("src/a.c", "user.binary", b"\0\xff");
    set("docs", "user.note", b"of a directory");
    set("", "user.note", b"of the top directory");
    let me = if crate::is_root() { 1_879_048_192 } else { rustix::process::geteuid().as_raw() };
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, rights, id) in
        [(1u16, 7u16, u32::MAX), (2, 6, me), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 0, u32::MAX)]
    {
        list.extend(tag.to_le_bytes().into_iter().chain(rights.to_le_bytes()).chain(id.to_le_bytes()));
    }
    set("src/b.c", "system.posix_acl_access", &list);
    set("docs", "system.posix_acl_access", &list);
    set("docs", "system.posix_acl_default", &list);
    set("", "system.posix_acl_access", &list);
    set("", "system.posix_acl_default", &list);
    repo.write("docs/heir.md", "with the rights of its directory\n");
}

/// Pointers as Git LFS writes them, with the filter in the attributes and not in the config.
fn lfs(repo: &Repo) {
    let oid = "4665a5ea423c2713d436b5ee50593a9640e0018c1550b5a0002f74190d6caea8";
    repo.write(".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n");
    repo.write("big.bin", format!("version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 12\n"));
    repo.git(&["add", "-A"]).ok();
    repo.git(&["commit", "-q", "-m", "Track large files"]).ok();
    repo.write("other.bin", format!("version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 13\n"));
    repo.write(&format!(".git/lfs/objects/{}/{}/{oid}", &oid[..2], &oid[2..4]), "large enough\n");
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
            State::SkippedEntries => {
                "test \"$(git status --porcelain)\" = ' M src/a.c' && git ls-files -t | grep -q '^S src/b.c' &&
                 git ls-files -v | grep -q '^h docs/guide.md'"
            }
            State::Revert => "test -f .git/REVERT_HEAD && git ls-files -u | grep -q src/a.c",
            State::Am => {
                "test -d .git/rebase-apply && test -f .git/rebase-apply/applying && git ls-files -u | grep -q src/a.c"
            }
            State::Notes => "git notes show HEAD | grep -q looked && test $(git replace -l | wc -l) -eq 1",
            State::SplitIndex => "ls .git/sharedindex.* && test \"$(git diff --cached --name-only)\" = src/a.c",
            State::UntrackedCache => "grep -q UNTR .git/index && git status --porcelain | grep -q newdir",
            State::SparseIndex => "git ls-files --sparse -t | grep -q '^S docs/$'",
            State::FsMonitor => "grep -q FSMN .git/index && git status --porcelain | grep -q newdir",
            State::Alternates => "test -s .git/objects/info/alternates && git log --oneline | wc -l | grep -q 5",
            State::SeparateGitDir => "test -f .git && git status --porcelain | grep -q src/a.c",
            State::OddNames => {
                "test $(git status --porcelain -z | tr '\\0' '\\n' | wc -l) -ge 8 && cmp Case Case && ! cmp -s Case cASE"
            }
            State::FileKinds => {
                "test $(stat -c %h pair-1) = 2 && test $(stat -c %s sparse.img) = 268435456 &&
                 test $(stat -c %b sparse.img) -lt 100 && test ! -e dangling && test -L absolute"
            }
            State::Settings => "test -z \"$(git diff --name-only)\" && ! git status --porcelain | grep -q private",
            State::RacyChange => "git status --porcelain | grep -q '^AM racy.txt'",
            State::ManyRefs => "test $(git for-each-ref | wc -l) -gt 100000 && git rev-parse -q --verify b/49999",
            State::SpecialFiles => "test -p src/pipe && test -S socket",
            State::Unreadable => "test $(stat -c %a closed.txt) = 0 && test $(stat -c %a shut) = 0",
            State::Huge => "test $(stat -c %s disk.img) -gt 5000000000 && test $(stat -c %b disk.img) -lt 100",
            State::Attributes => "ls -l src/b.c docs/heir.md | grep -c '^.\\{10\\}+' | grep -q 2",
            State::Grafts => "test $(git log --oneline HEAD 2>/dev/null | wc -l) -eq 3",
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
