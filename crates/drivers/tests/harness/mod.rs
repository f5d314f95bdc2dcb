//! The harness of suites whose launches must come from a process with one thread.

use std::panic::catch_unwind;
use std::process::ExitCode;

/// `Err` is a reason why it cannot be tried here.
pub type Scenario = fn() -> Result<(), String>;

/// What libtest's options say here, as far as runners use them.
#[derive(Debug, Default, PartialEq)]
struct Options {
    list: bool,
    /// A scenario runs if it has one of these in its name; with none, all run.
    filters: Vec<String>,
    /// The filters are whole names.
    exact: bool,
    /// Only what is marked as ignored: nothing is.
    ignored: bool,
}

/// Reads libtest's arguments. The value of an option is no filter, whichever way it is written.
fn options(args: &[String]) -> Result<Options, String> {
    let mut options = Options::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--list" => options.list = true,
            "--exact" => options.exact = true,
            "--ignored" => options.ignored = true,
            "--nocapture" | "--no-capture" | "--include-ignored" | "--show-output" | "--quiet" | "-q" => {}
            // One after the other, whatever is asked for.
            "--test-threads" | "--format" | "--color" | "--logfile" => {
                args.next().ok_or_else(|| format!("'{arg}' needs a value"))?;
            }
            option if ["--test-threads=", "--format=", "--color="].iter().any(|known| option.starts_with(known)) => {}
            option if option.starts_with('-') => return Err(format!("unknown option '{option}'")),
            filter => options.filters.push(filter.to_owned()),
        }
    }
    Ok(options)
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        let fits = |filter: &String| if self.exact { name == filter } else { name.contains(filter.as_str()) };
        !self.ignored && (self.filters.is_empty() || self.filters.iter().any(fits))
    }
}

/// Runs what the arguments ask for, one after the other, and tells it as libtest does.
pub fn run(all: &[(&str, Scenario)], args: &[String]) -> ExitCode {
    let options = match options(args) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let (wanted, others): (Vec<_>, Vec<_>) = all.iter().partition(|(name, _)| options.wants(name));
    if options.list {
        wanted.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let (mut failed, mut passed, mut skipped) = (Vec::new(), 0, 0);
    for (name, scenario) in wanted {
        match catch_unwind(scenario) {
            Ok(Ok(())) => {
                passed += 1;
                println!("test {name} ... ok");
            }
            Ok(Err(reason)) => {
                skipped += 1;
                println!("test {name} ... ignored, {reason}");
            }
            Err(_) => {
                failed.push(name);
                println!("test {name} ... FAILED");
            }
        }
    }
    let result = if failed.is_empty() { "ok" } else { "FAILED" };
    if !failed.is_empty() {
        println!("\nfailures:");
        failed.iter().for_each(|name| println!("    {name}"));
    }
    println!(
        "\ntest result: {result}. {passed} passed; {} failed; {skipped} ignored; 0 measured; {} filtered out",
        failed.len(),
        others.len()
    );
    ExitCode::from(u8::from(!failed.is_empty()))
}

/// A scenario of each suite that uses this: its own arguments are read as they are meant.
pub fn arguments_are_read() -> Result<(), String> {
    let read = |text: &str| options(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    for text in ["--test-threads=1 deep", "--test-threads 1 deep", "deep --nocapture --format pretty"] {
        let options = read(text).unwrap();
        assert!(options.wants("a_deep_tree") && !options.wants("1") && !options.exact, "{text}: {options:?}");
    }
    assert!(read("").unwrap().wants("anything") && !read("--ignored").unwrap().wants("anything"));
    assert!(read("--exact deep").unwrap().wants("deep") && !read("deep --exact").unwrap().wants("deeper"));
    assert!(read("a b").unwrap().wants("xb") && read("--list").unwrap().list);
    assert!(read("--test-threads").is_err() && read("--wrong").is_err());
    Ok(())
}
