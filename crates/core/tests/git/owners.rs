//! Run by root in somebody else's repository: what is written there is its owner's, and what the
//! sandbox's user reads can be read by them.

use crate::lands::{land, name, oid, open, serve};
use crate::world::{each_git, write};
use sandbox_core::gitdir::{Carried, Request, make};
use sandbox_core::host_repo::{HostRepo, HostRepoError};
use sandbox_core::landing::{Bounds, Update, Want};
use sandbox_git::index::Stat;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

const OWNER: u32 = 61_234;

fn walk(path: &Path, each: &mut dyn FnMut(&Path, &fs::Metadata)) {
    let metadata = fs::symlink_metadata(path).unwrap();
    each(path, &metadata);
    if metadata.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            walk(&entry.unwrap().path(), each);
        }
    }
}

#[test]
fn root_leaves_the_repository_to_its_owner() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: only root can act in a repository of another user");
        return;
    }
    each_git(|world| {
        fs::set_permissions(world.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let top = world.repo("r", &[]);
        walk(&top, &mut |path, _| lchown(path, Some(OWNER), Some(OWNER)).unwrap());
        match HostRepo::discover(&world.git, &top) {
            Err(HostRepoError::DubiousOwnership { path }) => assert_eq!(path, top),
            other => panic!("{other:?}"),
        }
        let config = world.home().join(".gitconfig");
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, format!("{text}[safe]\n\tdirectory = *\n")).unwrap();
        let host = world.host(&top);
        assert_eq!(host.foreign_owner(), Some((OWNER, OWNER)));
        let repo = world.repo_dir(&top);
        let captured = |path: &[u8]| {
            let file = top.join(std::str::from_utf8(path).unwrap());
            let host = Stat::from_metadata(&fs::symlink_metadata(file).ok()?);
            Some(Carried { host, layer: host })
        };
        let request = Request {
            git: &world.git,
            repo: &repo,
            host: &host,
            nested: &[],
            captured: &captured,
            owner: Some((OWNER, OWNER)),
            grants: &[],
            all_objects: false,
        };
        let layer = world.path("in.layer");
        let made = make(&request, &layer).unwrap();
        walk(&layer, &mut |path, m| assert_eq!((m.uid(), m.gid()), (OWNER, OWNER), "{}", path.display()));
        walk(&repo.view(&made.facts.views[0].key), &mut |path, m| {
            assert_eq!((m.uid(), m.gid()), (OWNER, OWNER), "{}", path.display());
            assert!(m.mode() & 0o400 != 0 && (!m.is_dir() || m.mode() & 0o055 == 0o055), "{}", path.display());
        });

        let tree = world.path("in");
        fs::create_dir(&tree).unwrap();
        let inside = world.assemble(made, repo.clone(), tree, layer);
        walk(&inside.top, &mut |path, _| lchown(path, Some(0), Some(0)).unwrap());
        write(&inside.top, "new", "n\n");
        inside.git(&["add", "new"]);
        inside.git(&["commit", "-q", "-m", "new"]);
        for n in 0..150 {
            write(&inside.top, &format!("many/{n}"), &format!("{n}\n"));
        }
        let small = oid(&inside.git(&["rev-parse", "HEAD"]));
        inside.git(&["add", "-A"]);
        inside.git(&["commit", "-q", "-m", "many"]);
        let large = oid(&inside.git(&["rev-parse", "HEAD"]));
        let landing = open(&inside, Bounds::default());
        let gitdir = inside.top.join(".git");
        for (n, tip) in [("refs/sandbox/small", small), ("refs/sandbox/large", large)] {
            let wants = [Want { name: name(n), oid: tip }];
            assert_eq!(landing.land(&mut || serve(&inside, &gitdir), &wants).unwrap().refused, []);
            landing.move_to_host(None, &host, "x", &[Update { name: name(n), old: None, new: Some(tip) }]).unwrap();
        }
        walk(&top, &mut |path, m| assert_eq!((m.uid(), m.gid()), (OWNER, OWNER), "{}", path.display()));
        assert!(land(&inside, &landing, &[]).unwrap().accepted.is_empty());
        world.git(&top, &["fsck", "--no-dangling"]);
    });
}
