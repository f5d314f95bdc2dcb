//! The last member of a record: what its bytes were when they were written.
//!
//! ```text
//! {
//!   …,
//!   "sum": "0123456789abcdef"      the first 8 bytes of the SHA-256 of the text without this line and the comma before it
//! }
//! ```
//!
//! A record with a flipped bit may still be JSON: of another id, or with one path less. Without a sum (an older
//! version wrote it, or a hand edited it) it is believed.

use std::fmt::Write;

const BEFORE: &[u8] = b",\n  \"sum\": \"";
const AFTER: &[u8] = b"\"\n}\n";
const DIGITS: usize = 16;

/// Adds the sum to a pretty-printed JSON object. Anything else stays as it is.
pub(crate) fn sealed(mut json: Vec<u8>) -> Vec<u8> {
    let Some(body) = json.strip_suffix(b"\n}\n").map(<[u8]>::len) else { return json };
    json.truncate(body);
    let sum = sum(&json);
    json.extend([BEFORE, sum.as_bytes(), AFTER].concat());
    json
}

/// Whether there is a sum, and the text is not what it says.
pub(crate) fn is_broken(text: &[u8]) -> bool {
    let parts = text.strip_suffix(AFTER).and_then(|rest| rest.split_at_checked(rest.len().checked_sub(DIGITS)?));
    parts
        .and_then(|(body, told)| Some((body.strip_suffix(BEFORE)?, told)))
        .is_some_and(|(body, told)| told != sum(body).as_bytes())
}

fn sum(body: &[u8]) -> String {
    sandbox_git::sha256(body).iter().take(DIGITS / 2).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_flipped_byte_is_found_or_harms_nothing() {
        let text = sealed(b"{\n  \"id\": \"0a\",\n  \"list\": []\n}\n".to_vec());
        let whole: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert!(!is_broken(&text) && whole["sum"].as_str().unwrap().len() == DIGITS);
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut flipped = text.clone();
                flipped[at] ^= 1 << bit;
                let read = serde_json::from_slice::<serde_json::Value>(&flipped);
                if let Ok(read) = read.as_ref().map_err(drop)
                    && !is_broken(&flipped)
                {
                    assert_eq!((&read["id"], &read["list"]), (&whole["id"], &whole["list"]), "byte {at}, bit {bit}");
                }
            }
        }
    }

    #[test]
    fn without_a_sum_it_is_believed() {
        assert!(!is_broken(b"{\n  \"id\": \"0a\"\n}\n"));
        assert!(!is_broken(b"") && !is_broken(b"\"\n}\n"));
        assert_eq!(sealed(b"[]\n".to_vec()), b"[]\n");
    }
}
