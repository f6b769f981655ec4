//! The links of a study: making them, and judging whether they are what was asked for.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use pagewire_sys::net::NetNamespace;

use super::plan::LinkSetting;
use super::record::{LinkKind, LinkRecord, Outcome};
use super::trouble::Trouble;
use crate::link::{ADDRESS_B, Link, LinkMeasured, LinkOptions};

/// How often a link is measured before it is refused: somebody else may have had the processors.
const ATTEMPTS: usize = 3;

/// A round trip that is shorter may be off by as much as this one: threads have to be woken, however short it is.
const SHORT: Duration = Duration::from_millis(2);

/// What lies between client and server.
pub(super) enum Between {
    /// Namespaces.
    Link(Link),
    /// The loopback device.
    Loopback,
}

impl Between {
    /// Where the server listens.
    pub(super) fn host(&self) -> Ipv4Addr {
        match self {
            Self::Link(_) => ADDRESS_B,
            Self::Loopback => Ipv4Addr::LOCALHOST,
        }
    }

    /// Where the client is.
    pub(super) fn client(&self) -> Option<&NetNamespace> {
        match self {
            Self::Link(link) => Some(link.a()),
            Self::Loopback => None,
        }
    }

    /// Where the server is.
    pub(super) fn server(&self) -> Option<&NetNamespace> {
        match self {
            Self::Link(link) => Some(link.b()),
            Self::Loopback => None,
        }
    }

    /// Bytes that have come to the client, and to the server.
    pub(super) fn traffic(&self) -> Option<(u64, u64)> {
        match self {
            Self::Link(link) => Some((link.b_to_a().bytes, link.a_to_b().bytes)),
            Self::Loopback => None,
        }
    }
}

/// Makes a link, and measures it. `tolerance` is how far a link may be from what was asked for, as a share.
pub(super) fn make(
    setting: LinkSetting,
    tolerance: f64,
) -> (LinkRecord, std::result::Result<Between, Trouble>) {
    let mut record = LinkRecord {
        kind: LinkKind::Namespaces,
        rtt_ms: setting.rtt_ms,
        rate_bits: setting.rate_bits,
        loss: 0.0,
        measured_rtt_s: None,
        measured_rate_bits: None,
        accepted: false,
        reason: None,
    };
    let result = measured(setting, tolerance, &mut record);
    record.accepted = result.is_ok();
    if let Err(trouble) = &result {
        record.reason = Some(trouble.reason.clone());
    }
    (record, result)
}

fn measured(
    setting: LinkSetting,
    tolerance: f64,
    record: &mut LinkRecord,
) -> std::result::Result<Between, Trouble> {
    let options = LinkOptions {
        rate: setting.rate_bits,
        ..LinkOptions::new(Duration::from_millis(setting.rtt_ms.into()))
    };
    let link = match Link::new(options) {
        Ok(link) => link,
        Err(error) => return without(setting, &error, record),
    };
    for attempt in 1.. {
        let measured = link.verify()?;
        record.measured_rtt_s = Some(measured.round_trip.as_secs_f64());
        record.measured_rate_bits = Some(measured.rate);
        match judge(setting, measured, tolerance) {
            Ok(()) => return Ok(Between::Link(link)),
            Err(reason) if attempt == ATTEMPTS => {
                return Err(Trouble { outcome: Outcome::Refused, reason });
            }
            Err(_) => {}
        }
    }
    unreachable!("there is a last attempt")
}

/// What is left to those who may not make a link.
fn without(
    setting: LinkSetting,
    error: &io::Error,
    record: &mut LinkRecord,
) -> std::result::Result<Between, Trouble> {
    if setting == (LinkSetting { rtt_ms: 0, rate_bits: None }) {
        record.kind = LinkKind::Loopback;
        return Ok(Between::Loopback);
    }
    let outcome = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::Unsupported => Outcome::Unsupported,
        _ => Outcome::NotPermitted,
    };
    let reason =
        format!("a link takes network namespaces and a TUN device, which cannot be had here: {error}");
    Err(Trouble { outcome, reason })
}

/// Whether a link is what was asked for.
fn judge(setting: LinkSetting, measured: LinkMeasured, tolerance: f64) -> std::result::Result<(), String> {
    let asked = Duration::from_millis(setting.rtt_ms.into());
    let most = asked + asked.max(SHORT).mul_f64(tolerance);
    let found = measured.round_trip;
    if found > most || found < asked.mul_f64(0.98) {
        return Err(format!(
            "the link has a round-trip time of {:.3} ms instead of {} ms: something else keeps this machine busy",
            found.as_secs_f64() * 1e3,
            setting.rtt_ms
        ));
    }
    if let Some(rate) = setting.rate_bits {
        let share = measured.rate as f64 / rate as f64;
        if share < 1.0 - tolerance || share > 1.05 {
            let (found, asked) = (measured.rate / 1_000_000, rate / 1_000_000);
            return Err(format!(
                "the link carries {found} Mbit/s instead of {asked}: something else keeps this machine busy"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_is_too_slow_or_too_fast_is_refused() {
        let setting = LinkSetting { rtt_ms: 10, rate_bits: Some(1_000_000_000) };
        let judge = |millis: f64, rate: u64| {
            let round_trip = Duration::from_secs_f64(millis / 1e3);
            judge(setting, LinkMeasured { round_trip, rate: rate * 1_000_000 }, 0.25)
        };
        assert_eq!(judge(10.3, 950), Ok(()));
        assert_eq!(judge(12.4, 800), Ok(()));
        assert!(judge(12.6, 950).unwrap_err().contains("12.600 ms instead of 10 ms"));
        assert!(judge(5.0, 950).is_err() && judge(10.0, 700).is_err() && judge(10.0, 1100).is_err());
        let none = LinkSetting { rtt_ms: 0, rate_bits: None };
        let measured = LinkMeasured { round_trip: Duration::from_micros(80), rate: 1 };
        assert_eq!(super::judge(none, measured, 0.25), Ok(()));
    }
}
