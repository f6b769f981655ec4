//! Values that several commands take, as they are written.

use std::time::Duration;

use pagewire::address::parse_size;
use pagewire::{ChunkSize, Codec, Compression};

/// How to compress.
pub(super) fn parse_compression(text: &str) -> Result<Compression, String> {
    match text {
        "auto" => Ok(Compression::Auto),
        "off" => Ok(Compression::Off),
        "lz4" => Ok(Compression::Always(Codec::Lz4)),
        "zstd" => Ok(Compression::Always(Codec::Zstd)),
        _ => Err("write auto, off, lz4, or zstd".into()),
    }
}

/// The size of a chunk.
pub(super) fn parse_chunk(text: &str) -> Result<ChunkSize, String> {
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    ChunkSize::new(bytes).map_err(|error| error.to_string())
}

/// A time that is not 0, and not longer than makes sense.
pub(super) fn parse_time(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, unit) = text.split_at(digits);
    let number = number.parse::<u64>().ok();
    let time = match (number, unit) {
        (Some(number), "ms") => Some(Duration::from_millis(number)),
        (Some(number), "s") => Some(Duration::from_secs(number)),
        (Some(number), "min") => number.checked_mul(60).map(Duration::from_secs),
        _ => None,
    };
    time.filter(|time| !time.is_zero() && *time <= Duration::from_secs(86_400 * 365))
        .ok_or_else(|| format!("'{text}' is no time: write a number with ms, s or min"))
}

/// A time that may be a fraction, down to microseconds.
pub(super) fn parse_fine_time(text: &str) -> Result<Duration, String> {
    let units = [("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)];
    let wrong = || format!("'{text}' is no time: write a number with us, ms or s");
    let seconds = scaled(text, &units).filter(|seconds| *seconds > 0.0 && *seconds <= 86_400.0);
    Ok(Duration::from_secs_f64(seconds.ok_or_else(wrong)?))
}

/// Bytes per second, more than none.
pub(super) fn parse_rate(text: &str) -> Result<f64, String> {
    let units = [
        ("kB/s", 1e3),
        ("MB/s", 1e6),
        ("GB/s", 1e9),
        ("KiB/s", 1024.0),
        ("MiB/s", 1_048_576.0),
        ("GiB/s", 1_073_741_824.0),
        ("kbit/s", 125.0),
        ("Mbit/s", 125e3),
        ("Gbit/s", 125e6),
    ];
    let wrong = || format!("'{text}' is no rate: write a number with MB/s, MiB/s, Mbit/s, or with k or G");
    scaled(text, &units).filter(|rate| *rate > 0.0 && *rate <= 1e15).ok_or_else(wrong)
}

/// A share, of what is written in per cent.
pub(super) fn parse_percent(text: &str) -> Result<f64, String> {
    let wrong = || format!("'{text}' is no share: write per cent, more than 0 and up to 100");
    let percent = scaled(text.strip_suffix('%').unwrap_or(text), &[("", 1.0)]);
    percent
        .filter(|percent| *percent > 0.0 && *percent <= 100.0)
        .map(|percent| percent / 100.0)
        .ok_or_else(wrong)
}

/// A decimal number and one of these units.
fn scaled(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let digits = text.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (number, unit) = text.split_at(digits);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit.trim())?;
    number.parse::<f64>().ok().map(|number| number * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_people_write_them() {
        assert_eq!(parse_time("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_time("3s"), Ok(Duration::from_secs(3)));
        for wrong in ["", "3", "s", "0s", "-1s", "3h", "99999999999999999999s"] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
    }
    #[test]
    fn rates_and_shares_do_too() {
        assert_eq!(parse_fine_time("500us"), Ok(Duration::from_micros(500)));
        assert_eq!(parse_fine_time("0.5ms"), Ok(Duration::from_micros(500)));
        assert_eq!(parse_rate("125MB/s"), Ok(125e6));
        assert_eq!(parse_rate("10Gbit/s"), Ok(1.25e9));
        assert_eq!(parse_rate("1.5 MiB/s"), Ok(1.5 * 1_048_576.0));
        assert_eq!(parse_percent("25%"), Ok(0.25));
        assert_eq!(parse_percent("100"), Ok(1.0));
        for wrong in ["", "1", "MB/s", "0MB/s", "-1MB/s", "1MB", "1..2MB/s", "1e9MB/s", "99999999999GB/s"] {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "0", "101", "x", "NaN"] {
            assert!(parse_percent(wrong).is_err(), "{wrong}");
        }
        assert!(parse_fine_time("0us").is_err() && parse_fine_time("2days").is_err());
    }
}
