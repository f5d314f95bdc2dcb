//! Durations and sizes as people write them.

use std::time::Duration;

/// Parses a duration: a whole number and `ms`, `s`, `m`, `h` or `d`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("expected a duration like '30s', '5m', '1h' or '7d', not '{}'", super::shown(text));
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let milliseconds = match unit {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000),
        _ => None,
    };
    milliseconds.and_then(|unit: u64| unit.checked_mul(number)).map(Duration::from_millis).ok_or_else(wrong)
}

/// Parses a size in bytes: a whole number, alone or with `B`, `KiB`, `MiB`, `GiB`, `TiB` (powers of 1024).
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("expected a size like '64MiB' or '4GiB', not '{}'", super::shown(text));
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_and_everything_else_is_refused() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("14d"), Ok(Duration::from_secs(14 * 86400)));
        assert_eq!(parse_size("64MiB"), Ok(64 << 20));
        assert_eq!(parse_size("5 GiB"), Ok(5 << 30));
        assert_eq!(parse_size("17"), Ok(17));
        for bad in ["", "s", "30", "-1s", "1.5h", "30 parsecs", "99999999999999999d", "1\u{7}s"] {
            let said = parse_duration(bad).unwrap_err();
            assert!(said.starts_with("expected a duration like '30s'") && !said.contains('\u{7}'), "{said}");
        }
        for bad in ["", "MiB", "-1", "1MB", "1.5GiB", "99999999TiB"] {
            assert!(parse_size(bad).unwrap_err().starts_with("expected a size like '64MiB'"), "{bad}");
        }
    }
}
