//! Durations as people type them: `30s`, `15m`, `7d`.

use std::time::Duration;

/// Units and how many milliseconds each has.
const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Reads a whole number and its unit.
pub fn parse(text: &str) -> Result<Duration, String> {
    let why =
        || format!("`{text}` is no duration: expected a whole number and ms, s, m, h or d, such as 30s");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, length) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(why)?;
    let number: u64 = number.parse().map_err(|_| why())?;
    number.checked_mul(*length).map(Duration::from_millis).ok_or_else(why)
}

/// [`parse`], and not nothing.
pub fn parse_interval(text: &str) -> Result<Duration, String> {
    match parse(text)? {
        Duration::ZERO => Err("an interval cannot be 0".to_owned()),
        interval => Ok(interval),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_a_unit_are_a_duration() {
        for (text, seconds) in [("30s", 30), ("15m", 900), ("2h", 7200), ("7d", 604_800), ("0s", 0)] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)));
        }
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert!(parse_interval("0s").is_err());
    }

    #[test]
    fn anything_else_is_not() {
        for text in ["", "30", "s", "-1s", "1.5h", "1h30m", "1 s", "99999999999999999d", "1w"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
