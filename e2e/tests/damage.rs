//! A damaged file of the state harms what it is of, is told with the next step, and nobody else minds.

use sandbox_testkit::{Repo, State, TestEnv};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// `repos/<id>` of the only repository.
fn repo_dir(env: &TestEnv) -> PathBuf {
    let repos = env.state().join("repos");
    repos.join(names(&repos).pop().expect("there is one"))
}

/// What `gc` must not take: by kind, all that there is.
fn held(env: &TestEnv) -> Vec<Vec<String>> {
    ["packs/objects/pack", "views", "layers", "snapshots"].map(|dir| names(&repo_dir(env).join(dir))).to_vec()
}

fn id(repo: &Repo, name: &str) -> String {
    let shown: Value = serde_json::from_str(&repo.sandbox(&["show", "--json", name]).ok()).unwrap();
    shown["id"].as_str().unwrap().to_owned()
}

/// Flips one bit of the last digit of an id, so that it still is JSON and still looks like an id; or cuts it.
fn damages(record: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let text = String::from_utf8(record.to_vec()).unwrap();
    let digit = |(at, window): (usize, &[u8])| (window.iter().all(u8::is_ascii_hexdigit)).then_some(at + 31);
    let at = text.as_bytes().windows(32).enumerate().find_map(digit).expect("there is an id in it");
    let mut flipped = record.to_vec();
    flipped[at] = if flipped[at] == b'1' { b'0' } else { b'1' };
    vec![("flipped", flipped), ("cut", record[..record.len() / 2].to_vec()), ("empty", Vec::new())]
}

/// Two sandboxes and one in the trash, each with a commit, and with a file that is not committed.
fn three(env: &TestEnv) -> Repo<'_> {
    let repo = State::Plain.build(env, "repo");
    for name in ["one", "two", "gone"] {
        let script = format!("echo {name} >{name}; git add {name}; git commit -qm {name}; echo {name} >more-{name}");
        repo.sandbox(&["spawn", "-q", name, "--", "sh", "-c", &script]).ok();
    }
    repo.sandbox(&["drop", "--force", "gone"]).ok();
    repo
}

#[test]
fn a_damaged_record_harms_only_what_it_is_of_and_repair_makes_it_whole() {
    let env = TestEnv::new();
    let repo = three(&env);
    let (one, gone) = (id(&repo, "one"), {
        let listed: Value = serde_json::from_str(&repo.sandbox(&["trash", "list", "--json"]).ok()).unwrap();
        listed["trash"][0]["id"].as_str().unwrap().to_owned()
    });
    let snapshots = repo_dir(&env).join("snapshots");
    let copied = |name: &String| name.ends_with(".copy");
    // What follows a spawn in the background makes the copy.
    sandbox_testkit::wait_until("it has a copy", std::time::Duration::from_secs(60), || {
        names(&snapshots).iter().any(copied)
    });
    let snapshot = names(&snapshots).into_iter().find(copied).unwrap();
    let view = names(&repo_dir(&env).join("views")).pop().unwrap();
    let before = held(&env);
    let records = [
        env.state().join("sandboxes").join(&one).join("sandbox.json"),
        env.state().join("trash").join(&gone).join("sandbox.json"),
        repo_dir(&env).join("kept").join(format!("{one}.json")),
        repo_dir(&env).join("kept").join(format!("{gone}.json")),
        snapshots.join(snapshot.strip_suffix(".copy").unwrap()),
        repo_dir(&env).join("views").join(view).join("view.json"),
        repo_dir(&env).join("ops/1.json"),
    ];
    for record in records {
        let whole = fs::read(&record).unwrap();
        let place = record.strip_prefix(env.state()).unwrap().to_string_lossy().into_owned();
        let of = place.split('/').next_back().unwrap().to_owned();
        for (how, bytes) in damages(&whole) {
            let seen = |what: &str| format!("{place} {how}: {what}");
            fs::write(&record, &bytes).unwrap();
            let listed = repo.sandbox(&["list"]).expect(0);
            assert!(listed.stdout.contains("two"), "{}", seen(&listed.to_string()));
            let trash = repo.sandbox(&["trash", "list"]).expect(0);
            if place.starts_with("sandboxes/") {
                let told = "warning: 'one' is left out: '";
                assert!(listed.stderr.starts_with(told) && listed.stderr.contains("`git sandbox repair`"), "{listed}");
                assert!(!listed.stdout.contains("one"), "{listed}");
                let json: Value = serde_json::from_str(&repo.sandbox(&["list", "--json"]).ok()).unwrap();
                assert_eq!(json["damaged"][0]["name"], "one");
                let shown = repo.sandbox(&["show", "one"]).expect(128);
                assert!(shown.stderr.contains("sandbox.json' is damaged\n"), "{shown}");
            } else if place.starts_with("trash/") || place.contains("/kept/") {
                assert!(
                    trash.stderr.contains("is left out: '") && trash.stderr.contains("`git sandbox repair`"),
                    "{trash}"
                );
            }
            repo.sandbox(&["spawn", "-q", "--rm", "--", "true"]).ok();
            repo.sandbox(&["exec", "two", "--", "git", "status"]).ok();
            repo.sandbox(&["fetch", "two"]).ok();
            // Nothing that it may stand on goes, whatever it says.
            let plan = repo.sandbox(&["gc", "--dry-run"]).expect(0);
            let cleaned = repo.sandbox(&["gc"]).expect(0);
            if !of.starts_with("view") && !of.starts_with('1') {
                for told in [&plan, &cleaned] {
                    assert!(
                        told.stderr.contains("warning: no layer and no pack is removed, since '"),
                        "{}",
                        seen(&told.to_string())
                    );
                }
            }
            assert_eq!(held(&env), before, "{}", seen("gc took something"));
            let found = repo.sandbox(&["repair", "--dry-run"]).expect(0);
            assert!(found.stdout.contains("is damaged\n"), "{}", seen(&found.to_string()));
            assert_eq!(fs::read(&record).unwrap(), bytes, "a dry run changes nothing");
            let mended = repo.sandbox(&["repair"]).expect(0);
            assert!(
                mended.stdout.contains("repaired '") && mended.stdout.contains("is damaged\n"),
                "{}",
                seen(&mended.to_string())
            );
            assert_eq!(fs::read(&record).unwrap(), whole, "{}", seen("the copy is not what was there"));
        }
    }
    repo.sandbox(&["repair"]).expect(0);
    repo.sandbox(&["trash", "restore", "gone"]).ok();
    assert_eq!(repo.sandbox(&["exec", "gone", "--", "cat", "gone", "more-gone"]).ok(), "gone\ngone\n");
    assert_eq!(repo.sandbox(&["exec", "one", "--", "cat", "one", "more-one"]).ok(), "one\none\n");
}

#[test]
fn without_a_copy_the_next_step_is_told() {
    let env = TestEnv::new();
    let repo = three(&env);
    let dir = env.state().join("sandboxes").join(id(&repo, "one"));
    fs::remove_file(dir.join("sandbox.json.copy")).unwrap();
    fs::write(dir.join("sandbox.json"), "").unwrap();
    let told = repo.sandbox(&["repair"]).expect(1);
    assert!(
        told.stdout.starts_with("LEFT     '") && told.stdout.contains("there is no copy of it: its files are in '"),
        "{told}"
    );
    assert!(repo.sandbox(&["list"]).expect(0).stdout.contains("two"));
    let before = held(&env);
    assert!(repo.sandbox(&["gc"]).expect(0).stderr.contains("no layer and no pack is removed"));
    assert_eq!(held(&env), before);
    // As it says.
    let shown = dir.display();
    assert!(told.stdout.contains(&format!("`chmod -R u+rwX '{shown}'; rm -r '{shown}'`")), "{told}");
    repo.sh(&format!("chmod -R u+rwX '{shown}'; rm -r '{shown}'")).ok();
    repo.sandbox(&["gc"]).expect(0);
    assert!(!repo.sandbox(&["list"]).expect(0).stderr.contains("warning"));
    assert!(repo.sandbox(&["trash", "list"]).ok().contains("one"), "its rescue is still in the vault");
}

/// Flips one bit in the middle of a file, through all of its names.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 0x10;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Packs of the vault, by whether a view has them too.
fn packs(env: &TestEnv, of_view: bool) -> Vec<PathBuf> {
    let dir = repo_dir(env).join("packs/objects/pack");
    let packs = names(&dir).into_iter().filter(|name| name.ends_with(".pack")).map(|name| dir.join(name));
    packs.filter(|path| (std::os::unix::fs::MetadataExt::nlink(&path.metadata().unwrap()) > 1) == of_view).collect()
}

#[test]
fn a_flipped_byte_of_a_view_is_found_and_mended_from_the_host() {
    let env = TestEnv::new();
    let repo = three(&env);
    let other = State::Plain.build(&env, "other");
    other.sandbox(&["spawn", "-q", "else", "--", "true"]).ok();
    let state = env.state().join("repos");
    let mine = names(&state).into_iter().map(|id| state.join(id)).find(|dir| {
        fs::read_to_string(dir.join("repo.json")).unwrap().contains(&format!("{}/.git\"", repo.dir().display()))
    });
    let vault = mine.unwrap().join("packs");
    let all = names(&vault.join("objects/pack"));
    let pack = all.iter().map(|name| vault.join("objects/pack").join(name)).find(|path| {
        path.extension().is_some_and(|ext| ext == "pack")
            && std::os::unix::fs::MetadataExt::nlink(&path.metadata().unwrap()) > 1
    });
    let pack = pack.expect("a view has a pack");
    for file in [pack.clone(), pack.with_extension("idx")] {
        flip(&file);
        let found = repo.sandbox(&["repair", "--dry-run"]).expect(0);
        assert!(
            found.stdout.contains(&format!("{}' is damaged", file.file_name().unwrap().to_str().unwrap())),
            "{found}"
        );
        // Nobody else minds.
        other.sandbox(&["exec", "else", "--", "git", "fsck", "--no-dangling"]).ok();
        other.sandbox(&["spawn", "-q", "--rm", "--", "git", "status"]).ok();
        repo.sandbox(&["list"]).expect(0);
        repo.git(&["fsck", "--no-dangling"]).ok();
        let mended = repo.sandbox(&["repair"]).expect(0);
        assert!(mended.stdout.contains("repaired '") && mended.stdout.contains("is damaged"), "{mended}");
        assert!(repo.sandbox(&["repair"]).expect(0).stdout.is_empty());
        repo.sandbox(&["exec", "one", "--", "git", "fsck", "--no-dangling"]).ok();
        repo.sandbox(&["spawn", "-q", "--rm", "--", "git", "fsck", "--no-dangling"]).ok();
    }
    repo.sandbox(&["branch", "one", "kept"]).ok();
    repo.git(&["cat-file", "-e", "kept:one"]).ok();
}

#[test]
fn a_flipped_byte_of_the_vault_is_told_and_what_it_kept_is_still_in_the_sandbox() {
    let env = TestEnv::new();
    let repo = three(&env);
    let own = packs(&env, false);
    assert!(!own.is_empty(), "a rescue is a pack of the vault alone");
    own.iter().for_each(|pack| flip(pack));
    let told = repo.sandbox(&["repair"]).expect(1);
    assert!(
        told.stdout.contains("LEFT     '") && told.stdout.contains("fsck` names it; commits made inside are in"),
        "{told}"
    );
    // Nothing is removed, and nothing else is harmed.
    repo.sandbox(&["gc"]).expect(0);
    assert!(own.iter().all(|pack| pack.exists()));
    repo.sandbox(&["spawn", "-q", "--rm", "--", "git", "fsck", "--no-dangling"]).ok();
    repo.sandbox(&["trash", "restore", "gone"]).ok();
    assert_eq!(repo.sandbox(&["exec", "gone", "--", "cat", "gone", "more-gone"]).ok(), "gone\ngone\n");
    repo.git(&["fsck", "--no-dangling"]).ok();
}
