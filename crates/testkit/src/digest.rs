//! What a tree holds, as a text that shows where two trees differ.

use std::path::Path;
use std::process::Command;

/// Prints the digest of the current directory. One text for host and sandbox, so that both
/// sides are asked the same: type, mode, size of files, modification time, path, link target;
/// then a checksum of each file's contents (of one over 1 GiB the ends and the middle). What is in
/// directories named `.git` is left out.
pub const DIGEST_SCRIPT: &str = r#"
{
find . -name .git -prune -o -type f -printf '%P\t%y %m %s %T@\n' -o -type l -printf '%P\t%y %T@ -> %l\n' -o -printf '%P\t%y %m %T@\n'
find . -name .git -prune -o -type f -size -1048577k -print0 | xargs -0 -r sha256sum 2>&1
find . -name .git -prune -o -type f -size +1048576k -print | while read -r huge
do
    half=$(($(stat -c %s "$huge") / 2))
    { head -c 65536 "$huge"; tail -c +$((half - 65535)) "$huge" | head -c 131072; tail -c 65536 "$huge"; } | sha256sum
    echo "of the ends and the middle of $huge"
done
} | LC_ALL=C sort
"#;

/// Returns the digest of a tree on the host.
///
/// # Panics
/// If the directory does not exist.
#[track_caller]
pub fn tree_digest(dir: &Path) -> String {
    assert!(dir.is_dir(), "no directory '{}'", dir.display());
    let output = Command::new("sh").arg("-c").arg(DIGEST_SCRIPT).current_dir(dir).output();
    String::from_utf8_lossy(&output.expect("sh exists").stdout).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn each_kind_of_change_shows() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        let touch = |file: &str| crate::set_mtimes(&dir.join(file));
        fs::write(dir.join("f"), "one").unwrap();
        fs::create_dir_all(dir.join(".git")).unwrap();
        symlink("f", dir.join("l")).unwrap();
        touch("");
        let before = tree_digest(dir);
        fs::write(dir.join(".git/x"), "not looked at").unwrap();
        touch("");
        assert_eq!(tree_digest(dir), before);
        fs::write(dir.join("f"), "two").unwrap();
        assert_ne!(tree_digest(dir), before, "mtime");
        touch("");
        assert_ne!(tree_digest(dir), before, "contents");
        fs::write(dir.join("f"), "one").unwrap();
        touch("");
        assert_eq!(tree_digest(dir), before);
        fs::set_permissions(dir.join("f"), fs::Permissions::from_mode(0o600)).unwrap();
        assert_ne!(tree_digest(dir), before, "mode");
    }
}
