//! Landing: what comes home, what is refused, and that a refusal leaves nothing.

use crate::world::{Inside, World, each_git, write};
use sandbox_core::id::{Name, RepoId, SandboxId};
use sandbox_core::landing::{
    Base, Bounds, Conversation, Landed, Landing, LandingError, Owner, Update, Want, plan_refs,
};
use sandbox_core::{gitdir, landing};
use sandbox_git::{ObjectFormat, Oid, RefName};
use sandbox_protocol::RepoState;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

pub fn oid(text: &str) -> Oid {
    Oid::parse(text.trim()).unwrap()
}

pub fn name(text: &str) -> RefName {
    RefName::parse(text).unwrap()
}

/// Starts an upload-pack in a git directory inside, as the agent would.
pub fn serve(inside: &Inside<'_>, gitdir: &Path) -> io::Result<Conversation> {
    let (argv, env) = Landing::upload_pack(gitdir.to_str().unwrap());
    let mut child = Command::new(inside.world.git.program())
        .args(&argv[1..])
        .env_clear()
        .env("PATH", &inside.world.git.env().path)
        .env("HOME", inside.world.path("nowhere"))
        .envs(env)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let conversation =
        Conversation { from: Box::new(child.stdout.take().unwrap()), to: Box::new(child.stdin.take().unwrap()) };
    std::thread::spawn(move || child.wait());
    Ok(conversation)
}

pub fn open<'a>(inside: &Inside<'a>, bounds: Bounds) -> Landing {
    let dir = inside.top.with_extension("landing");
    Landing::create(&inside.world.git, &dir, &inside.view(), bounds).unwrap()
}

pub fn land(inside: &Inside<'_>, landing: &Landing, wants: &[(&str, Oid)]) -> Result<Landed, LandingError> {
    let wants: Vec<Want> = wants.iter().map(|(n, oid)| Want { name: name(n), oid: *oid }).collect();
    let gitdir = inside.top.join(".git");
    landing.land(&mut || serve(inside, &gitdir), &wants)
}

pub fn update(n: &str, old: Option<Oid>, new: Oid) -> Update {
    Update { name: name(n), old, new: Some(new) }
}

/// Names of everything in a directory, recursively.
fn listing(dir: &Path) -> Vec<String> {
    let out = Command::new("find").arg(dir).output().unwrap();
    let mut lines: Vec<String> = String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn refs(world: &World, top: &Path) -> Vec<String> {
    let out = world.git(top, &["for-each-ref", "--format=%(refname) %(objectname:short=7)"]);
    out.lines().map(str::to_owned).collect()
}

#[test]
fn commits_come_home_in_one_transaction_with_a_reflog() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        write(&top, "a.txt", "uncommitted on the host\n");
        let inside = world.spawn(&top, "in");
        inside.git(&["checkout", "-q", "-b", "fix/login"]);
        write(&inside.top, "fix.txt", "fixed\n");
        inside.git(&["add", "fix.txt"]);
        inside.git(&["commit", "-q", "-m", "Fix login"]);
        let first = oid(&inside.git(&["rev-parse", "HEAD"]));
        let landing = open(&inside, Bounds::default());
        let landed = land(&inside, &landing, &[("refs/sandbox/fix", first)]).unwrap();
        assert_eq!((landed.accepted.len(), landed.refused.len()), (1, 0));
        let host = world.host(&top);
        let before = world.git(&top, &["status", "--porcelain"]);
        let owner = Owner { repo: RepoId::random(), sandbox: SandboxId::random(), store: None };
        let blob = landing.blob(&owner.bytes()).unwrap();
        let outcome = landing
            .move_to_host(
                None,
                &host,
                "fix",
                &[
                    update("refs/sandbox/fix", None, first),
                    update("refs/sandbox-meta/fix/heads/fix+/login", None, first),
                    update("refs/sandbox-meta/fix/owner", None, blob),
                ],
            )
            .unwrap();
        assert_eq!((outcome.objects, outcome.healed), (4, false), "commit, tree, blob, owner");
        assert_eq!(world.git(&top, &["log", "-1", "--format=%s %an", "sandbox/fix"]), "Fix login Host User\n");
        assert_eq!(
            world.git(&top, &["reflog", "show", "--format=%gs", "refs/sandbox/fix"]),
            "sandbox fix: commit-back\n"
        );
        assert!(world.git(&top, &["cat-file", "-p", "refs/sandbox-meta/fix/owner"]).starts_with("git-sandbox 1\n"));
        assert_eq!(world.git(&top, &["status", "--porcelain"]), before);
        world.git(&top, &["fsck", "--no-dangling"]);

        // Amended: the old commit stays in the reflog of its ref. What was sent before is not sent again.
        inside.git(&["commit", "-q", "--amend", "-m", "Fix login well"]);
        let second = oid(&inside.git(&["rev-parse", "HEAD"]));
        let landing = open(&inside, Bounds::default());
        assert_eq!(land(&inside, &landing, &[("refs/sandbox/fix", second)]).unwrap().accepted.len(), 1);
        landing.move_to_host(None, &host, "fix", &[update("refs/sandbox/fix", Some(first), second)]).unwrap();
        assert_eq!(world.git(&top, &["rev-parse", "refs/sandbox/fix@{1}"]).trim(), first.to_string());
        world.git(&top, &["stash"]);
        world.git(&top, &["merge", "-q", "sandbox/fix"]);
        assert!(top.join("fix.txt").exists());
    });
}

#[test]
fn nothing_is_asked_for_what_is_granted_already() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        let inside = world.spawn(&top, "in");
        let head = oid(&inside.git(&["rev-parse", "HEAD~1"]));
        let landing = open(&inside, Bounds::default());
        let wants = [Want { name: name("refs/sandbox/x"), oid: head }];
        let landed = landing.land(&mut || Err(io::Error::other("not to be called")), &wants).unwrap();
        assert_eq!(landed.accepted.len(), 1);
        landing.move_to_host(None, &world.host(&top), "x", &[update("refs/sandbox/x", None, head)]).unwrap();
    });
}

#[test]
fn a_bad_ref_is_refused_by_name_and_the_good_ones_land() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        let before = listing(&top.join(".git"));
        let inside = world.spawn(&top, "in");
        let mut wants: Vec<(String, Oid)> = Vec::new();
        for n in 0..5 {
            inside.git(&["checkout", "-q", "-B", &format!("good{n}"), "main"]);
            write(&inside.top, "x", &format!("{n}\n"));
            inside.git(&["add", "x"]);
            inside.git(&["commit", "-q", "-m", "good"]);
            wants.push((format!("refs/sandbox-meta/x/heads/good{n}"), oid(&inside.git(&["rev-parse", "HEAD"]))));
        }
        let blob = inside.git(&["rev-parse", "HEAD:x"]).trim().to_owned();
        for (n, evil) in [".git", "..", "a/b"].into_iter().enumerate() {
            let mut tree = format!("100644 {evil}\0").into_bytes();
            tree.extend_from_slice(oid(&blob).as_bytes());
            let file = world.path("tree");
            fs::write(&file, tree).unwrap();
            let tree = inside.git(&["hash-object", "-t", "tree", "-w", "--literally", file.to_str().unwrap()]);
            let commit = inside.git(&["commit-tree", "-m", "evil", "-p", "main", tree.trim()]);
            wants.push((format!("refs/sandbox-meta/x/heads/evil{n}"), oid(&commit)));
        }
        let missing = Oid::parse("12".repeat(20)).unwrap();
        wants.push(("refs/sandbox-meta/x/heads/missing".into(), missing));
        wants.push(("refs/sandbox-meta/x/heads/wrong".into(), ObjectFormat::Sha256.empty_tree()));
        let wants: Vec<(&str, Oid)> = wants.iter().map(|(name, oid)| (name.as_str(), *oid)).collect();
        let landing = open(&inside, Bounds::default());
        let landed = land(&inside, &landing, &wants).unwrap();
        assert_eq!(landed.accepted.len(), 5, "{landed:?}");
        let mut refused: Vec<String> = landed.refused.iter().map(|(want, _)| want.name.to_string()).collect();
        refused.sort();
        let tail = |n: &String| n.rsplit('/').next().unwrap().to_owned();
        assert_eq!(refused.iter().map(tail).collect::<Vec<_>>(), ["evil0", "evil1", "evil2", "missing", "wrong"]);
        assert_eq!(listing(&top.join(".git")).len(), before.len() + 1, "only sandbox-id is new in the host");
        let updates: Vec<Update> =
            landed.accepted.iter().map(|w| Update { name: w.name.clone(), old: None, new: Some(w.oid) }).collect();
        landing.move_to_host(None, &world.host(&top), "x", &updates).unwrap();
        assert_eq!(refs(&world, &top).len(), 6);
        world.git(&top, &["fsck", "--no-dangling"]);
        // The refused objects are not there the next time.
        let again = open(&inside, Bounds::default());
        let landed = land(&inside, &again, &wants[5..6]).unwrap();
        assert_eq!(landed.refused.len(), 1);
    });
}

/// Git puts a pack into its place before the last of its checks: that a `.gitmodules` is harmless, when a tree
/// that names it came as a delta. A fetch that is tried again must not take it for received.
#[test]
fn what_is_refused_after_its_pack_was_written_is_not_there_for_the_next_try() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        for n in 0..40 {
            write(&top, &format!("a-file-with-a-long-name-{n}"), &format!("{n}\n"));
        }
        write(&top, ".gitmodules", "[submodule \"lib\"]\n\tpath = lib\n\turl = https://example.com/lib\n");
        world.git(&top, &["add", "-A"]);
        world.git(&top, &["commit", "-q", "-m", "a large tree"]);
        let inside = world.spawn(&top, "in");
        write(&inside.top, ".gitmodules", "[submodule \"lib\"]\n\tpath = lib\n\turl = -u./x\n\tupdate = !touch x\n");
        inside.git(&["commit", "-q", "-a", "-m", "evil"]);
        let evil = oid(&inside.git(&["rev-parse", "HEAD"]));
        let landing = open(&inside, Bounds::default());
        let names = ["refs/sandbox/x", "refs/sandbox-meta/x/heads/main", "refs/sandbox-meta/x/heads/other"];
        let landed = land(&inside, &landing, &names.map(|name| (name, evil))).unwrap();
        assert_eq!(landed.accepted, []);
        assert_eq!(landed.refused.len(), 3);
        assert!(landed.refused.iter().all(|(_, why)| why.contains("gitmodules")), "{:?}", landed.refused);
        assert_eq!(landing.packs().len(), 0, "what was refused is gone");
        let again = open(&inside, Bounds::default());
        assert_eq!(land(&inside, &again, &[(names[0], evil)]).unwrap().accepted, []);
    });
}

#[test]
fn a_tree_that_unfolds_without_end_is_refused() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        let inside = world.spawn(&top, "in");
        let mut tree = inside.git(&["rev-parse", "HEAD:dir"]).trim().to_owned();
        for _ in 0..9 {
            let entries: String = (0..10).map(|n| format!("040000 tree {tree}\td{n}\n")).collect();
            let file = world.path("entries");
            fs::write(&file, entries).unwrap();
            let out = Command::new("sh")
                .args([
                    "-c",
                    &format!(
                        "'{}' -C '{}' mktree <'{}'",
                        world.git.program().display(),
                        inside.top.display(),
                        file.display()
                    ),
                ])
                .output()
                .unwrap();
            tree = String::from_utf8(out.stdout).unwrap().trim().to_owned();
        }
        let bomb = oid(&inside.git(&["commit-tree", "-m", "bomb", "-p", "main", &tree]));
        let good = oid(&inside.git(&["commit-tree", "-m", "good", "-p", "main", "main^{tree}"]));
        let landing = open(&inside, Bounds::default());
        let landed = land(&inside, &landing, &[("refs/sandbox/a", bomb), ("refs/sandbox/b", good)]).unwrap();
        assert_eq!(landed.accepted.len(), 1);
        assert_eq!(landed.refused[0].1, "a tree of it has more than 1000000 entries");
        // Deep nesting.
        let mut tree = inside.git(&["rev-parse", "HEAD:dir"]).trim().to_owned();
        let script = world.path("deep.sh");
        fs::write(&script, format!(
            "t={tree}; i=0; while [ $i -lt 300 ]; do t=$(printf '040000 tree %s\\td\\n' $t | '{}' -C '{}' mktree); i=$((i+1)); done; echo $t",
            world.git.program().display(), inside.top.display()
        )).unwrap();
        tree = String::from_utf8(Command::new("sh").arg(&script).output().unwrap().stdout).unwrap().trim().to_owned();
        let deep = oid(&inside.git(&["commit-tree", "-m", "deep", "-p", "main", &tree]));
        let landed = land(&inside, &open(&inside, Bounds::default()), &[("refs/sandbox/a", deep)]).unwrap();
        assert_eq!(landed.refused[0].1, "its directories are nested more than 256 deep");
    });
}

/// Makes a commit with this raw body, as no git would.
fn raw(inside: &Inside<'_>, kind: &str, body: &[u8]) -> Oid {
    let file = inside.world.path("raw");
    fs::write(&file, body).unwrap();
    oid(&inside.git(&["hash-object", "--literally", "-t", kind, "-w", file.to_str().unwrap()]))
}

/// Two trees of 8 levels with 4 equal directories each: unfolded 65 536 files that all differ, and 40 commits
/// that go to and fro. Every pair of directories is looked at once, and all count together.
#[test]
fn trees_that_alternate_are_compared_once_and_counted_always() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        let inside = world.spawn(&top, "in");
        let tree = |contents: &[u8]| {
            let blob = raw(&inside, "blob", contents);
            let mut tree = raw(&inside, "tree", &[b"100644 f\0".as_slice(), blob.as_bytes()].concat());
            for _ in 0..8 {
                let entry = |n: u8| [b"40000 ".as_slice(), &[b'a' + n], b"\0", tree.as_bytes()].concat();
                tree = raw(&inside, "tree", &(0..4).flat_map(entry).collect::<Vec<u8>>());
            }
            tree
        };
        let trees = [tree(b"x"), tree(b"y")];
        let mut tip = inside.git(&["rev-parse", "main"]).trim().to_owned();
        for n in 0..40 {
            let tree = trees[n % 2].to_string();
            tip = inside.git(&["commit-tree", "-m", &n.to_string(), "-p", &tip, &tree]).trim().to_owned();
        }
        let wants = [("refs/sandbox/a", oid(&tip))];
        // 40 × 65 536 pairs of files, and as many questions, do not fit into this time.
        let bounds = Bounds { time: Duration::from_secs(20), ..Bounds::default() };
        let landed = land(&inside, &open(&inside, bounds), &wants).unwrap();
        assert_eq!(landed.refused, []);
        let bounds = Bounds { entries: 160_000, ..bounds };
        let landed = land(&inside, &open(&inside, bounds), &wants).unwrap();
        assert_eq!(landed.refused[0].1, "its commits change more than 2560000 entries together");
    });
}

/// An object over the limit is one ref's own fault, and so is one that takes too much memory.
#[test]
fn an_object_that_is_too_large_refuses_its_ref_only() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        let inside = world.spawn(&top, "in");
        let good = oid(&inside.git(&["commit-tree", "-m", "good", "-p", "main", "main^{tree}"]));
        let tree = inside.git(&["rev-parse", "main^{tree}"]);
        let head = format!("tree {}\nauthor a <a@b> 1 +0000\ncommitter a <a@b> 1 +0000\n\n", tree.trim());
        let mut body = head.into_bytes();
        body.resize(65 << 20, b'x');
        let large = raw(&inside, "commit", &body);
        let landing = open(&inside, Bounds::default());
        let wants = [("refs/sandbox/a", large), ("refs/sandbox-meta/a/heads/b", good)];
        let landed = land(&inside, &landing, &wants).unwrap();
        assert_eq!(landed.accepted.iter().map(|want| want.oid).collect::<Vec<_>>(), [good]);
        assert_eq!(landed.refused[0].1, format!("its object {large} has {} bytes", body.len()));
    });
}

#[test]
fn too_many_bytes_end_the_conversation_and_leave_nothing() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        let inside = world.spawn(&top, "in");
        let mut noise = vec![0; 3 << 20];
        fs::File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
        fs::write(inside.top.join("noise"), noise).unwrap();
        inside.git(&["add", "noise"]);
        inside.git(&["commit", "-q", "-m", "large"]);
        let head = oid(&inside.git(&["rev-parse", "HEAD"]));
        let before = listing(&top);
        let landing = open(&inside, Bounds { bytes: 1 << 20, ..Bounds::default() });
        match land(&inside, &landing, &[("refs/sandbox/x", head)]) {
            Err(LandingError::TooLarge(limit)) => assert_eq!(limit, 1 << 20),
            other => panic!("{other:?}"),
        }
        assert_eq!(listing(&top), before);
        assert_eq!(
            land(&inside, &open(&inside, Bounds::default()), &[("refs/sandbox/x", head)]).unwrap().accepted.len(),
            1
        );
    });
}

#[test]
fn a_silent_sandbox_is_left_after_the_time() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        let inside = world.spawn(&top, "in");
        let landing = open(&inside, Bounds { time: Duration::from_secs(1), ..Bounds::default() });
        let wants = [Want { name: name("refs/sandbox/x"), oid: oid(&"3".repeat(40)) }];
        let mut held = Vec::new();
        let mut connect = || {
            let (ours, theirs) = UnixStream::pair()?;
            held.push(theirs);
            Ok(Conversation { from: Box::new(ours.try_clone()?), to: Box::new(ours) })
        };
        let start = std::time::Instant::now();
        let error = landing.land(&mut connect, &wants).unwrap_err();
        assert!(matches!(error, LandingError::Git(sandbox_git::GitError::Timeout { .. })), "{error:?}");
        assert!(start.elapsed() < Duration::from_secs(20));
    });
}

#[test]
fn the_move_is_all_or_nothing() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        let inside = world.spawn(&top, "in");
        inside.git(&["commit", "-q", "--allow-empty", "-m", "new"]);
        let head = oid(&inside.git(&["rev-parse", "HEAD"]));
        let base = oid(&inside.git(&["rev-parse", "HEAD~1"]));
        let landing = open(&inside, Bounds::default());
        land(&inside, &landing, &[("refs/sandbox/x", head)]).unwrap();
        let host = world.host(&top);
        let before = refs(&world, &top);
        let wrong = [update("refs/sandbox/x", None, head), update("refs/sandbox/y", Some(base), head)];
        assert!(matches!(landing.move_to_host(None, &host, "x", &wrong), Err(LandingError::Changed(_))));
        world.git(&top, &["update-ref", "refs/sandbox/x/theirs", "HEAD"]);
        let blocked = [update("refs/sandbox/ok", None, head), update("refs/sandbox/x", None, head)];
        assert!(matches!(landing.move_to_host(None, &host, "x", &blocked), Err(LandingError::InTheWay(_))));
        world.git(&top, &["update-ref", "-d", "refs/sandbox/x/theirs"]);
        assert_eq!(refs(&world, &top), before);
        landing.move_to_host(None, &host, "x", &[update("refs/sandbox/x", None, head)]).unwrap();
        landing::delete_refs(&world.git, &host, &[(name("refs/sandbox/x"), head)]).unwrap();
        assert_eq!(refs(&world, &top), before);
    });
}

#[test]
fn locks_of_others_are_waited_for_and_stale_ones_of_ours_removed() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        let inside = world.spawn(&top, "in");
        let head = oid(&inside.git(&["rev-parse", "HEAD"]));
        let landing = open(&inside, Bounds::default());
        let host = world.host(&top);
        fs::create_dir_all(top.join(".git/refs/sandbox")).unwrap();
        let lock = top.join(".git/refs/sandbox/x.lock");
        fs::write(&lock, "").unwrap();
        let held = lock.clone();
        let gone = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(1500));
            fs::remove_file(held).unwrap();
        });
        landing.move_to_host(None, &host, "x", &[update("refs/sandbox/x", None, head)]).unwrap();
        gone.join().unwrap();

        let stale = top.join(".git/refs/sandbox/y.lock");
        let file = fs::File::create(&stale).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
        let updates = [update("refs/sandbox/y", None, head)];
        assert_eq!(landing::stale_locks(&host, &updates), [stale]);
        landing.move_to_host(None, &host, "y", &updates).unwrap();
    });
}

#[test]
fn what_the_host_has_lost_is_given_back() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        world.git(&top, &["checkout", "-q", "-b", "work"]);
        write(&top, "w", "w\n");
        world.commit(&top, "work");
        let inside = world.spawn(&top, "in");
        inside.git(&["commit", "-q", "--allow-empty", "-m", "on top"]);
        let head = oid(&inside.git(&["rev-parse", "HEAD"]));
        world.git(&top, &["checkout", "-q", "main"]);
        world.git(&top, &["branch", "-q", "-D", "work"]);
        world.git(&top, &["reflog", "expire", "--expire=now", "--all"]);
        world.git(&top, &["gc", "-q", "--prune=now"]);
        let landing = open(&inside, Bounds::default());
        land(&inside, &landing, &[("refs/sandbox/x", head)]).unwrap();
        let outcome =
            landing.move_to_host(None, &world.host(&top), "x", &[update("refs/sandbox/x", None, head)]).unwrap();
        assert!(outcome.healed);
        world.git(&top, &["fsck", "--no-dangling"]);
        assert_eq!(world.git(&top, &["show", "sandbox/x:w"]), "w\n");
    });
}

#[test]
fn many_objects_come_as_one_pack() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        let inside = world.spawn(&top, "in");
        for n in 0..150 {
            write(&inside.top, &format!("many/{n}"), &format!("{n}\n"));
        }
        inside.git(&["add", "-A"]);
        inside.git(&["commit", "-q", "-m", "many"]);
        let head = oid(&inside.git(&["rev-parse", "HEAD"]));
        let landing = open(&inside, Bounds::default());
        land(&inside, &landing, &[("refs/sandbox/x", head)]).unwrap();
        landing.move_to_host(None, &world.host(&top), "x", &[update("refs/sandbox/x", None, head)]).unwrap();
        let packs = listing(&top.join(".git/objects/pack"));
        assert!(packs.iter().any(|name| name.ends_with(".idx")));
        assert!(!packs.iter().any(|name| name.contains("tmp_") || name.ends_with(".keep")), "{packs:?}");
        world.git(&top, &["fsck", "--no-dangling"]);
    });
}

/// A `prune`, `repack` or `gc` of the user between the objects and the refs takes nothing away.
#[test]
fn no_gc_takes_what_the_refs_are_about_to_name() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        let inside = world.spawn(&top, "inside");
        write(&inside.top, "new", "1\n");
        inside.git(&["add", "-A"]);
        inside.git(&["commit", "-q", "-m", "new"]);
        let head = oid(&inside.git(&["rev-parse", "HEAD"]));
        let host = world.host(&top);
        let landing = open(&inside, Bounds::default());
        land(&inside, &landing, &[("refs/sandbox/x", head)]).unwrap();
        let is_there = || world.try_git(&top, &["cat-file", "-e", &head.to_string()]).status.success();
        // The transaction waits for the lock of another git.
        let lock = top.join(".git/refs/sandbox/x.lock");
        fs::create_dir_all(lock.parent().unwrap()).unwrap();
        fs::write(&lock, "").unwrap();
        let outcome = std::thread::scope(|scope| {
            let moving =
                scope.spawn(|| landing.move_to_host(None, &host, "x", &[update("refs/sandbox/x", None, head)]));
            while !is_there() && !moving.is_finished() {
                std::thread::sleep(Duration::from_millis(5));
            }
            for args in [&["repack", "-q", "-a", "-d"][..], &["prune", "--expire=now"]] {
                world.git(&top, args);
            }
            let kept = is_there();
            fs::remove_file(&lock).unwrap();
            assert!(kept, "what the transaction is about to name was taken");
            moving.join().unwrap()
        });
        assert!(!outcome.unwrap().healed);
        world.git(&top, &["fsck", "--no-dangling"]);
        let packs = listing(&top.join(".git/objects/pack"));
        assert!(!packs.iter().any(|name| name.contains("tmp_") || name.ends_with(".keep")), "{packs:?}");
    });
}

/// A large file that was brought home once does not come again with each later commit.
#[test]
fn what_was_given_before_is_not_given_again() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        let inside = world.spawn(&top, "inside");
        let host = world.host(&top);
        let size = || -> u64 {
            let files = walkdir(&top.join(".git/objects"));
            files.iter().map(|path| fs::metadata(path).unwrap().len()).sum()
        };
        // Does not compress.
        let mut state = 1u64;
        let noise: String = (0..12 << 20)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                char::from(b' ' + (state >> 58) as u8)
            })
            .collect();
        write(&inside.top, "large.txt", &noise);
        let mut old = None;
        let mut sizes = Vec::new();
        for n in 0..4 {
            write(&inside.top, "small.txt", &format!("{n}\n"));
            inside.git(&["add", "-A"]);
            inside.git(&["commit", "-q", "-m", &format!("number {n}")]);
            let tip = oid(&inside.git(&["rev-parse", "HEAD"]));
            let landing = open(&inside, Bounds::default());
            let landed = land(&inside, &landing, &[("refs/sandbox/x", tip)]).unwrap();
            assert!(landed.refused.is_empty());
            landing.move_to_host(None, &host, "x", &[update("refs/sandbox/x", old, tip)]).unwrap();
            old = Some(tip);
            sizes.push(size());
        }
        assert!(sizes[0] > 8 << 20, "{sizes:?}");
        assert!(sizes[3] - sizes[0] < 1 << 20, "{sizes:?}");
        world.git(&top, &["fsck", "--full", "--strict"]);
        // A host that has lost all of it since gets all of it.
        world.git(&top, &["update-ref", "-d", "refs/sandbox/x"]);
        world.git(&top, &["reflog", "expire", "--expire=now", "--all"]);
        world.git(&top, &["gc", "-q", "--prune=now"]);
        let landing = open(&inside, Bounds::default());
        let tip = old.unwrap();
        land(&inside, &landing, &[("refs/sandbox/x", tip)]).unwrap();
        landing.move_to_host(None, &host, "x", &[update("refs/sandbox/x", None, tip)]).unwrap();
        world.git(&top, &["fsck", "--full", "--strict"]);
        assert_eq!(world.git(&top, &["cat-file", "-s", "refs/sandbox/x:large.txt"]).trim(), (12 << 20).to_string());
    });
}

fn walkdir(top: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    let mut dirs = vec![top.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() { dirs.push(entry.path()) } else { files.push(entry.path()) }
        }
    }
    files
}

#[test]
fn hooks_and_programs_of_either_side_do_not_run() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        let trap = world.path("trap");
        let touch = format!("touch {}", trap.display());
        let hooks = world.path("hooks");
        fs::create_dir(&hooks).unwrap();
        for hook in ["reference-transaction", "post-merge", "post-checkout", "post-index-change", "pre-auto-gc"] {
            let path = hooks.join(hook);
            fs::write(&path, format!("#!/bin/sh\n{touch}\n")).unwrap();
            Command::new("chmod").arg("+x").arg(path).status().unwrap();
        }
        let inside = world.spawn(&top, "in");
        for (repo, dir) in [(true, &top), (false, &inside.top)] {
            let set = |key: &str, value: &str| {
                if repo {
                    world.git(dir, &["config", key, value])
                } else {
                    inside.git(&["config", key, value])
                };
            };
            set("core.hooksPath", hooks.to_str().unwrap());
            set("core.fsmonitor", &touch);
            set("core.sshCommand", &touch);
            set("core.alternateRefsCommand", &touch);
            set("diff.external", &touch);
            set("uploadpack.packObjectsHook", &touch);
            set("credential.helper", &format!("!{touch}"));
        }
        let tree = inside.git(&["rev-parse", "HEAD^{tree}"]);
        let head =
            oid(&inside.git(&["-c", "core.hooksPath=/dev/null", "commit-tree", "-p", "HEAD", "-m", "x", tree.trim()]));
        let _ = fs::remove_file(&trap);
        let landing = open(&inside, Bounds::default());
        land(&inside, &landing, &[("refs/sandbox/x", head)]).unwrap();
        landing.move_to_host(None, &world.host(&top), "x", &[update("refs/sandbox/x", None, head)]).unwrap();
        let spawned = world.spawn(&top, "again");
        assert!(!trap.exists());
        let config = fs::read_to_string(spawned.top.join(".git/config")).unwrap().to_lowercase();
        for left_out in ["sshcommand", "fsmonitor", "alternaterefs", "packobjectshook", "helper"] {
            assert!(!config.contains(left_out), "{left_out}: {config}");
        }
    });
}

#[test]
fn a_plan_made_of_real_state_lands() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        let inside = world.spawn(&top, "in");
        inside.git(&["checkout", "-q", "-b", "a"]);
        inside.git(&["commit", "-q", "--allow-empty", "-m", "on a"]);
        inside.git(&["tag", "-a", "v9", "-m", "nine"]);
        write(&inside.top, "a.txt", "stashed\n");
        inside.git(&["stash"]);
        inside.git(&["checkout", "-q", "main"]);
        inside.git(&["branch", "-m", "a", "a/b"]);
        let list = |args: &[&str]| inside.git(args);
        let refs = list(&["for-each-ref", "--format=%(refname) %(objectname)"]);
        let state = RepoState {
            head_ref: Some("refs/heads/main".into()),
            head: Some(list(&["rev-parse", "HEAD"]).trim().into()),
            refs: refs.lines().map(|l| l.split_once(' ').unwrap()).map(|(n, o)| (n.into(), o.into())).collect(),
            stash: list(&["stash", "list", "--format=%H"]).lines().map(str::to_owned).collect(),
            ..RepoState::default()
        };
        let record = &inside.made.facts.views[0];
        let base = Base {
            branch: record.branch.as_deref().and_then(RefName::parse),
            refs: gitdir::granted_refs(&world.path("r").join(".git")).unwrap(),
            granted: record.granted.iter().map(|id| oid(id)).collect(),
        };
        let plan = plan_refs(&Name::parse("x").unwrap(), &state, &base, &BTreeMap::new(), ObjectFormat::Sha1);
        let planned: Vec<String> = plan.updates.iter().map(|planned| planned.name.to_string()).collect();
        assert_eq!(
            planned,
            ["refs/sandbox-meta/x/heads/a+/b", "refs/sandbox-meta/x/tags/v9", "refs/sandbox-meta/x/stash/0"]
        );
        let wants: Vec<Want> = plan.updates.iter().map(|p| Want { name: p.name.clone(), oid: p.new }).collect();
        let landing = open(&inside, Bounds::default());
        let gitdir = inside.top.join(".git");
        let landed = landing.land(&mut || serve(&inside, &gitdir), &wants).unwrap();
        assert_eq!(landed.accepted.len(), 3, "{landed:?}");
        let updates: Vec<Update> =
            plan.updates.iter().map(|p| Update { name: p.name.clone(), old: p.old, new: Some(p.new) }).collect();
        landing.move_to_host(None, &world.host(&top), "x", &updates).unwrap();
        assert_eq!(world.git(&top, &["show", "refs/sandbox-meta/x/stash/0:a.txt"]), "stashed\n");
        world.git(&top, &["fsck", "--no-dangling"]);
    });
}

/// M15: with a bitmap an honest upload-pack leaves out old blobs that come back in a revert.
#[test]
fn a_revert_to_old_content_is_imported_although_a_bitmap_exists() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        world.git(&top, &["repack", "-q", "-a", "-d", "--write-bitmap-index"]);
        let inside = world.spawn(&top, "in");
        inside.git(&["repack", "-q", "-a", "-d", "--write-bitmap-index"]);
        inside.git(&["revert", "--no-edit", "HEAD"]);
        let head = oid(&inside.git(&["rev-parse", "HEAD"]));
        assert_eq!(inside.git(&["rev-parse", "HEAD:dir/b.txt"]), inside.git(&["rev-parse", "HEAD~2:dir/b.txt"]));
        let landing = open(&inside, Bounds::default());
        let landed = land(&inside, &landing, &[("refs/sandbox/x", head)]).unwrap();
        assert_eq!(landed.accepted.len(), 1, "{landed:?}");
        landing.move_to_host(None, &world.host(&top), "x", &[update("refs/sandbox/x", None, head)]).unwrap();
        world.git(&top, &["fsck", "--no-dangling"]);
    });
}

/// M14: a lying upload-pack names a private object of the host, plainly or as the base of a thin pack.
#[test]
fn a_private_object_can_neither_be_named_nor_used_as_a_base() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        world.git(&top, &["checkout", "-q", "-b", "private"]);
        let secret = "the host's private text, never granted\n";
        write(&top, "secret.txt", secret);
        world.commit(&top, "private");
        let private = oid(&world.git(&top, &["rev-parse", "HEAD:secret.txt"]));
        world.git(&top, &["checkout", "-q", "main"]);
        let inside = world.spawn(&top, "in");
        let base = oid(&inside.git(&["rev-parse", "HEAD"]));

        // A commit whose tree names the private blob: made in a repository of our own.
        let forge = world.repo("forge", &[]);
        let file = world.path("tree");
        let mut tree = b"100644 leaked\0".to_vec();
        tree.extend_from_slice(private.as_bytes());
        fs::write(&file, &tree).unwrap();
        let tree_id =
            oid(&world.git(&forge, &["hash-object", "-t", "tree", "-w", "--literally", file.to_str().unwrap()]));
        let commit = format!(
            "tree {tree_id}\nparent {base}\nauthor a <a> 1700000000 +0000\ncommitter a <a> 1700000000 +0000\n\nlie\n"
        );
        let file = world.path("commit");
        fs::write(&file, &commit).unwrap();
        let tip =
            oid(&world.git(&forge, &["hash-object", "-t", "commit", "-w", "--literally", file.to_str().unwrap()]));

        let plain = pack(&[object(1, commit.as_bytes()), object(2, &tree)]);
        // Copies the whole base and adds a byte.
        let size = secret.len() as u8;
        let delta = [size, size + 1, 0x90, size, 1, b'!'];
        let thin = pack(&[object(1, commit.as_bytes()), object(2, &tree), delta_object(private, &delta)]);
        for bytes in [plain, thin] {
            let landing = open(&inside, Bounds::default());
            let wants = [Want { name: name("refs/sandbox/x"), oid: tip }];
            let landed = landing.land(&mut || liar(tip, bytes.clone()), &wants).unwrap();
            assert_eq!(landed.accepted, [], "{landed:?}");
            let reason = &landed.refused[0].1;
            assert!(
                [
                    "unresolved delta",
                    "did not receive expected object",
                    "did not send all necessary objects",
                    "missing",
                    "Could not read",
                    "bad object"
                ]
                .iter()
                .any(|known| reason.contains(known)),
                "{reason}"
            );
            let out =
                world.git.host(landing.dir()).args(["cat-file", "-e"]).arg(private.to_string()).try_output().unwrap();
            assert!(!out.0.success(), "the private object did not reach the landing");
        }
        // The control: where everything of the host can be seen, the same pack is taken.
        let control = world.spawn_with(&top, "control", &[], true);
        let landing = open(&control, Bounds::default());
        let thin = pack(&[object(1, commit.as_bytes()), object(2, &tree), delta_object(private, &delta)]);
        let wants = [Want { name: name("refs/sandbox/x"), oid: tip }];
        assert_eq!(landing.land(&mut || liar(tip, thin.clone()), &wants).unwrap().accepted.len(), 1);
    });
}

/// An upload-pack that advertises `tip` and answers any request with `pack`.
fn liar(tip: Oid, pack: Vec<u8>) -> io::Result<Conversation> {
    let (ours, theirs) = UnixStream::pair()?;
    std::thread::spawn(move || -> io::Result<()> {
        let (mut input, mut out) = (theirs.try_clone()?, theirs);
        let line = |text: &str| format!("{:04x}{text}", text.len() + 4);
        let caps = "ofs-delta thin-pack no-progress allow-any-sha1-in-want agent=liar";
        out.write_all(line(&format!("{tip} refs/heads/x\0{caps}\n")).as_bytes())?;
        out.write_all(b"0000")?;
        // Wants, a flush, haves, `done`.
        let mut seen = Vec::new();
        let mut chunk = [0; 4096];
        while !seen.windows(8).any(|w| w == b"0009done") {
            let n = input.read(&mut chunk)?;
            if n == 0 {
                return Ok(());
            }
            seen.extend_from_slice(&chunk[..n]);
            // Each round of haves ends with a flush and wants an answer.
            if seen.ends_with(b"0000") && seen.windows(5).any(|w| w == b"have ") {
                out.write_all(line("NAK\n").as_bytes())?;
            }
        }
        out.write_all(line("NAK\n").as_bytes())?;
        out.write_all(&pack)
    });
    Ok(Conversation { from: Box::new(ours.try_clone()?), to: Box::new(ours) })
}

fn pack(objects: &[Vec<u8>]) -> Vec<u8> {
    let mut out = b"PACK\0\0\0\x02".to_vec();
    out.extend_from_slice(&(objects.len() as u32).to_be_bytes());
    out.extend(objects.concat());
    let mut sum = Command::new("sha1sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    sum.stdin.take().unwrap().write_all(&out).unwrap();
    let hex = String::from_utf8(sum.wait_with_output().unwrap().stdout).unwrap();
    out.extend_from_slice(oid(&hex[..40]).as_bytes());
    out
}

fn object(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = header(kind, body.len());
    out.extend(zlib(body));
    out
}

fn delta_object(base: Oid, delta: &[u8]) -> Vec<u8> {
    let mut out = header(7, delta.len());
    out.extend_from_slice(base.as_bytes());
    out.extend(zlib(delta));
    out
}

fn header(kind: u8, size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut byte = kind << 4 | (size & 15) as u8;
    let mut rest = size >> 4;
    while rest > 0 {
        out.push(byte | 0x80);
        byte = (rest & 0x7f) as u8;
        rest >>= 7;
    }
    out.push(byte);
    out
}

/// One stored block: valid zlib without a compressor.
fn zlib(body: &[u8]) -> Vec<u8> {
    let len = body.len() as u16;
    let mut out = vec![0x78, 0x01, 0x01];
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&(!len).to_le_bytes());
    out.extend_from_slice(body);
    let (mut a, mut b) = (1u32, 0u32);
    for byte in body {
        a = (a + u32::from(*byte)) % 65521;
        b = (b + a) % 65521;
    }
    out.extend_from_slice(&(b << 16 | a).to_be_bytes());
    out
}

#[test]
fn a_sandbox_without_git_is_not_the_fault_of_a_ref() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        let inside = world.spawn(&top, "in");
        let wants = [Want { name: name("refs/sandbox/x"), oid: oid(&"3".repeat(40)) }];
        let nothing = || Ok(Conversation { from: Box::new(io::empty()), to: Box::new(io::sink()) });
        let error = open(&inside, Bounds::default()).land(&mut { nothing }, &wants).unwrap_err();
        assert!(matches!(error, LandingError::Connect(_)), "{error:?}");
    });
}

#[test]
fn only_tags_may_hold_something_else_than_a_commit() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        let inside = world.spawn(&top, "in");
        write(&inside.top, "x", "new blob\n");
        let blob = oid(&inside.git(&["hash-object", "-w", "x"]));
        inside.git(&["update-ref", "refs/tags/blob", &blob.to_string()]);
        inside.git(&["tag", "-a", "annotated", "-m", "a", &blob.to_string()]);
        let tag = oid(&inside.git(&["rev-parse", "annotated"]));
        let tree = oid(&inside.git(&["rev-parse", "HEAD:dir"]));
        let wants = [
            ("refs/sandbox/x", blob),
            ("refs/sandbox-meta/x/heads/t", tag),
            ("refs/sandbox-meta/x/head", tree),
            ("refs/sandbox-meta/x/tags/t", tag),
            ("refs/sandbox-meta/x/tags/b", blob),
            ("refs/sandbox-meta/x/tags/tree", tree),
        ];
        // One object may be fit for one name and not for another: they are asked for one by one.
        for (n, (name, oid)) in wants.into_iter().enumerate() {
            let landed = land(&inside, &open(&inside, Bounds::default()), &[(name, oid)]).unwrap();
            assert_eq!(landed.accepted.len(), usize::from(n >= 3), "{landed:?}");
        }
        let both = land(&inside, &open(&inside, Bounds::default()), &[wants[1], wants[3]]).unwrap();
        assert_eq!((both.accepted.len(), both.refused.len()), (1, 1), "{both:?}");
    });
}

#[test]
fn with_all_objects_granted_only_what_is_new_is_sent() {
    each_git(|world| {
        let top = world.repo("r", &[]);
        let noise: String = (0..200_000u64).map(|n| n.wrapping_mul(2_654_435_761).to_string()).collect();
        write(&top, "noise", &noise);
        world.commit(&top, "large");
        let inside = world.spawn_with(&top, "in", &[], true);
        inside.git(&["commit", "-q", "--allow-empty", "-m", "small"]);
        let head = oid(&inside.git(&["rev-parse", "HEAD"]));
        let landing = open(&inside, Bounds::default());
        let landed = land(&inside, &landing, &[("refs/sandbox/x", head)]).unwrap();
        assert_eq!(landed.accepted.len(), 1);
        assert!(landed.bytes < 4096, "{}", landed.bytes);
        let outcome =
            landing.move_to_host(None, &world.host(&top), "x", &[update("refs/sandbox/x", None, head)]).unwrap();
        assert_eq!(outcome.objects, 1);
    });
}
