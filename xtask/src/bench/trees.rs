//! The two repositories of the bench: small, and large with four ignored files for each tracked one.

use sandbox_testkit::{Repo, TestEnv, set_mtimes};
use std::fs;
use std::io::Write;
use std::path::Path;

/// Makes a repository with so many tracked and ignored files, all committed and clean.
pub fn make<'e>(env: &'e TestEnv, name: &str, tracked: usize, ignored: usize) -> Result<Repo<'e>, String> {
    let repo = env.repo_at(name);
    let make = || -> std::io::Result<()> {
        fs::create_dir_all(repo.dir())?;
        let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
        fill(&repo.dir().join("src"), tracked, 4_000, &mut noise)?;
        fill(&repo.dir().join("node_modules"), ignored, 10_000, &mut noise)?;
        fs::write(repo.dir().join(".gitignore"), "node_modules/\n")
    };
    make().map_err(|error| format!("cannot make the repository '{name}': {error}"))?;
    set_mtimes(repo.dir());
    repo.git(&["init", "-q"]).expect(0);
    repo.git(&["add", "-A"]).expect(0);
    repo.git(&["commit", "-q", "-m", "Everything"]).expect(0);
    repo.git(&["gc", "-q"]).expect(0);
    repo.git(&["status"]).expect(0);
    Ok(repo)
}

/// Numbers that look random and are the same each time.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Forty files a directory, ten directories a level; sizes from a few bytes to four times `mean`.
fn fill(dir: &Path, files: usize, mean: u64, noise: &mut Noise) -> std::io::Result<()> {
    for n in 0..files.div_ceil(40) {
        let sub = dir.join(format!("d{}", n / 100)).join(format!("e{}", n / 10 % 10)).join(format!("f{}", n % 10));
        fs::create_dir_all(&sub)?;
        for file in 0..40.min(files - n * 40) {
            let share = noise.next() % 1000;
            let size = (mean * share * share * 3 / 1_000_000) as usize + 20;
            let mut bytes = Vec::with_capacity(size + 20);
            while bytes.len() < size {
                writeln!(bytes, "{:016x}", noise.next())?;
            }
            fs::write(sub.join(format!("file{file}.txt")), bytes)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_has_what_was_asked_for() {
        let env = TestEnv::new();
        let repo = make(&env, "r", 100, 90).unwrap();
        assert_eq!(repo.git(&["ls-files", "src"]).ok().lines().count(), 100);
        assert_eq!(repo.sh("find node_modules -type f | wc -l").ok().trim(), "90");
        assert_eq!(repo.git(&["status", "--porcelain"]).ok(), "");
    }
}
