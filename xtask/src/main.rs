//! Developer tasks, run as `cargo xtask …`.
//!
//! - `test`: everything, as every kind of user, with every git of the machine;
//! - `soak`: the test that never does the same twice, for as long as one likes;
//! - `bench`: the table of times and sizes, with the peers beside us.
#![forbid(unsafe_code)]

mod bench;
mod build;
mod clients;
mod install;
mod runner;
mod test;
mod user;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask test [--fast | --all] [--strict] [--no-install] [FILTER]
       cargo xtask soak [--minutes N] [--no-install]
       cargo xtask bench [[--rows] PATTERN] [--files N] [--most N] [--runs N] [--json] [--no-install]

test   builds once, then runs every test as an ordinary user and as root (when root),
       with each git of this machine; the last line is `N passed, N failed, N skipped`.
       Up to three tests of a suite that failed among others are run once more, alone, and told
         --fast        one user and one git
         --all         ignored tests and documentation tests too, each user with each git
         --strict      what failed has failed: nothing is run again
         --no-install  installs nothing and makes no user
soak   everything at once, at random, with kills, against a model: ten minutes or N, shared by
       an ordinary user and root; SOAK_SEED repeats the decisions of a run
bench  prints the table of docs/performance.md, measured now; never fails on a time
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match args.split_first() {
        Some((&"test", rest)) => test::Options::parse(rest).map(|options| test::run(&options)),
        Some((&"soak", rest)) => test::Options::parse_soak(rest).map(|options| test::run(&options)),
        Some((&"bench", rest)) => bench::Options::parse(rest).map(|options| bench::run(&options)),
        Some((&("help" | "-h" | "--help"), _)) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => Err("expected a task".to_owned()),
    };
    match outcome {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Ok(false)) => ExitCode::FAILURE,
        Ok(Err(error)) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
        Err(problem) => {
            eprintln!("error: {problem}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}
