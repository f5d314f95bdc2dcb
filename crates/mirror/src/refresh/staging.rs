//! The place where what an upstream sends is judged before the mirror has it.
//!
//! ```text
//! tmp/fetch-XXXX/          a bare repository without refs, gone afterwards
//!   objects/info/alternates ─► the mirror's objects
//!   tips                     what the mirror has: for the negotiation and for the connectivity check
//!   objects/pack/            what came, checked by index-pack (fsckObjects)
//! ```

use super::ask::{Ended, finish, started};
use super::reach::Reach;
use super::trouble::{Headers, Trouble, of_failure};
use crate::credential::Secret;
use crate::repo::MirrorRepo;
use sandbox_git::{Git, GitCommand, Oid};
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Faults of old histories that do no harm and that no mirror can mend: repositories that everybody uses have them.
pub(crate) const FORGIVEN: &[&str] = &[
    "badTimezone",
    "missingSpaceBeforeDate",
    "missingEmail",
    "missingNameBeforeEmail",
    "zeroPaddedFilemode",
    "zeroPaddedDate",
    "badDateOverflow",
    "missingTaggerEntry",
    "badTagName",
    "nulInCommit",
];

/// Adds to a fetch that objects are checked, and how strictly.
pub(super) fn judged(mut command: GitCommand) -> GitCommand {
    command = command.config("fetch.fsckObjects=true").config("fetch.unpackLimit=1");
    FORGIVEN.iter().fold(command, |command, id| command.config(format!("fetch.fsck.{id}=ignore")))
}

/// Who fetches what.
pub(super) struct Fetch<'a> {
    pub(super) git: &'a Git,
    pub(super) reach: &'a Reach,
    pub(super) secret: Option<&'a Secret>,
    pub(super) key: Option<&'a PathBuf>,
    pub(super) limit: Duration,
}

impl Fetch<'_> {
    /// Fetches these objects, with all that they reach, into `repo`, which has no refs of its own. `tips`: what its
    /// alternate has.
    pub(super) fn run(&self, repo: &MirrorRepo, wanted: &BTreeSet<Oid>, tips: Option<&Path>) -> Result<(), Trouble> {
        let command = self.reach.apply(judged(repo.git(self.git)), self.secret, self.key);
        let command = match tips {
            // Without it the walk over what is new would be one over everything.
            Some(file) => {
                command.config("core.alternateRefsCommand=cat \"$GIT_SANDBOX_TIPS\" #").env("GIT_SANDBOX_TIPS", file)
            }
            None => command,
        };
        let wants: String = wanted.iter().map(|oid| format!("{oid}\n")).collect();
        let running = command
            .timeout(self.limit)
            .stdin(wants)
            .args(["fetch", "--quiet", "--no-tags", "--no-auto-maintenance", "--no-write-fetch-head"])
            .args(["--no-recurse-submodules", "--stdin", "--end-of-options"])
            .arg(self.reach.upstream().url())
            .spawn()
            .map_err(started)?;
        match finish(running)? {
            Ended::Well(_) => Ok(()),
            Ended::Badly(stderr) => {
                let stderr = self.secret.map_or(stderr.clone(), |secret| secret.clean(&stderr));
                Err(of_failure(&stderr, &Headers::default()))
            }
        }
    }
}

/// Makes a repository that borrows from `mirror`; returns it with the file of tips.
pub(super) fn make(
    git: &Git,
    dir: &Path,
    mirror: &MirrorRepo,
    reach: &Reach,
    tips: impl Iterator<Item = Oid>,
) -> Result<(MirrorRepo, PathBuf), Trouble> {
    let local = |error: &dyn std::fmt::Display| Trouble::Local(error.to_string());
    let format = tips_format(mirror).unwrap_or_default();
    let repo = MirrorRepo::create(git, dir, format, reach.upstream()).map_err(|error| local(&error))?;
    let alternates = format!("{}\n", mirror.dir().join("objects").display());
    fs::write(dir.join("objects/info/alternates"), alternates).map_err(|error| local(&error))?;
    let file = dir.join("tips");
    let text: String = tips.map(|oid| format!("{oid}\n")).collect();
    fs::write(&file, text).map_err(|error| local(&error))?;
    Ok((repo, file))
}

/// The format of a repository, as its configuration says.
pub(super) fn tips_format(repo: &MirrorRepo) -> Option<sandbox_git::ObjectFormat> {
    let config = fs::read_to_string(repo.dir().join("config")).ok()?;
    let line = config
        .lines()
        .find_map(|line| line.trim().to_ascii_lowercase().strip_prefix("objectformat").map(str::to_owned));
    Some(match line {
        Some(line) => line.trim().strip_prefix('=')?.trim().parse().ok()?,
        None => sandbox_git::ObjectFormat::Sha1,
    })
}

/// What a `.keep` of [`promote`] says: what a killed service left is known by it.
const TAKEN_IN: &str = "git-sandbox mirror: refs will name what is in it\n";

/// Whether a `.keep` is one that [`promote`] made.
pub(crate) fn is_taken_in(keep: &Path) -> bool {
    fs::read(keep).is_ok_and(|text| text == TAKEN_IN.as_bytes())
}

/// Packs that came into a mirror and that no repack removes, not even one by hand without a thought for what no ref
/// names yet, until this is dropped: when refs name what is in them.
#[must_use = "until refs name what came, a repack may remove it"]
pub(super) struct TakenIn {
    keeps: Vec<PathBuf>,
    /// How many bytes came.
    pub(super) bytes: u64,
}

impl Drop for TakenIn {
    fn drop(&mut self) {
        for keep in &self.keeps {
            let _ = fs::remove_file(keep);
        }
    }
}

/// Links the packs that came into the mirror, each so that it is whole and kept as soon as git sees it: the index
/// last.
pub(super) fn promote(from: &MirrorRepo, to: &MirrorRepo) -> io::Result<TakenIn> {
    let (source, target) = (from.dir().join("objects/pack"), to.dir().join("objects/pack"));
    fs::create_dir_all(&target)?;
    let mut names: Vec<_> = fs::read_dir(&source)?.collect::<io::Result<Vec<_>>>()?;
    let rank = |name: &std::ffi::OsStr| match Path::new(name).extension().and_then(|kind| kind.to_str()) {
        Some("pack") => Some(0),
        Some("rev") => Some(1),
        Some("idx") => Some(2),
        _ => None,
    };
    names.retain(|entry| rank(&entry.file_name()).is_some());
    names.sort_by_key(|entry| rank(&entry.file_name()));
    let mut taken = TakenIn { keeps: Vec::new(), bytes: 0 };
    for entry in names {
        taken.bytes += entry.metadata()?.len();
        let place = target.join(entry.file_name());
        if rank(&entry.file_name()) == Some(0) {
            let keep = place.with_extension("keep");
            match fs::File::create_new(&keep) {
                Ok(mut file) => {
                    taken.keeps.push(keep);
                    file.write_all(TAKEN_IN.as_bytes())?;
                }
                // Somebody else's: it is kept all the same.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        match fs::hard_link(entry.path(), place) {
            // The same objects: packs are named by what is in them.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
    }
    fs::File::open(&target)?.sync_all()?;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_in_is_kept_until_it_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (MirrorRepo::at(dir.path().join("from")), MirrorRepo::at(dir.path().join("to")));
        for (repo, names) in [(&from, &["1.pack", "1.rev", "1.idx", "2.pack", "2.idx"][..]), (&to, &["2.keep"])] {
            fs::create_dir_all(repo.dir().join("objects/pack")).unwrap();
            for name in names {
                fs::write(repo.dir().join("objects/pack/pack-".to_owned() + name), "12345").unwrap();
            }
        }
        let there = |name: &str| to.dir().join("objects/pack/pack-".to_owned() + name);
        let taken = promote(&from, &to).unwrap();
        assert_eq!(taken.bytes, 25);
        assert!(is_taken_in(&there("1.keep")) && !is_taken_in(&there("2.keep")));
        drop(taken);
        assert!(!there("1.keep").exists() && there("2.keep").exists(), "only our own goes");
        assert!(["1.pack", "1.rev", "1.idx", "2.pack", "2.idx"].iter().all(|name| there(name).exists()));
    }
}
