//! `.sandbox.toml`: what a repository asks of its sandboxes. Read from the host's working tree,
//! never from a revision. It may only tighten what the user's settings allow.
//!
//! ```toml
//! net = "none"            # even if sandbox.net says host
//! memory = "2g"           # at most
//! disk = "10g"            # at most
//! pids = 256              # at most
//! timeout = "30m"         # at most
//! carry-secrets = false   # never, and nobody is asked
//! require = ["landlock"]  # layers of the wall that must stand, as `doctor` names them
//! min-isolation = "vm"    # no weaker driver
//! deny = ["example.com"]  # not even if it is allowed
//! check = "cargo test"   # before a merge lands, if the user agrees, who is asked once
//! with = ["../lib", "/srv/data:ro"]  # if the user agrees, who is asked once
//! ```

mod parse;

pub use parse::Project;

use crate::error::CliError;
use std::io;
use std::path::Path;

/// The file's name, at the top of the working tree.
pub const FILE: &str = ".sandbox.toml";

impl Project {
    /// Reads it; without the file nothing is asked.
    pub fn read(top: &Path) -> Result<Self, CliError> {
        let path = top.join(FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text).map_err(|why| {
                CliError::new(format!("'{FILE}' is not valid")).cause(crate::text::escape(&why)).hint(
                    "it may have net, memory, disk, pids, timeout, carry-secrets, require, min-isolation and deny, each only to tighten your settings, and check and with, which you are asked about",
                )
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(CliError::io(format!("read '{}'", path.display()))(error)),
        }
    }
}

#[cfg(test)]
#[path = "../fuzz/entries/project.rs"]
mod entry;

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_core::driver::Isolation;
    use sandbox_core::launch::Limits;

    #[test]
    fn it_only_tightens() {
        let project =
            Project::parse("net = \"none\"\nmemory = \"1g\"\npids = 2000\ntimeout = \"5m\"\ncarry-secrets = false")
                .unwrap();
        let limits = Limits { memory: Some(4 << 30), pids: Some(1024), ..Limits::default() };
        let tight = project.tighten(limits);
        assert_eq!((tight.memory, tight.pids, project.timeout), (Some(1 << 30), Some(1024), Some(300)));
        assert!(project.no_secrets && project.offline);
        let denied = Project::parse("deny = [\"evil.example\", \"*.ads.example\"]").unwrap().deny;
        assert_eq!(denied.iter().map(ToString::to_string).collect::<Vec<_>>(), ["evil.example", "*.ads.example"]);
        let mut both = Project::parse("pids = 300\nwith = [\"../a\"]\ndeny = [\"a.example\"]").unwrap();
        both.and(&Project::parse("net = \"none\"\npids = 200\nwith = [\"../b\"]\ndeny = [\"b.example\"]").unwrap());
        assert_eq!((both.offline, both.limits.pids, both.deny.len()), (true, Some(200), 2));
        assert_eq!(both.with, ["../a"], "what another one asks for is not asked for here");
        let strict = Project::parse("require = [\"landlock\"]\nmin-isolation = \"vm\"").unwrap();
        let mut both = Project::parse("require = [\"limits\"]\nmin-isolation = \"namespace\"").unwrap();
        both.and(&strict);
        assert_eq!((both.require.join(" "), both.min_isolation), ("limits landlock".to_owned(), Some(Isolation::Vm)));
        for bad in [
            "require = [\"luck\"]",
            "min-isolation = \"none\"",
            "with = [\":ro\"]",
            "check = \" \"",
            "check = [\"make\"]",
            "with = \"../a\"",
            "net = \"host\"",
            "carry-secrets = true",
            "memory = \"lots\"",
            "driver = \"none\"",
            "pids = \"x\"",
            "=",
            "timeout = \"x\"",
            "deny = [\"a b\"]",
            "allow = [\"example.com\"]",
        ] {
            assert!(Project::parse(bad).is_err(), "{bad}");
        }
    }

    /// The fuzz target without a fuzzer.
    #[test]
    fn any_text_only_tightens() {
        let pieces: [&[u8]; 12] = [
            b"=",
            b"\"",
            b"[",
            b"]",
            b"\n",
            b"#",
            b"net",
            b"memory = \"",
            b"pids = ",
            b"1e9",
            b"deny = [\"*.",
            b"\xff",
        ];
        sandbox_testkit::Corpus::new("project", &pieces).run(5_000, entry::project);
    }
}
