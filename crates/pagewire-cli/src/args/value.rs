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
}
