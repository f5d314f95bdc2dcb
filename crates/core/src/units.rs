//! Numbers as people read them.

/// Writes a number of bytes with the unit that suits it (powers of 1024).
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_the_unit_that_suits_them() {
        assert_eq!([size(0), size(1536), size(200 << 20), size(3 << 30)], ["0 B", "1.5 KiB", "200 MiB", "3.0 GiB"]);
    }
}
