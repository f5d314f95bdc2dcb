//! The output of checks that failed.
//!
//! ```text
//! repos/<id>/checks/<unix seconds>-<sandbox>.log    kept for 30 days (`gc`)
//! ```

use crate::error::CliError;
use crate::text::escape;
use sandbox_core::id::RepoId;
use sandbox_core::store::{Store, make_dir, write_whole};
use sandbox_sys::clock::unix_seconds;
use std::path::{Path, PathBuf};

/// Lines that are shown of a failed check: its last ones.
const SHOWN: usize = 20;

/// Keeps an output, and returns where.
pub fn keep(store: &Store, repo: &RepoId, name: &str, output: &[u8]) -> Result<PathBuf, CliError> {
    let dir = store.repo(repo).path().join("checks");
    make_dir(&dir)?;
    let now = unix_seconds();
    let mut path = dir.join(format!("{now}-{name}.log"));
    for n in 2.. {
        if !path.exists() {
            break;
        }
        path = dir.join(format!("{now}-{name}-{n}.log"));
    }
    write_whole(&path, output, false)?;
    Ok(path)
}

/// Shows the end of an output, and where all of it is.
pub fn show(output: &[u8], path: &Path) {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<&str> = text.lines().collect();
    let left_out = lines.len().saturating_sub(SHOWN);
    for line in &lines[left_out..] {
        eprintln!("  | {}", line.split('\t').map(escape).collect::<Vec<_>>().join("\t"));
    }
    let what = if left_out > 0 { "all of its output" } else { "its output" };
    eprintln!("  {what} is in '{}'", escape(&path.to_string_lossy()));
}
