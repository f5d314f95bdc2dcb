//! Runs one test executable and reads what libtest prints.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The longest that one executable may take.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// Counts, and why tests were skipped.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// Tests that ran and passed.
    pub passed: usize,
    /// Of these, tests that failed among others and passed when they ran alone.
    pub unsteady: Vec<String>,
    /// Tests that failed, and executables that did not end as they should.
    pub failed: usize,
    /// Where they failed, and which they are where that is known.
    pub broken: Vec<String>,
    /// Tests that said why they could not run: reason and how many.
    pub skipped: BTreeMap<String, usize>,
}

impl Totals {
    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.unsteady.extend_from_slice(&other.unsteady);
        self.broken.extend_from_slice(&other.broken);
        self.failed += other.failed;
        for (reason, count) in &other.skipped {
            *self.skipped.entry(reason.clone()).or_default() += count;
        }
    }

    /// How many were skipped.
    pub fn skips(&self) -> usize {
        self.skipped.values().sum()
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skips())?;
        match self.unsteady.len() {
            0 => Ok(()),
            n => write!(f, ", {n} of the passed only when run alone"),
        }
    }
}

/// Runs a test executable to its end, `more` than the usual limit. Returns the counts, and the whole output if
/// something failed or if it has `more` time: then it has more to tell than its status.
pub fn run(command: &mut Command, more: Duration) -> (Totals, Option<String>) {
    // Both streams into one file: libtest writes to one, a panic in a thread to the other.
    let mut collect = || -> std::io::Result<(std::process::ExitStatus, String, bool)> {
        let file = tempfile::tempfile()?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file.try_clone()?);
        let mut child = command.spawn()?;
        let start = Instant::now();
        let mut late = false;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if start.elapsed() > LIMIT + more && !late {
                late = true;
                child.kill()?;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut bytes = Vec::new();
        let mut file = file;
        std::io::Seek::rewind(&mut file)?;
        file.read_to_end(&mut bytes)?;
        Ok((status, String::from_utf8_lossy(&bytes).into_owned(), late))
    };
    match collect() {
        Err(error) => (Totals { failed: 1, ..Totals::default() }, Some(format!("cannot run it: {error}"))),
        Ok((status, mut text, late)) => {
            let mut totals = parse(&text);
            if late {
                text.push_str(&format!("\nkilled: it still ran after {:?}\n", LIMIT + more));
            }
            if !status.success() && totals.failed == 0 {
                totals.failed = 1;
                text.push_str(&format!("\nit ended with {status}\n"));
            }
            let output = (totals.failed > 0 || !more.is_zero()).then_some(text);
            (totals, output)
        }
    }
}

/// Names of the tests that failed, as the last list in libtest's output has them.
pub fn failures(text: &str) -> Vec<String> {
    let Some((_, list)) = text.rsplit_once("\nfailures:\n") else { return Vec::new() };
    list.lines().map_while(|line| line.strip_prefix("    ")).map(str::to_owned).collect()
}

/// What a failed run has to tell: from the first failure on, and of one that did not get so far its last lines.
pub fn told(text: &str) -> &str {
    /// Lines of an executable that died.
    const LAST: usize = 120;
    if let Some(at) = text.find("\nfailures:\n") {
        return text[at..].trim_matches('\n');
    }
    let start = text.rmatch_indices('\n').nth(LAST).map_or(0, |(at, _)| at + 1);
    &text[start..]
}

/// Reads libtest's output as `--show-output` makes it, of one executable or of several.
fn parse(text: &str) -> Totals {
    let mut totals = Totals::default();
    let mut rest = text;
    // Each begins by saying how many tests it will run.
    while let Some(at) = rest.find("\nrunning ") {
        let (one, others) = rest.split_at(at + 1);
        totals.add(&parse_one(one));
        rest = others;
    }
    totals.add(&parse_one(rest));
    totals
}

/// The same, of one.
fn parse_one(text: &str) -> Totals {
    let mut totals = Totals::default();
    let mut test = None;
    let mut summary = None;
    // How many said why they could not run: for libtest they have passed.
    let mut said = 0;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("---- ") {
            test = rest.strip_suffix(" stdout ----");
        } else if let Some(reason) = line.strip_prefix("SKIP: ") {
            // One test is one skip, however often it says so.
            if test.take().is_some() {
                *totals.skipped.entry(reason.to_owned()).or_default() += 1;
                said += 1;
            }
        } else if let Some((_, reason)) = line.split_once(" ... ignored") {
            let reason = reason.trim_start_matches(", ");
            let reason = if reason.is_empty() { "ignored by default (--all runs it)" } else { reason };
            *totals.skipped.entry(reason.to_owned()).or_default() += 1;
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            // What a test printed may look like one; libtest's own is the last.
            summary = Some(counts);
        }
    }
    let count = |word: &str| {
        let words: Vec<&str> = summary?.split([' ', ';']).filter(|word| !word.is_empty()).collect();
        let at = words.iter().position(|other| *other == word)?;
        words.get(at.checked_sub(1)?)?.parse::<usize>().ok()
    };
    totals.passed = count("passed").unwrap_or(0).saturating_sub(said);
    totals.failed = count("failed").unwrap_or(0);
    totals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_are_counted_with_their_reasons_and_not_as_passed() {
        let text = "
running 5 tests
test a ... ok
test b ... ok
test c ... FAILED
test d ... ignored, takes an hour
test e ... ok

successes:

---- a stdout ----
SKIP: no strace
SKIP: and no second reason

---- b stdout ----
something else

failures:

---- c stdout ----
thread 'c' panicked


failures:
    c

test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
";
        let totals = parse(text);
        assert_eq!(totals.to_string(), "2 passed, 1 failed, 2 skipped");
        assert!(told(text).starts_with("failures:\n\n---- c stdout"), "{}", told(text));
        assert_eq!(failures(text), ["c"]);
        assert_eq!(totals.skipped.keys().collect::<Vec<_>>(), ["no strace", "takes an hour"]);
        // Two executables; and a test that prints what such a run looks like.
        let totals = parse(&format!("{text}{}", text.replace("something else", "test result: x. 9 passed; 9 failed;")));
        assert_eq!(totals.to_string(), "4 passed, 2 failed, 4 skipped");
    }

    #[test]
    fn what_died_tells_its_last_lines() {
        let text: String = (0..500).map(|n| format!("line {n}\n")).collect();
        assert!(told(&text).starts_with("line 380\n") && told(&text).ends_with("line 499\n"), "{}", told(&text));
        assert!(failures(&text).is_empty());
        assert_eq!(told("short"), "short");
    }

    #[test]
    fn what_passed_only_alone_is_told() {
        let mut totals = Totals { passed: 2, ..Totals::default() };
        totals.add(&Totals { passed: 1, unsteady: vec!["a: b".into()], ..Totals::default() });
        assert_eq!(totals.to_string(), "3 passed, 0 failed, 0 skipped, 1 of the passed only when run alone");
    }

    #[test]
    fn an_executable_that_dies_is_a_failure() {
        let (totals, output) = run(Command::new("sh").args(["-c", "echo running 1 test; kill -9 $$"]), Duration::ZERO);
        assert_eq!(totals.failed, 1);
        assert!(output.unwrap().contains("signal: 9"));
    }
}
