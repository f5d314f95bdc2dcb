//! `cargo xtask bench`: the table of times and sizes, with the peers beside us in the same run.
//!
//! ```text
//! rows: each has ours and its peers ─► runs, interleaved (a b c, a b c, …) ─► median, quartiles,
//!                                                                             ratio of medians, goal
//! ```
//!
//! Nothing here fails on a time: two shared cores are not a referee. A goal is *missed* when the
//! median is above it, and *near* when the lower quartile still is within it.

mod egress;
mod growth;
mod hardening;
mod machine;
mod measure;
mod mirror;
mod rows;
mod table;
mod together;
mod trees;
mod vm;
mod watched;

use crate::{build, install};

/// What the bench compares with.
const NEEDS: &[install::Need] = &[
    install::Need { program: "bwrap", package: "bubblewrap", without: "the peer `bwrap`" },
    install::Need { program: "mkfs.btrfs", package: "btrfs-progs", without: "the rows on Btrfs" },
    install::Need { program: "mkfs.xfs", package: "xfsprogs", without: "the rows on XFS" },
    install::Need { program: "apache2", package: "apache2-bin", without: "the peer `git http-backend` behind Apache" },
];

/// What the command line asks for.
#[derive(Debug, PartialEq)]
pub struct Options {
    rows: String,
    files: usize,
    runs: usize,
    /// Files of the largest tree of the rows `growth`.
    most: usize,
    json: bool,
    no_install: bool,
}

impl Options {
    /// Reads the arguments after `bench`.
    pub fn parse(args: &[&str]) -> Result<Self, String> {
        let mut options =
            Self { rows: String::new(), files: 20_000, runs: 15, most: usize::MAX, json: false, no_install: false };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().map(|text| (*text).to_owned()).ok_or(format!("'{arg}' needs a value"));
            let number = |text: String| text.parse().map_err(|_| format!("'{text}' is not a number"));
            match *arg {
                "--rows" => options.rows = value()?,
                "--files" => options.files = value().and_then(number)?,
                "--most" => options.most = value().and_then(number)?,
                "--runs" => options.runs = value().and_then(number)?,
                "--json" => options.json = true,
                "--no-install" => options.no_install = true,
                // `bench mirror` is shorter than `bench --rows mirror`.
                rows if !rows.starts_with('-') && options.rows.is_empty() => options.rows = rows.to_owned(),
                other => return Err(format!("unknown option '{other}'")),
            }
        }
        Ok(options)
    }
}

/// Measures and prints; always true, since a time is not a failure.
pub fn run(options: &Options) -> Result<bool, String> {
    install::install(NEEDS, !options.no_install);
    // Another build can be measured, to compare two.
    let product = match std::env::var_os("GIT_SANDBOX_BIN") {
        Some(path) => path.into(),
        None => build::release()?,
    };
    let bench = rows::Bench::new(options, product)?;
    eprintln!("{}", machine::describe(bench.root()));
    let mut done = Vec::new();
    for (name, row) in rows::ROWS {
        if !name.contains(&*options.rows) {
            continue;
        }
        eprintln!("measuring {name}");
        match row(&bench) {
            Ok(rows) => done.extend(rows),
            Err(reason) => eprintln!("  not measured: {reason}"),
        }
    }
    let machine = machine::describe(bench.root());
    println!("{}", if options.json { table::json(&done, &machine) } else { table::markdown(&done, &machine) });
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let options = Options::parse(&["--rows", "spawn", "--runs", "3", "--json"]).unwrap();
        assert_eq!((&*options.rows, options.files, options.runs, options.json), ("spawn", 20_000, 3, true));
        assert_eq!(Options::parse(&["mirror"]).unwrap().rows, "mirror");
        assert!(Options::parse(&["mirror", "egress"]).is_err());
        assert_eq!(Options::parse(&["--files"]), Err("'--files' needs a value".to_owned()));
        assert_eq!(Options::parse(&["--files", "many"]), Err("'many' is not a number".to_owned()));
    }
}
