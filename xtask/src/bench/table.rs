//! What was measured, as a table and as JSON.

use super::measure::Sample;
use serde_json::{Value, json};

/// What a value is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Time,
    /// Bytes.
    Size,
    /// How many times as much as the same without.
    Times,
}

/// What was promised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// At most this many times the peer's median.
    Ratio(f64),
    /// At most this much (seconds or bytes).
    Absolute(f64),
    /// Nothing: a peer's own line, or a number to know.
    None,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What was done.
    pub what: String,
    /// How often and how long, or how large.
    pub ours: Sample,
    /// What it is compared with.
    pub peer: Option<(String, Sample)>,
    /// The promise.
    pub goal: Goal,
    /// The unit of both samples.
    pub unit: Unit,
}

impl Row {
    /// A row of times against a peer.
    pub fn against(what: impl Into<String>, ours: Sample, peer: impl Into<String>, other: Sample, ratio: f64) -> Self {
        Self { what: what.into(), ours, peer: Some((peer.into(), other)), goal: Goal::Ratio(ratio), unit: Unit::Time }
    }

    /// A row by itself.
    pub fn alone(what: impl Into<String>, ours: Sample, goal: Goal, unit: Unit) -> Self {
        Self { what: what.into(), ours, peer: None, goal, unit }
    }

    fn ratio(&self) -> Option<f64> {
        self.peer.as_ref().map(|(_, peer)| self.ours.median() / peer.median())
    }

    fn verdict(&self) -> &'static str {
        let (median, low) = (self.ours.median(), self.ours.quartiles().0);
        let limit = match (self.goal, &self.peer) {
            (Goal::Ratio(ratio), Some((_, peer))) => peer.median() * ratio,
            (Goal::Absolute(limit), _) => limit,
            _ => return "",
        };
        match (median <= limit, low <= limit) {
            (true, _) => "met",
            (false, true) => "near",
            (false, false) => "missed",
        }
    }
}

fn show(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Time if value.abs() < 0.01 => format!("{:.2} ms", value * 1e3),
        Unit::Time if value.abs() < 1.0 => format!("{:.0} ms", value * 1e3),
        Unit::Time => format!("{value:.2} s"),
        Unit::Times => format!("{value:.3}×"),
        Unit::Size if value < 1024.0 * 1024.0 => format!("{:.0} KiB", value / 1024.0),
        Unit::Size => format!("{:.1} MiB", value / 1024.0 / 1024.0),
    }
}

fn sample(sample: &Sample, unit: Unit) -> String {
    let (low, high) = sample.quartiles();
    if sample.len() < 2 {
        return show(sample.median(), unit);
    }
    format!("{} ({} – {})", show(sample.median(), unit), show(low, unit), show(high, unit))
}

/// The table in Markdown.
pub fn markdown(rows: &[Row], machine: &str) -> String {
    let mut text = format!("{machine}\n\n| what | median (quartiles) | against | its median | ratio | goal | |\n");
    text.push_str("|---|---|---|---|---|---|---|\n");
    for row in rows {
        let (peer, other) = match &row.peer {
            Some((name, other)) => (name.as_str(), sample(other, row.unit)),
            None => ("–", "–".to_owned()),
        };
        let ratio = row.ratio().map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}×"));
        let goal = match row.goal {
            Goal::Ratio(ratio) => format!("≤ {ratio}×"),
            Goal::Absolute(limit) => format!("≤ {}", show(limit, row.unit)),
            Goal::None => "–".to_owned(),
        };
        let ours = sample(&row.ours, row.unit);
        text.push_str(&format!(
            "| {} | {ours} | {peer} | {other} | {ratio} | {goal} | {} |\n",
            row.what,
            row.verdict()
        ));
    }
    text
}

/// The same as JSON, format 1: seconds and bytes.
pub fn json(rows: &[Row], machine: &str) -> String {
    let sample = |sample: &Sample| {
        let (low, high) = sample.quartiles();
        json!({ "median": sample.median(), "low": low, "high": high, "runs": sample.len() })
    };
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "what": row.what,
                "unit": match row.unit { Unit::Time => "seconds", Unit::Size => "bytes", Unit::Times => "times" },
                "ours": sample(&row.ours),
                "peer": row.peer.as_ref().map(|(name, other)| json!({ "name": name, "value": sample(other) })),
                "ratio": row.ratio(),
                "goal": match row.goal {
                    Goal::Ratio(ratio) => json!({ "ratio": ratio }),
                    Goal::Absolute(limit) => json!({ "at_most": limit }),
                    Goal::None => Value::Null,
                },
                "verdict": row.verdict(),
            })
        })
        .collect();
    format!("{:#}", json!({ "format": 1, "machine": machine, "rows": rows }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        let times = |values: &[f64]| Sample::new(values.to_vec());
        vec![
            Row::against("spawn", times(&[0.006, 0.007, 0.008]), "bwrap", times(&[0.004]), 2.0),
            Row::against("slow", times(&[1.0, 3.0, 5.0]), "cp", times(&[1.0]), 2.0),
            Row::alone("memory", times(&[4_000_000.0]), Goal::Absolute(3_145_728.0), Unit::Size),
            Row::alone("bwrap", times(&[0.004]), Goal::None, Unit::Time),
            Row::alone("with the wall", times(&[1.01, 1.02, 1.03]), Goal::Absolute(1.02), Unit::Times),
        ]
    }

    #[test]
    fn the_table_tells_what_was_met() {
        assert_eq!(
            markdown(&rows(), "a machine"),
            "a machine\n\n\
             | what | median (quartiles) | against | its median | ratio | goal | |\n\
             |---|---|---|---|---|---|---|\n\
             | spawn | 7.00 ms (6.50 ms – 7.50 ms) | bwrap | 4.00 ms | 1.75× | ≤ 2× | met |\n\
             | slow | 3.00 s (2.00 s – 4.00 s) | cp | 1.00 s | 3.00× | ≤ 2× | near |\n\
             | memory | 3.8 MiB | – | – | – | ≤ 3.0 MiB | missed |\n\
             | bwrap | 4.00 ms | – | – | – | – |  |\n\
             | with the wall | 1.020× (1.015× – 1.025×) | – | – | – | ≤ 1.020× | met |\n"
        );
    }

    #[test]
    fn the_json_has_the_same() {
        let value: Value = serde_json::from_str(&json(&rows(), "m")).unwrap();
        assert_eq!(value["rows"][0]["verdict"], "met");
        assert_eq!(value["rows"][2]["goal"]["at_most"], 3_145_728.0);
    }
}
