//! Samples, and how contenders take turns.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Measured values of one contender, in its unit (seconds or bytes).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample(Vec<f64>);

impl Sample {
    /// Wraps values.
    pub fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    fn at(&self, share: f64) -> f64 {
        let last = self.0.len().saturating_sub(1) as f64;
        let (low, high) = ((last * share).floor() as usize, (last * share).ceil() as usize);
        match (self.0.get(low), self.0.get(high)) {
            (Some(a), Some(b)) => a + (b - a) * (last * share - low as f64),
            _ => f64::NAN,
        }
    }

    /// The middle value.
    pub fn median(&self) -> f64 {
        self.at(0.5)
    }

    /// The values below and above which a quarter lies.
    pub fn quartiles(&self) -> (f64, f64) {
        (self.at(0.25), self.at(0.75))
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Each value of this sample less the other's median.
    pub fn less(&self, other: f64) -> Self {
        Self::new(self.0.iter().map(|value| value - other).collect())
    }
}

/// Something that is timed once per round.
pub type Contender<'a> = Box<dyn FnMut() -> Result<Duration, String> + 'a>;

/// Lets the contenders take turns: one round is not counted, `runs` are.
pub fn interleave(runs: usize, contenders: &mut [Contender]) -> Result<Vec<Sample>, String> {
    rounds(runs, 1, contenders)
}

/// The same with so many rounds that are not counted.
pub fn rounds(runs: usize, not_counted: usize, contenders: &mut [Contender]) -> Result<Vec<Sample>, String> {
    let mut values = vec![Vec::new(); contenders.len()];
    for round in 0..not_counted + runs {
        for (contender, values) in contenders.iter_mut().zip(&mut values) {
            let time = contender()?;
            if round >= not_counted {
                values.push(time.as_secs_f64());
            }
        }
    }
    Ok(values.into_iter().map(Sample::new).collect())
}

/// Runs a command quietly and returns how long that took.
pub fn time(command: &mut Command) -> Result<Duration, String> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let start = Instant::now();
    let output = command.output().map_err(|error| format!("cannot run {:?}: {error}", command.get_program()))?;
    let time = start.elapsed();
    if output.status.success() {
        return Ok(time);
    }
    let program = command.get_program().to_string_lossy();
    let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
    Err(format!("`{program} {}`: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Sample::new(vec![3.0, 1.0, 2.0]).median(), 2.0);
        let sample = Sample::new(vec![1.0, 2.0, 3.0, 4.0]);
        assert_eq!((sample.median(), sample.quartiles()), (2.5, (1.75, 3.25)));
        assert!(Sample::default().median().is_nan());
    }

    #[test]
    fn contenders_take_turns_and_the_first_round_does_not_count() {
        let order = std::cell::RefCell::new(String::new());
        let entry = |name: char| {
            let order = &order;
            Box::new(move || {
                order.borrow_mut().push(name);
                Ok(Duration::from_secs(1))
            }) as Contender
        };
        let samples = interleave(2, &mut [entry('a'), entry('b')]).unwrap();
        assert_eq!(samples, [Sample::new(vec![1.0, 1.0]), Sample::new(vec![1.0, 1.0])]);
        assert_eq!(*order.borrow(), "ababab");
        order.borrow_mut().clear();
        rounds(2, 0, &mut [entry('a'), entry('b')]).unwrap();
        assert_eq!(*order.borrow(), "abab");
    }

    #[test]
    fn a_command_that_fails_is_not_a_time() {
        let error = time(Command::new("sh").args(["-c", "echo broken >&2; exit 1"])).unwrap_err();
        assert!(error.contains("broken"), "{error}");
    }
}
