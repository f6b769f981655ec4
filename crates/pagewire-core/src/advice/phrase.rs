//! Sizes, times and rates, as sentences have them.

use std::time::Duration;

/// Bytes, in the largest binary unit that keeps it at 1 or more, with three digits.
pub fn size(bytes: f64) -> String {
    scaled(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"])
}

/// Bytes per second, in decimal units.
pub fn rate(bytes_per_second: f64) -> String {
    scaled(bytes_per_second, 1000.0, &["B/s", "kB/s", "MB/s", "GB/s"])
}

/// A time: microseconds, milliseconds, seconds, minutes or hours.
pub fn time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        0.0 => "no time".into(),
        ..0.000_999_5 => format!("{} µs", digits(seconds * 1e6)),
        ..0.999_5 => format!("{} ms", digits(seconds * 1e3)),
        ..119.5 => format!("{} s", digits(seconds)),
        ..7170.0 => format!("{} min", digits(seconds / 60.0)),
        ..172_000.0 => format!("{} h", digits(seconds / 3600.0)),
        _ => format!("{} days", digits(seconds / 86400.0)),
    }
}

/// A time in seconds, which may be for ever.
pub(super) fn seconds(seconds: f64) -> String {
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if seconds < 1e10 => time(duration),
        _ => "for ever".into(),
    }
}

/// A share, in per cent.
pub(super) fn share(share: f64) -> String {
    let percent = share * 100.0;
    if percent > 0.0 && percent < 1.0 { "less than 1 %".into() } else { format!("{percent:.0} %") }
}

fn scaled(value: f64, step: f64, units: &[&str]) -> String {
    let (mut value, mut unit) = (value, 0);
    while value >= step * 0.9995 && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    format!("{} {}", digits(value), units[unit])
}

/// Three digits that count, and no zeroes at the end.
fn digits(value: f64) -> String {
    let text = match value.abs() {
        ..9.995 => format!("{value:.2}"),
        ..99.95 => format!("{value:.1}"),
        _ => return format!("{value:.0}"),
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!(size(8.0 * 1024.0 * 1024.0 * 1024.0), "8 GiB");
        assert_eq!(size(1500.0), "1.46 KiB");
        assert_eq!(size(0.0), "0 B");
        assert_eq!(rate(125e6), "125 MB/s");
        assert_eq!(rate(1.25e9), "1.25 GB/s");
        assert_eq!(time(Duration::from_micros(33)), "33 µs");
        assert_eq!(time(Duration::from_micros(1500)), "1.5 ms");
        assert_eq!(time(Duration::from_millis(999)), "999 ms");
        assert_eq!(time(Duration::from_secs(64)), "64 s");
        assert_eq!(time(Duration::from_secs(600)), "10 min");
        assert_eq!(time(Duration::from_secs(40 * 3600)), "40 h");
        assert_eq!(time(Duration::ZERO), "no time");
        assert_eq!(seconds(f64::INFINITY), "for ever");
        assert_eq!(share(0.25), "25 %");
        assert_eq!(share(0.001), "less than 1 %");
    }
}
