//! Numbers for people.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A time, to three digits.
pub fn time(us: u64) -> String {
    match us {
        0 => "0".to_owned(),
        1..1_000 => format!("{us} µs"),
        1_000..10_000 => format!("{:.2} ms", us as f64 / 1e3),
        10_000..100_000 => format!("{:.1} ms", us as f64 / 1e3),
        100_000..1_000_000 => format!("{:.0} ms", us as f64 / 1e3),
        1_000_000..60_000_000 => format!("{:.2} s", us as f64 / 1e6),
        60_000_000..7_200_000_000 => format!("{} min {} s", us / 60_000_000, us / 1_000_000 % 60),
        _ => format!("{} h {} min", us / 3_600_000_000, us / 60_000_000 % 60),
    }
}

/// A size.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// A number, its thousands apart.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// A moment, in UTC.
pub fn date(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 1 March of the year 0 of a calendar that ends each year with February (Howard Hinnant, chrono-compatible
    // low-level date algorithms).
    let day = days + 719_468;
    let (era, day_of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let date = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year}-{month:02}-{date:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// Milliseconds since 1970, now.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis() as u64
}

/// Steps of an axis up to `end`: at most `most` of them, of a round length.
pub fn ticks(end: u64, most: u64) -> Vec<u64> {
    let mut step = 1_u64;
    let least = (end / most.max(1)).max(1);
    'found: loop {
        for factor in [1, 2, 5] {
            if step * factor >= least {
                step *= factor;
                break 'found;
            }
        }
        step = step.saturating_mul(10);
    }
    (0..=end / step).map(|at| at * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_sizes_and_dates_read_as_people_write_them() {
        let times =
            [(0, "0"), (999, "999 µs"), (1_234, "1.23 ms"), (12_340, "12.3 ms"), (1_210_000, "1.21 s")];
        for (us, text) in times {
            assert_eq!(time(us), text);
        }
        assert_eq!(time(125_000_000), "2 min 5 s");
        assert_eq!(time(7_260_000_000), "2 h 1 min");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(268_435_456), "256.0 MiB");
        assert_eq!(count(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(count(12), "12");
        assert_eq!(date(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(date(951_827_696_000), "2000-02-29 12:34:56 UTC");
        assert_eq!(date(1_795_406_400_000), "2026-11-23 04:00:00 UTC");
    }

    #[test]
    fn an_axis_has_few_round_steps() {
        assert_eq!(ticks(1_210_000, 6), [0, 500_000, 1_000_000]);
        for end in [0, 1, 7, 99, 100_000, u64::MAX / 16] {
            let ticks = ticks(end, 8);
            assert!(ticks.len() <= 9 && ticks[0] == 0 && *ticks.last().unwrap() <= end, "{end}: {ticks:?}");
        }
    }
}
