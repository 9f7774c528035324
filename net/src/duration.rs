//! Durations as Go writes them, for flags that etcd has.

use std::time::Duration;

/// Nanoseconds in one of Go's units.
fn unit_ns(unit: &str) -> Option<u64> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// Reads `1h30m`, `1.5s`, `300ms`: numbers, with or without a fraction, with a unit behind each. A lone `0` needs none.
///
/// `None` for anything else, for signs, and for a number with its unit of more than 584 years.
#[must_use]
pub fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut total) = (text, Duration::ZERO);
    let in_number = |c: char| c.is_ascii_digit() || c == '.';
    while !rest.is_empty() {
        let (number, behind) = rest.split_at(rest.find(|c| !in_number(c))?);
        let (unit, next) = behind.split_at(behind.find(in_number).unwrap_or(behind.len()));
        let unit_ns = unit_ns(unit)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return None;
        }
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(Duration::from_nanos(whole.checked_mul(unit_ns)?))?;
        total = total.checked_add(Duration::from_nanos(fraction_ns(fraction, unit_ns)))?;
        rest = next;
    }
    (!text.is_empty()).then_some(total)
}

/// What digits behind the point are worth, cut to whole nanoseconds.
fn fraction_ns(digits: &str, unit_ns: u64) -> u64 {
    // The smallest part of an hour that makes a nanosecond has 13 digits.
    let worth = digits.bytes().take(15).fold((0_u128, 1_u128), |(value, scale), d| (value * 10 + u128::from(d - b'0'), scale * 10));
    u64::try_from(worth.0 * u128::from(unit_ns) / worth.1).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, ns) in [
            ("0", 0),
            ("0s", 0),
            ("5m", 300_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("1.5s", 1_500_000_000),
            (".5h", 1_800_000_000_000),
            ("1.s", 1_000_000_000),
            ("300ms", 300_000_000),
            ("1.000000000000000000001s2ns", 1_000_000_002),
            ("3µs", 3_000),
        ] {
            assert_eq!(go_duration(text), Some(Duration::from_nanos(ns)), "{text}");
        }
        for bad in ["", "1", "s", ".s", "1.2.3s", "1d", "-1s", "+1s", "1 s", "1s2", "99999999999999999999h", "9999999999h"] {
            assert_eq!(go_duration(bad), None, "{bad}");
        }
    }
}
