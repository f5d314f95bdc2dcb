//! Clones of every shape, in every version, over every transport, of both hashes.

use crate::world::{PRIVATE, SHA1, SHA256, TOKEN, World, commit, until};
use sandbox_mirror::event::{GitService, Outcome, Shape};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

fn bases(world: &World) -> [String; 2] {
    [format!("http://{}", world.http), format!("git://{}", world.git)]
}

#[test]
fn clones_of_every_shape() {
    let world = World::new();
    let tips: Vec<String> =
        [SHA1, SHA256].iter().map(|name| world.at(&world.source(name), &["rev-parse", "HEAD"]).ok()).collect();
    let mut n = 0;
    for base in bases(&world) {
        for (name, tip) in [SHA1, SHA256].iter().zip(&tips) {
            for version in ["0", "1", "2"] {
                let config = format!("protocol.version={version}");
                for shape in
                    [&["--depth=1"][..], &[], &["--filter=blob:none"], &["--depth=1", "--filter=blob:none", "--sparse"]]
                {
                    n += 1;
                    let dir = world.dir(&format!("clone{n}"));
                    let url = format!("{base}/{name}.git");
                    let args = [&["-c", &config, "clone", "-q"], shape, &[&url, dir.to_str().unwrap()]].concat();
                    world.run(&args).ok();
                    assert_eq!(&world.at(&dir, &["rev-parse", "HEAD"]).ok(), tip, "{args:?}");
                    assert_eq!(world.at(&dir, &["status", "--porcelain"]).ok(), "", "{args:?}");
                    if shape.contains(&"--sparse") {
                        assert!(!dir.join("d0").exists());
                        world.at(&dir, &["-c", &config, "sparse-checkout", "set", "d0"]).ok();
                        assert!(dir.join("d0/f0").exists(), "fetched when it was asked for");
                    }
                    world.at(&dir, &["-c", &config, "fetch", "-q", "origin", "side"]).ok();
                }
            }
        }
    }
    let served = world.seen.served();
    assert!(served.iter().all(|one| one.outcome == Outcome::Done && one.said.is_empty()), "{served:?}");
    for shape in [Shape::Full, Shape::Shallow, Shape::Blobless, Shape::ShallowBlobless, Shape::Refs] {
        assert!(served.iter().any(|one| one.shape == shape), "{shape:?}");
    }
    until("all processes ended", || world.children().is_empty());
}

#[test]
fn new_commits_arrive_and_an_unknown_one_is_told_by_name() {
    let world = World::new();
    for base in bases(&world) {
        let dir = world.dir(base.split(':').next().unwrap());
        world.run(&["clone", "-q", &format!("{base}/{SHA1}"), dir.to_str().unwrap()]).ok();
        let tip = commit(&world.env, &world.source(SHA1), &base);
        world.refresh(SHA1);
        world.at(&dir, &["pull", "-q"]).ok();
        assert_eq!(world.at(&dir, &["rev-parse", "HEAD"]).ok().trim(), tip);
        let absent = "1".repeat(40);
        let said = world.at(&dir, &["fetch", "-q", "origin", &absent]).expect(128).stderr;
        assert!(said.contains(&format!("upload-pack: not our ref {absent}")), "{said}");
    }
    assert!(world.seen.served().iter().any(|one| one.outcome == Outcome::Refused && one.said.contains("not our ref")));
}

#[test]
fn over_a_unix_socket() {
    let world = World::new();
    // Git itself speaks no HTTP over a Unix socket: what stands between is what a sandbox has.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let path = world.unix.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let to = std::os::unix::net::UnixStream::connect(&path).unwrap();
            let (mut a, mut b) = (stream.try_clone().unwrap(), to.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut a, &mut b);
                let _ = b.shutdown(std::net::Shutdown::Write);
            });
            let (mut a, mut b) = (stream, to);
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut b, &mut a);
                let _ = a.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    let dir = world.dir("clone");
    world.run(&["clone", "-q", &format!("http://{address}/{SHA1}"), dir.to_str().unwrap()]).ok();
    assert!(dir.join("d0/f0").exists());
}

#[test]
fn what_is_private_is_for_whom_it_was_granted() {
    let world = World::new();
    let ls = |address: std::net::SocketAddr, name: &str, config: &[&str]| {
        let url = format!("http://{address}/{name}");
        world.run(&[config, &["ls-remote", &url, "HEAD"]].concat())
    };
    // Not known and not granted look the same.
    let hidden = ls(world.http, PRIVATE, &[]).expect(128).stderr;
    let absent = ls(world.http, "forge.test/o/absent", &[]).expect(128).stderr;
    assert_eq!(hidden.replace("private", "absent"), absent);
    let said = ls(world.other, PRIVATE, &[]).expect(128).stderr;
    assert!(said.contains("not found"), "{said}");
    ls(world.session, PRIVATE, &[]).ok();
    let header = format!("http.extraHeader=Authorization: Bearer {TOKEN}");
    ls(world.http, PRIVATE, &["-c", &header]).ok();
    // A token does not make a connection somebody else's.
    ls(world.other, PRIVATE, &["-c", &header]).expect(128);
    let said = world.run(&["ls-remote", &format!("git://{}/{PRIVATE}", world.git)]).expect(128).stderr;
    assert_eq!(said.trim(), "fatal: remote error: no such repository");
}

#[test]
fn refs_of_the_service_are_nobodys_and_other_services_are_refused() {
    let world = World::new();
    let mirror = world.mirror(SHA1);
    for name in ["refs/agents/s9", "refs/keep/x", "refs/base/x", "refs/pull/1/head"] {
        world.at(&mirror, &["update-ref", name, "main"]).ok();
    }
    for base in bases(&world) {
        for version in ["0", "2"] {
            let config = format!("protocol.version={version}");
            let refs = world.run(&["-c", &config, "ls-remote", &format!("{base}/{SHA1}")]).ok();
            let names: Vec<_> = refs.lines().map(|line| line.split('\t').nth(1).unwrap()).collect();
            assert_eq!(names, ["HEAD", "refs/heads/main", "refs/heads/side", "refs/tags/v1", "refs/tags/v1^{}"]);
        }
    }
    let url = format!("git://{}/{SHA1}", world.git);
    let said = world.run(&["archive", &format!("--remote={url}"), "HEAD"]).stderr;
    assert!(said.contains("only git-upload-pack and git-receive-pack are served"), "{said}");
}

/// 64 clones at once: git's own daemon drops half of them.
#[test]
fn none_of_many_is_dropped() {
    let world = World::new();
    for base in bases(&world) {
        let url = format!("{base}/{SHA1}");
        let clones: Vec<_> = (0..64)
            .map(|n| {
                let dir = world.dir(&format!("many-{}-{n}", &base[..3]));
                let mut command = world.env.command(&world.env.git_used().path, world.env.root());
                command.args(["clone", "-q", "--depth=1", &url]).arg(dir);
                command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        for clone in clones {
            let out = clone.wait_with_output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        }
    }
}

/// A client that asks for everything and goes away leaves nothing running.
#[test]
fn who_goes_away_leaves_no_process() {
    let world = World::new();
    // Much more than fits into all the buffers on the way.
    let source = world.source(SHA1);
    let mut noise = vec![0; 24 << 20];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    std::fs::write(source.join("noise"), noise).unwrap();
    let tip = commit(&world.env, &source, "noise");
    world.refresh(SHA1);
    let mut body = Vec::new();
    sandbox_mirror::pktline::write(&mut body, format!("want {tip} side-band-64k no-progress\n").as_bytes());
    sandbox_mirror::pktline::flush(&mut body);
    sandbox_mirror::pktline::write(&mut body, b"done\n");
    let mut http = TcpStream::connect(world.http).unwrap();
    let head = format!(
        "POST /{SHA1}/git-upload-pack HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-git-upload-pack-request\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    http.write_all(head.as_bytes()).unwrap();
    http.write_all(&body).unwrap();
    let mut first = [0; 64];
    http.read_exact(&mut first).unwrap();
    assert!(first.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&first));

    let mut git = TcpStream::connect(world.git).unwrap();
    let mut opening = Vec::new();
    sandbox_mirror::pktline::write(&mut opening, format!("git-upload-pack /{SHA1}\0host=x\0").as_bytes());
    git.write_all(&opening).unwrap();
    git.write_all(&body).unwrap();
    git.read_exact(&mut first).unwrap();
    until("both run", || world.children().len() >= 2);
    drop((http, git));
    until("nothing runs", || world.children().is_empty());
    until("both are told", || {
        let served = world.seen.served();
        served
            .iter()
            .filter(|one| one.service == Some(GitService::UploadPack) && one.outcome == Outcome::Disconnected)
            .count()
            == 2
    });
}

/// What a client is told of a broken store is said where somebody looks into it.
#[test]
fn a_client_that_misses_something_lets_doubt() {
    let world = World::new();
    let mirror = world.mirror(SHA1);
    let entry = world.publisher.now().entry(&SHA1.parse().unwrap()).unwrap().clone();
    let doubted = || {
        let doubted = async { tokio::time::timeout(Duration::from_millis(1), entry.live.doubted()).await.is_ok() };
        world.runtime.block_on(doubted)
    };
    let clone = |n: usize, args: &[&str], url: &str| {
        let dir = world.dir(&format!("into{n}"));
        world.run(&[args, &["clone", "-q", "--no-checkout", url, dir.to_str().unwrap()]].concat())
    };
    clone(0, &[], &world.url(SHA1)).ok();
    assert!(!doubted());
    // Loose objects, one of which goes: first the blob of a file, then the tip.
    let packs = || std::fs::read_dir(mirror.join("objects/pack")).unwrap().flatten().map(|entry| entry.path());
    for pack in packs().filter(|path| path.extension().is_some_and(|kind| kind == "pack")) {
        let bytes = std::fs::read(&pack).unwrap();
        packs().for_each(|path| std::fs::remove_file(path).unwrap());
        let mut unpack = world.env.command(&world.env.git_used().path, &mirror);
        world.env.run_with_input(unpack.args(["unpack-objects", "-q"]), &bytes).ok();
    }
    let lose = |name: &str| {
        let id = world.at(&mirror, &["rev-parse", name]).ok().trim().to_owned();
        std::fs::remove_file(mirror.join("objects").join(&id[..2]).join(&id[2..])).unwrap();
    };
    lose("main:counter");
    assert_ne!(clone(1, &[], &world.url(SHA1)).status, 0);
    assert!(doubted() && entry.live.objects_doubted());
    lose("main");
    for (n, base) in bases(&world).iter().enumerate() {
        for version in ["0", "2"] {
            let config = format!("protocol.version={version}");
            let failed = clone(2 + n, &["-c", &config], &format!("{base}/{SHA1}"));
            until("it is told", doubted);
            assert!(failed.status != 0 || !failed.stderr.is_empty(), "{failed:?}");
        }
    }
    assert!(!entry.live.objects_doubted());
}
