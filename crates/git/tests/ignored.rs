//! What is ignored, asked of real gits with names that they read as something else.

use sandbox_git::{Git, HostEnv, ignored};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

#[test]
fn any_name_is_only_a_name() {
    for program in ["/usr/bin/git", "/usr/local/bin/git"].map(Path::new).into_iter().filter(|path| path.exists()) {
        let dir = tempfile::tempdir().unwrap();
        let env = HostEnv { path: "/usr/bin:/bin".into(), home: Some(dir.path().into()), ..HostEnv::default() };
        let git = Git::with_program(program.into(), env);
        let top = dir.path().join("repo");
        fs::create_dir(&top).unwrap();
        git.user(&top).args(["init", "-q"]).run().unwrap();
        fs::write(top.join(".gitignore"), "*.log\nbuild/\n").unwrap();
        fs::write(top.join("tracked.log"), "").unwrap();
        git.user(&top).args(["add", "-f", "tracked.log"]).run().unwrap();
        symlink("/usr", top.join("link")).unwrap();
        let hidden = ["a.log", "build/x", ":(bad).log", ":!b.log", "-n.log", "tracked.log", "\u{e9} \n.log"];
        // Below a link of the host no rule of the host says anything.
        let shown = ["a", "src/b.c", ":(bad)", ":", "link/x.log", "link/a/b/x.log", "*"];
        for asked in [[&hidden[..], &shown].concat(), shown.to_vec(), vec!["link/x"], Vec::new()] {
            let paths = asked.iter().map(|path| path.as_bytes());
            let found = ignored(git.user(&top), &top, paths).unwrap();
            let wanted = asked.iter().filter(|path| hidden.contains(path)).map(|path| path.as_bytes()).collect();
            assert_eq!(found, wanted, "{program:?}");
        }
        assert!(ignored(git.user(dir.path()), dir.path(), [&b"x"[..]]).is_err(), "no repository");
    }
}
