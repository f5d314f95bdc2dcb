//! From what is asked and what a mirror offers to a clone, as a value.
//!
//! | shape    | from a store that can be read here          | from the mirror           | from the upstream |
//! |----------|---------------------------------------------|---------------------------|-------------------|
//! | (none)   | shares its objects, full history            | depth 1                   | depth 1           |
//! | `tip`    | depth 1 by protocol: nothing is to be shared| depth 1                   | depth 1           |
//! | `sparse` | –                                           | depth 1 without blobs, then those of the directories | the same |
//! | `full`   | –                                           | everything                | everything        |
//! | `shared` | shares its objects                          | everything, with a note   | everything, with a note |
//!
//! Whatever the way, the clone is the same afterwards: `origin` is the upstream.

use super::probe::{Offer, Why};
use super::settings::{self, Setting};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// What a clone holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// The quickest one that has the files.
    #[default]
    Quickest,
    /// The newest commit alone.
    Tip,
    /// The newest commit, and of its files those below these directories.
    Sparse(Vec<String>),
    /// All history, in the clone itself.
    Full,
    /// All history, with objects borrowed from the mirror's store on this machine.
    Shared,
}

/// Text that is no shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a shape of a clone")]
pub struct BadShape {
    /// What was given.
    pub text: String,
}

impl FromStr for Shape {
    type Err = BadShape;

    fn from_str(text: &str) -> Result<Self, BadShape> {
        let bad = || BadShape { text: text.to_owned() };
        match text {
            "tip" => Ok(Self::Tip),
            "full" => Ok(Self::Full),
            "shared" => Ok(Self::Shared),
            _ => {
                let dirs: Vec<String> =
                    text.strip_prefix("sparse=").ok_or_else(bad)?.split(',').map(str::to_owned).collect();
                // Each is an argument of git.
                let plain = |dir: &String| !dir.is_empty() && !dir.starts_with('-') && !dir.contains(['\n', '\0']);
                if dirs.iter().all(plain) { Ok(Self::Sparse(dirs)) } else { Err(bad()) }
            }
        }
    }
}

/// What is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The upstream's URL, as recipes name it.
    pub url: String,
    /// What the clone is to hold.
    pub shape: Shape,
    /// A branch or tag, else what the upstream's `HEAD` names.
    pub branch: Option<String>,
    /// A commit that the clone must have.
    pub require: Option<String>,
    /// Nothing is told of progress.
    pub quiet: bool,
}

/// A mirror that has the repository, as git can reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// `http://HOST:PORT/host/owner/name`.
    pub url: String,
    /// What it has of it.
    pub offer: Offer,
    /// Headers that it wants to see, as settings.
    pub identity: Vec<Setting>,
    /// The URL is one that others can use later, and is kept as the remote `mirror`.
    pub lasting: bool,
}

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Borrowed from a store on this machine.
    Shared(PathBuf),
    /// Fetched from the mirror.
    Mirror,
    /// Fetched from the upstream, and why.
    Upstream(Why),
}

/// One step, in the clone unless it makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// `git <args> DIR`: makes the clone.
    Clone(Vec<String>),
    /// A repository is made that borrows from this store and has its refs.
    Borrow(PathBuf),
    /// `git <args>` in the clone.
    Git(Vec<String>),
    /// A setting of the clone.
    Keep(Setting),
    /// The branch `HEAD` of a repository that was made is checked out: the named one, else the upstream's.
    CheckOut(Option<String>),
    /// This commit is fetched, unless it is there.
    Have(String),
}

/// A clone to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where objects come from.
    pub way: Way,
    /// What holds for every git of it.
    pub settings: Vec<Setting>,
    /// What is done, in order.
    pub steps: Vec<Step>,
    /// What the user should know.
    pub notes: Vec<String>,
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Plans a clone from a mirror, or without one.
pub fn plan(asked: &Asked, mirror: Result<&Mirror, Why>) -> Plan {
    let mut settings = vec![Setting::new("checkout.workers", "0")];
    let mut notes = Vec::new();
    let store = mirror.as_ref().ok().and_then(|mirror| mirror.offer.store.clone());
    let shares = matches!(asked.shape, Shape::Shared | Shape::Quickest);
    let way = match (&mirror, store.filter(|_| shares)) {
        (Ok(_), Some(store)) => Way::Shared(store),
        (Ok(_), None) => Way::Mirror,
        (Err(why), _) => Way::Upstream(why.clone()),
    };
    if asked.shape == Shape::Shared && !matches!(way, Way::Shared(_)) {
        notes.push("there is no store of a mirror here that can be read: the clone has all objects itself".to_owned());
    }
    if let Ok(mirror) = &mirror {
        settings.extend(settings::transport());
        settings.extend(settings::redirect(&asked.url, &mirror.url));
        settings.extend(mirror.identity.iter().cloned());
    }
    let mut steps = Vec::new();
    match &way {
        Way::Shared(store) => {
            steps.push(Step::Borrow(store.clone()));
            steps.push(Step::Keep(Setting::new("remote.origin.url", &asked.url)));
            steps.push(Step::Keep(Setting::new("remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*")));
            steps.push(Step::CheckOut(asked.branch.clone()));
        }
        Way::Mirror | Way::Upstream(_) => {
            let mut args = words(&["clone"]);
            match &asked.shape {
                Shape::Tip | Shape::Quickest => args.extend(words(&["--depth=1", "--single-branch", "--no-tags"])),
                Shape::Sparse(_) => args.extend(words(&[
                    "--depth=1",
                    "--single-branch",
                    "--no-tags",
                    "--filter=blob:none",
                    "--no-checkout",
                ])),
                Shape::Full | Shape::Shared => {}
            }
            args.extend(asked.quiet.then(|| "--quiet".to_owned()));
            args.extend(asked.branch.iter().map(|branch| format!("--branch={branch}")));
            args.extend(words(&["--", &asked.url]));
            steps.push(Step::Clone(args));
            if let Shape::Sparse(dirs) = &asked.shape {
                // Before the first checkout: with it git asks once for the blobs of these directories alone.
                let mut set = words(&["sparse-checkout", "set", "--cone"]);
                set.extend(dirs.iter().cloned());
                steps.push(Step::Git(set));
                steps.push(Step::Git(words(&["checkout", "--quiet"])));
            }
        }
    }
    steps.extend(settings::kept().into_iter().map(Step::Keep));
    if let Ok(mirror) = &mirror
        && mirror.lasting
    {
        steps.push(Step::Keep(Setting::new("remote.mirror.url", &mirror.url)));
        // `git fetch --all` is about upstreams.
        steps.push(Step::Keep(Setting::new("remote.mirror.skipFetchAll", "true")));
    }
    steps.extend(asked.require.clone().map(Step::Have));
    Plan { way, settings, steps, notes }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.way {
            Way::Shared(store) => writeln!(f, "objects   borrowed from {}", store.display())?,
            Way::Mirror => writeln!(f, "objects   from the mirror")?,
            Way::Upstream(why) => writeln!(f, "objects   from the upstream: {why}")?,
        }
        for setting in &self.settings {
            // A header is a secret.
            let secret = setting.key.ends_with(".extraHeader");
            writeln!(f, "with      {}={}", setting.key, if secret { "…" } else { &setting.value })?;
        }
        for step in &self.steps {
            match step {
                Step::Clone(args) => writeln!(f, "git       {} DIR", args.join(" "))?,
                Step::Borrow(store) => writeln!(f, "borrow    {}", store.display())?,
                Step::Git(args) => writeln!(f, "git       {}", args.join(" "))?,
                Step::Keep(setting) => writeln!(f, "keep      {}={}", setting.key, setting.value)?,
                Step::CheckOut(branch) => writeln!(f, "check out {}", branch.as_deref().unwrap_or("HEAD"))?,
                Step::Have(commit) => writeln!(f, "have      {commit}")?,
            }
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "note      {note}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(shape: Shape) -> Asked {
        Asked { url: "https://forge.test/o/n".into(), shape, ..Asked::default() }
    }

    fn mirror(store: Option<&str>) -> Mirror {
        Mirror {
            url: "http://127.0.0.1:9480/forge.test/o/n".into(),
            offer: Offer { store: store.map(PathBuf::from) },
            identity: Vec::new(),
            lasting: true,
        }
    }

    #[test]
    fn the_quickest_shares_a_store_of_this_machine() {
        let plan = plan(&asked(Shape::Quickest), Ok(&mirror(Some("/var/m/1.git"))));
        insta::assert_snapshot!(plan, @"
        objects   borrowed from /var/m/1.git
        with      checkout.workers=0
        with      protocol.version=2
        with      http.lowSpeedLimit=1000
        with      http.lowSpeedTime=30
        with      url.http://127.0.0.1:9480/forge.test/o/n.insteadOf=https://forge.test/o/n
        with      url.https://forge.test/o/n.pushInsteadOf=https://forge.test/o/n
        borrow    /var/m/1.git
        keep      remote.origin.url=https://forge.test/o/n
        keep      remote.origin.fetch=+refs/heads/*:refs/remotes/origin/*
        check out HEAD
        keep      push.negotiate=true
        keep      remote.mirror.url=http://127.0.0.1:9480/forge.test/o/n
        keep      remote.mirror.skipFetchAll=true
        ");
    }

    #[test]
    fn a_sparse_clone_asks_for_the_blobs_of_its_directories_alone() {
        let asked =
            Asked { branch: Some("v1".into()), require: Some("abc".into()), ..asked("sparse=a,b/c".parse().unwrap()) };
        let secret = Mirror {
            identity: vec![settings::identity("http://m/", "s3cret")],
            lasting: false,
            ..mirror(Some("/var/m/1.git"))
        };
        insta::assert_snapshot!(plan(&asked, Ok(&secret)), @"
        objects   from the mirror
        with      checkout.workers=0
        with      protocol.version=2
        with      http.lowSpeedLimit=1000
        with      http.lowSpeedTime=30
        with      url.http://127.0.0.1:9480/forge.test/o/n.insteadOf=https://forge.test/o/n
        with      url.https://forge.test/o/n.pushInsteadOf=https://forge.test/o/n
        with      http.http://m/.extraHeader=…
        git       clone --depth=1 --single-branch --no-tags --filter=blob:none --no-checkout --branch=v1 -- https://forge.test/o/n DIR
        git       sparse-checkout set --cone a b/c
        git       checkout --quiet
        keep      push.negotiate=true
        have      abc
        ");
    }

    #[test]
    fn without_a_mirror_the_upstream_is_asked_the_same() {
        insta::assert_snapshot!(plan(&asked(Shape::Tip), Err(Why::Silent)), @"
        objects   from the upstream: the mirror does not answer
        with      checkout.workers=0
        git       clone --depth=1 --single-branch --no-tags -- https://forge.test/o/n DIR
        keep      push.negotiate=true
        ");
        insta::assert_snapshot!(plan(&asked(Shape::Shared), Err(Why::Without)), @"
        objects   from the upstream: the mirror does not have it
        with      checkout.workers=0
        git       clone -- https://forge.test/o/n DIR
        keep      push.negotiate=true
        note      there is no store of a mirror here that can be read: the clone has all objects itself
        ");
    }

    #[test]
    fn full_history_in_the_clone_itself_is_not_shared() {
        assert_eq!(plan(&asked(Shape::Full), Ok(&mirror(Some("/var/m/1.git")))).way, Way::Mirror);
        assert_eq!(plan(&asked(Shape::Shared), Ok(&mirror(None))).way, Way::Mirror);
    }

    #[test]
    fn shapes_are_read() {
        assert_eq!("tip".parse(), Ok(Shape::Tip));
        assert_eq!("sparse=a,b/c".parse(), Ok(Shape::Sparse(vec!["a".into(), "b/c".into()])));
        for text in ["", "sparse", "sparse=", "sparse=a,", "sparse=-x", "deep"] {
            let error = text.parse::<Shape>().unwrap_err();
            assert_eq!(error.to_string(), format!("'{text}' is not a shape of a clone"));
        }
    }
}
