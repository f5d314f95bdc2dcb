//! The index reader and writer against indexes that real git wrote.

use sandbox_git::index::{Index, NewEntry, Stat, build};
use sandbox_git::{ObjectFormat, Oid};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

struct Repo {
    dir: tempfile::TempDir,
    git: PathBuf,
    format: ObjectFormat,
}

impl Repo {
    fn new(git: &Path, format: ObjectFormat) -> Self {
        let repo = Self { dir: tempfile::tempdir().unwrap(), git: git.into(), format };
        repo.git(&["init", "-q", "-b", "main", &format!("--object-format={format}")]);
        for (path, text) in
            [("a", "1\n"), ("dir/b", "2\n"), ("dir/sub/c", "3\n"), ("dir2/long-name-in-a-directory", "4\n")]
        {
            let path = repo.dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        repo.git(&["add", "-A"]);
        repo.git(&["commit", "-qm", "one"]);
        repo
    }

    fn git(&self, args: &[&str]) -> String {
        let (ok, out) = self.try_git(args);
        assert!(ok, "git {args:?}: {out}");
        out
    }

    fn try_git(&self, args: &[&str]) -> (bool, String) {
        let out = Command::new(&self.git)
            .args(args)
            .current_dir(self.dir.path())
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.dir.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .envs([
                ("GIT_AUTHOR_NAME", "a"),
                ("GIT_AUTHOR_EMAIL", "a@a"),
                ("GIT_COMMITTER_NAME", "a"),
                ("GIT_COMMITTER_EMAIL", "a@a"),
            ])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        (out.status.success(), text)
    }

    fn index(&self) -> Index {
        Index::parse(fs::read(self.dir.path().join(".git/index")).unwrap(), self.format).unwrap()
    }

    fn listed(&self) -> Vec<String> {
        self.git(&["ls-files", "-s", "--full-name"]).lines().map(str::to_owned).collect()
    }
}

fn listing(index: &Index) -> Vec<String> {
    let line = |e: &sandbox_git::index::Entry| {
        format!("{:06o} {} {}\t{}", e.mode, e.oid, e.stage, String::from_utf8_lossy(&e.path))
    };
    index.entries().iter().map(line).collect()
}

fn everywhere(test: impl Fn(Repo)) {
    let gits: Vec<PathBuf> =
        ["/usr/bin/git", "/usr/local/bin/git"].iter().map(PathBuf::from).filter(|path| path.exists()).collect();
    assert!(!gits.is_empty(), "no git to test with");
    for git in gits {
        for format in [ObjectFormat::Sha1, ObjectFormat::Sha256] {
            test(Repo::new(&git, format));
        }
    }
}

#[test]
fn reads_all_versions_as_git_does() {
    everywhere(|repo| {
        for version in ["2", "3", "4"] {
            fs::write(repo.dir.path().join("new"), "n").unwrap();
            repo.git(&["add", "-N", "new"]);
            repo.git(&["update-index", "--index-version", version]);
            repo.git(&["update-index", "--skip-worktree", "dir/b"]);
            repo.git(&["update-index", "--assume-unchanged", "a"]);
            let index = repo.index();
            assert_eq!(listing(&index), repo.listed());
            let find = |path: &str| index.entries().iter().find(|e| e.path == path.as_bytes()).unwrap();
            assert!(find("new").intent_to_add && find("dir/b").skip_worktree && find("a").assume_valid);
        }
    });
}

#[test]
fn rewritten_stat_data_is_what_git_sees_and_the_rest_is_kept() {
    everywhere(|repo| {
        for version in ["2", "4"] {
            repo.git(&["update-index", "--index-version", version]);
            repo.git(&["update-index", "--untracked-cache"]);
            repo.git(&["status"]);
            let tree = repo.git(&["write-tree"]).trim().to_owned();
            let mut index = repo.index();
            assert!(index.has_machine_bound());
            assert_eq!(index.root_tree().map(|oid| oid.to_string()), Some(tree));
            let before = listing(&index);
            for i in 0..index.entries().len() {
                let mut stat = index.entries()[i].stat;
                stat.ino = 4242;
                stat.ctime = (77, 5);
                index.set_stat(i, stat);
            }
            fs::write(repo.dir.path().join(".git/index"), index.finish()).unwrap();
            assert_eq!(repo.listed(), before);
            let debug = repo.git(&["ls-files", "--debug", "a"]);
            assert!(debug.contains("ino: 4242") && debug.contains("ctime: 77:5"), "{debug}");
            assert!(!repo.index().has_machine_bound());
            repo.git(&["fsck", "--no-dangling"]);
        }
    });
}

#[test]
fn all_ids_include_stages_resolve_undo_and_cache_tree() {
    everywhere(|repo| {
        repo.git(&["checkout", "-qb", "other"]);
        fs::write(repo.dir.path().join("a"), "other\n").unwrap();
        repo.git(&["commit", "-qam", "other"]);
        repo.git(&["checkout", "-q", "main"]);
        fs::write(repo.dir.path().join("a"), "mine\n").unwrap();
        repo.git(&["commit", "-qam", "mine"]);
        assert!(!repo.try_git(&["merge", "other"]).0);
        let (theirs, mine) = (repo.git(&["rev-parse", "other:a"]), repo.git(&["rev-parse", "main:a"]));
        let has = |index: &Index, hex: &str| index.oids().unwrap().contains(&Oid::parse(hex.trim()).unwrap());
        let conflict = repo.index();
        assert!(has(&conflict, &theirs) && has(&conflict, &mine));
        assert_eq!(conflict.root_tree(), None);
        assert!(has(&conflict, &repo.git(&["rev-parse", "HEAD:dir"])), "cache-tree");
        // Resolved: the stages go, resolve-undo remembers them.
        fs::write(repo.dir.path().join("a"), "resolved\n").unwrap();
        repo.git(&["add", "a"]);
        let resolved = repo.index();
        assert!(resolved.entries().iter().all(|entry| entry.stage == 0));
        assert!(has(&resolved, &theirs) && has(&resolved, &mine));
    });
}

#[test]
fn a_split_index_is_recognised() {
    everywhere(|repo| {
        repo.git(&["update-index", "--split-index"]);
        fs::write(repo.dir.path().join("z"), "z\n").unwrap();
        repo.git(&["add", "z"]);
        assert!(repo.index().is_split());
        repo.git(&["update-index", "--no-split-index"]);
        assert!(!repo.index().is_split());
    });
}

#[test]
fn a_built_index_is_clean_to_git() {
    everywhere(|repo| {
        let old = repo.index();
        let entries = old
            .entries()
            .iter()
            .rev()
            .map(|e| NewEntry {
                path: e.path.clone(),
                oid: e.oid,
                mode: e.mode,
                stat: Stat::from_metadata(
                    &fs::symlink_metadata(repo.dir.path().join(std::str::from_utf8(&e.path).unwrap())).unwrap(),
                ),
            })
            .collect();
        let mut trees = vec![(Vec::new(), Oid::parse(repo.git(&["rev-parse", "HEAD^{tree}"]).trim()).unwrap())];
        for line in repo.git(&["ls-tree", "-rd", "HEAD"]).lines() {
            let (head, path) = line.split_once('\t').unwrap();
            trees.push((path.as_bytes().to_vec(), Oid::parse(head.split(' ').nth(2).unwrap()).unwrap()));
        }
        fs::write(repo.dir.path().join(".git/index"), build(entries, &trees, repo.format)).unwrap();
        assert_eq!(repo.index().root_tree(), Some(trees[0].1));
        assert_eq!(repo.git(&["status", "--porcelain"]), "");
        assert_eq!(repo.git(&["diff-index", "--cached", "HEAD"]), "");
        assert_eq!(repo.git(&["write-tree"]).trim(), trees[0].1.to_string());
    });
}
