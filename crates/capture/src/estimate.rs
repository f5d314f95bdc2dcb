//! What a first copy is going to take, and which directories are to blame.

use crate::limit::Weights;
use crate::paths::{parent, to_path};
use crate::request::Estimate;
use std::collections::BTreeMap;

/// Directories that are named.
const NAMED: usize = 3;

/// Returns the estimate for what is to be copied.
pub(crate) fn estimate(weights: &Weights) -> Estimate {
    let files = weights.values().map(|(files, _)| files).sum();
    let bytes = weights.values().map(|(_, bytes)| bytes).sum();
    Estimate { files, bytes, largest: largest(weights).into_iter().map(|(dir, sum)| (to_path(&dir), sum)).collect() }
}

/// Returns the directories that hold most, none of them inside another.
///
/// From each directory of the top level the way goes down as long as one subdirectory holds nearly
/// all of it: `web/node_modules` is the line that `.sandboxignore` needs, not `web`.
fn largest(weights: &Weights) -> Vec<(Vec<u8>, u64)> {
    let mut sums: BTreeMap<&[u8], u64> = BTreeMap::new();
    for (dir, (_, bytes)) in weights {
        let mut at = dir.as_slice();
        while !at.is_empty() {
            *sums.entry(at).or_default() += bytes;
            at = parent(at);
        }
    }
    let mut below: BTreeMap<&[u8], Vec<&[u8]>> = BTreeMap::new();
    for dir in sums.keys() {
        below.entry(parent(dir)).or_default().push(dir);
    }
    let most = |dir: &[u8]| {
        let dirs = below.get(dir).map(Vec::as_slice).unwrap_or_default();
        dirs.iter().max_by_key(|dir| sums[**dir]).copied()
    };
    let mut found: Vec<(Vec<u8>, u64)> = Vec::new();
    for top in below.get(&b""[..]).into_iter().flatten() {
        let mut at: &[u8] = top;
        while let Some(next) = most(at).filter(|next| sums[*next] * 10 >= sums[at] * 9) {
            at = next;
        }
        found.push((at.to_vec(), sums[at]));
    }
    found.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    found.truncate(NAMED);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directories_that_one_would_name() {
        let weights: Weights = [
            (&b""[..], (5, 50)),
            (b"web/src", (10, 10)),
            (b"web/node_modules/a", (1000, 600)),
            (b"web/node_modules/b", (1000, 400)),
            (b"data", (1, 2000)),
            (b"target/debug/deps", (7, 300)),
            (b"target/debug/build", (7, 100)),
            (b"docs", (1, 1)),
        ]
        .into_iter()
        .map(|(dir, weight)| (dir.to_vec(), weight))
        .collect();
        let estimate = estimate(&weights);
        assert_eq!((estimate.files, estimate.bytes), (2031, 3461));
        let named: Vec<_> = estimate.largest.iter().map(|(dir, sum)| (dir.to_str().unwrap(), *sum)).collect();
        assert_eq!(named, [("data", 2000), ("web/node_modules", 1000), ("target/debug", 400)]);
    }
}
