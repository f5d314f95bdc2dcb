//! Finding repositories and knowing them again.

use crate::world::each_git;
use sandbox_core::host_repo::{HostRepo, HostRepoError};
use sandbox_git::{Git, ObjectFormat};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

#[test]
fn a_repository_is_found_from_anywhere_in_it() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        let host = HostRepo::discover(&world.git, &top.join("dir")).unwrap();
        assert_eq!(host.top(), Some(top.as_path()));
        assert_eq!(host.git_dir(), top.join(".git"));
        assert!(!host.is_bare() && !host.is_linked());
        assert_eq!(host.format(), ObjectFormat::Sha1);

        let inside = HostRepo::discover(&world.git, &top.join(".git")).unwrap();
        assert!(matches!(inside.worktree(), Err(HostRepoError::InsideGitDir { .. })));

        let linked = world.path("linked");
        world.git(&top, &["worktree", "add", "-q", linked.to_str().unwrap()]);
        let linked = HostRepo::discover(&world.git, &linked).unwrap();
        assert!(linked.is_linked());
        assert_eq!(linked.common_dir(), host.common_dir());
        assert_eq!(linked.repo_id(&world.store).unwrap(), host.repo_id(&world.store).unwrap());

        let sha256 = HostRepo::discover(&world.git, &world.repo("s", &["--object-format=sha256"])).unwrap();
        assert_eq!(sha256.format(), ObjectFormat::Sha256);
    });
}

#[test]
fn what_is_found_without_git_is_what_git_finds() {
    each_git(|world| {
        let no_git = Git::with_program("/no/such/git".into(), world.git.env().clone());
        let by_us = |dir: &Path| HostRepo::discover(&no_git, dir).ok();
        let same = |what: &str, dir: &Path| {
            let (found, asked) = (HostRepo::discover(&world.git, dir), HostRepo::ask(&world.git, dir));
            assert_eq!(found.as_ref().ok(), asked.as_ref().ok(), "{what}");
            let text = |found: Result<HostRepo, HostRepoError>| found.err().map(|error| error.to_string());
            assert_eq!(text(found), text(asked), "{what}");
        };
        let plain = world.repo("plain", &[]);
        for dir in [plain.clone(), plain.join("dir")] {
            assert!(by_us(&dir).is_some());
            same("plain", &dir);
        }
        world.git(&plain, &["checkout", "-q", "--detach"]);
        assert!(by_us(&plain).is_some());
        same("detached", &plain);
        let through = world.path("through");
        symlink(plain.join("dir"), &through).unwrap();
        assert_eq!(by_us(&through).unwrap().top(), Some(plain.as_path()));
        same("through a symlink", &through);

        // Every doubt is git's to judge.
        let doubt = |what: &str, dir: &Path| {
            assert_eq!(by_us(dir), None, "{what}");
            same(what, dir);
        };
        doubt("inside .git", &plain.join(".git"));
        doubt("deep inside .git", &plain.join(".git/refs"));
        doubt("nothing", &world.home());
        let changed = |name: &str, config: &[&str]| {
            let top = world.repo(name, &[]);
            world.git(&top, &[&["config"], config].concat());
            top
        };
        doubt("core.bare", &changed("bare", &["core.bare", "true"]));
        let other = world.path("other");
        fs::create_dir(&other).unwrap();
        doubt("core.worktree", &changed("worktree", &["core.worktree", other.to_str().unwrap()]));
        doubt("worktreeConfig", &changed("extension", &["extensions.worktreeConfig", "true"]));
        doubt("SHA-256", &world.repo("sha256", &["--object-format=sha256"]));
        doubt("separate", &world.repo("separate", &["--separate-git-dir", world.path("elsewhere").to_str().unwrap()]));
        let linked = world.path("linked");
        world.git(&plain, &["worktree", "add", "-q", "--detach", linked.to_str().unwrap()]);
        doubt("linked", &linked);
        let moved = world.repo("moved", &[]);
        fs::rename(moved.join(".git"), world.path("moved.git")).unwrap();
        symlink(world.path("moved.git"), moved.join(".git")).unwrap();
        doubt("a symlink", &moved);
        let broken = world.repo("broken", &[]);
        fs::remove_file(broken.join(".git/HEAD")).unwrap();
        doubt("no HEAD", &broken);
        let nested = plain.join("nested.git");
        world.git(&plain, &["init", "-q", "--bare", nested.to_str().unwrap()]);
        doubt("a bare one in it", &nested);
        if rustix::process::geteuid().is_root() {
            let foreign = world.repo("foreign", &[]);
            std::os::unix::fs::lchown(foreign.join(".git"), Some(61_234), None).unwrap();
            doubt("another owner", &foreign);
        }
    });
}

#[test]
fn what_is_no_work_tree_is_told_by_kind() {
    each_git(|world| {
        let none = world.path("plain");
        fs::create_dir(&none).unwrap();
        match HostRepo::discover(&world.git, &none) {
            Err(HostRepoError::NotARepository { said, .. }) => {
                assert!(said.starts_with("not a git repository"), "{said}")
            }
            other => panic!("{other:?}"),
        }
        let bare = world.path("bare.git");
        world.git(&world.home(), &["init", "-q", "--bare", bare.to_str().unwrap()]);
        let host = HostRepo::discover(&world.git, &bare).unwrap();
        assert!(host.is_bare());
        assert!(matches!(host.worktree(), Err(HostRepoError::Bare { .. })));
        assert!(HostRepo::nested(&none).is_err());
    });
}

#[test]
fn a_moved_repository_is_known_and_a_copy_gets_its_own_id() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        let host = world.host(&top);
        assert_eq!(host.known_id(&world.store).unwrap(), None);
        let id = host.repo_id(&world.store).unwrap();
        assert_eq!(host.known_id(&world.store).unwrap(), Some(id.clone()));
        assert!(world.git.vault(&world.store.repo(&id).vault()).args(["rev-parse", "--git-dir"]).run().is_ok());

        let copy = world.path("copy");
        let status = std::process::Command::new("cp").args(["-a"]).args([&top, &copy]).status().unwrap();
        assert!(status.success());
        let copied = world.host(&copy);
        assert_eq!(copied.known_id(&world.store).unwrap(), None);
        let other = copied.repo_id(&world.store).unwrap();
        assert_ne!(other, id);

        let moved = world.path("moved");
        fs::rename(&top, &moved).unwrap();
        assert_eq!(world.host(&moved).repo_id(&world.store).unwrap(), id);
        assert_eq!(world.host(&copy).repo_id(&world.store).unwrap(), other);
    });
}

#[test]
fn a_running_git_is_waited_for() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        let host = world.host(&top);
        let lock = top.join(".git/index.lock");
        fs::write(&lock, "").unwrap();
        let short = std::time::Duration::from_millis(30);
        match host.wait_quiet(short) {
            Err(HostRepoError::Busy { lock: held }) => assert_eq!(held, lock),
            other => panic!("{other:?}"),
        }
        let gone = std::thread::spawn(move || {
            std::thread::sleep(short);
            fs::remove_file(lock).unwrap();
        });
        host.wait_quiet(std::time::Duration::from_secs(5)).unwrap();
        gone.join().unwrap();
    });
}
