//! Finding repositories and knowing them again.

use crate::world::each_git;
use sandbox_core::host_repo::{HostRepo, HostRepoError};
use sandbox_git::ObjectFormat;
use std::fs;

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
