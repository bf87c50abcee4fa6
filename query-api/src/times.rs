//! Times and durations as people write them into an address.

use std::time::Duration;

use jiff::Timestamp;

/// What [`parse_time`] takes, for an error message.
pub const EXPECTED_TIME: &str =
    "RFC 3339 such as `2026-11-21T12:00:00Z`, Unix seconds, Unix ms, `now`, or a time ago such as `-15m` or `-1h30m`";
/// What [`parse_duration`] takes, for an error message.
pub const EXPECTED_DURATION: &str = "a duration of at least 1ms in ms, s, m, h, d or w, such as `30s` or `1h30m`";

/// Numbers from here on are milliseconds: as seconds they would lie in the year 5138.
const LEAST_MS: f64 = 1e11;
/// The last millisecond that [`Timestamp`] holds, 9999-12-30T22:00:00.999Z: in no time zone is it later than the year 9999.
const MAX_MS: i64 = 253_402_207_200_999;

/// A time in Unix ms, from 1970 to 9999-12-30T22:00:00.999Z; none when the text is not one.
#[must_use]
pub fn parse_time(text: &str, now_ms: i64) -> Option<i64> {
    let time = if text == "now" {
        now_ms
    } else if let Some(ago) = text.strip_prefix('-') {
        now_ms.checked_sub(i64::try_from(parse_duration(ago)?.as_millis()).ok()?)?
    } else if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        parse_number(text)?
    } else {
        // An address decodes a bare `+` to a space.
        text.replace(' ', "+").parse::<Timestamp>().ok()?.as_millisecond()
    };
    (0..=MAX_MS).contains(&time).then_some(time)
}

fn parse_number(text: &str) -> Option<i64> {
    let number: f64 = text.parse().ok()?;
    let ms = if number >= LEAST_MS { number } else { number * 1000.0 };
    // Both bounds are exact in a float, and so is every millisecond between them.
    (ms <= MAX_MS as f64).then(|| ms.round() as i64)
}

/// A duration such as `30s` or `1h30m`; none when the text is not one, or shorter than 1 ms.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut total_ms = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (count, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        total_ms = count.parse::<u64>().ok()?.checked_mul(unit_ms(unit)?)?.checked_add(total_ms)?;
        rest = tail;
    }
    (total_ms > 0).then(|| Duration::from_millis(total_ms))
}

fn unit_ms(unit: &str) -> Option<u64> {
    match unit {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000),
        "w" => Some(7 * 86_400_000),
        _ => None,
    }
}

/// A time as RFC 3339 in UTC; none outside of the years -9999 to 9999.
#[must_use]
pub fn rfc3339(unix_ms: i64) -> Option<String> {
    Timestamp::from_millisecond(unix_ms).ok().map(|time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_790_000_000_123;

    #[test]
    fn every_way_to_write_a_time_is_understood() {
        for (text, expected) in [
            ("now", NOW),
            ("-15m", NOW - 15 * 60_000),
            ("-1h30m", NOW - 90 * 60_000),
            ("-7d", NOW - 7 * 86_400_000),
            ("-250ms", NOW - 250),
            ("1790000000", 1_790_000_000_000),
            ("1790000000.25", 1_790_000_000_250),
            ("1790000000123", NOW),
            ("2026-09-21T14:13:20Z", 1_790_000_000_000),
            ("2026-09-21T16:13:20 02:00", 1_790_000_000_000),
            ("0", 0),
            ("9999-12-30T22:00:00.999Z", MAX_MS),
            ("253402207200999", MAX_MS),
        ] {
            assert_eq!(parse_time(text, NOW), Some(expected), "{text}");
        }
        assert_eq!(Timestamp::MAX.as_millisecond(), MAX_MS);
        for text in [
            "253402207201000",
            "",
            "-",
            "-5",
            "-5x",
            "yesterday",
            "12:00",
            "1e9",
            "1.2.3",
            "99999999999999999999",
            "-99999999w",
            ".",
        ] {
            assert_eq!(parse_time(text, NOW), None, "{text}");
        }
    }

    #[test]
    fn durations_are_positive() {
        assert_eq!(parse_duration("1h30m"), Some(Duration::from_secs(5400)));
        for text in ["", "0s", "5", "m", "1.5h", "-1s", "99999999999999999999w"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
