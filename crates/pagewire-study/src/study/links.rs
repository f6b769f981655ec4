//! The links of a study: making them, and judging whether they are what was asked for.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use pagewire_sys::net::NetNamespace;

use super::plan::LinkSetting;
use super::record::{LinkKind, LinkRecord, Outcome};
use super::trouble::Trouble;
use crate::link::{ADDRESS_B, Link, LinkMeasured, LinkOptions, Loss};

/// How often a link is measured before it is refused: somebody else may have had the processors.
const ATTEMPTS: usize = 3;

/// A round trip that is shorter may be off by as much as this one: threads have to be woken, however short it is.
const SHORT: Duration = Duration::from_millis(2);

/// How many standard deviations a loss at random may be off.
const CHANCE: f64 = 4.0;

/// What is dropped of all segments without being asked for, and matters to nobody.
const STRAY: f64 = 1e-4;

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

/// What is asked of all links of a study.
#[derive(Debug, Clone, Copy)]
pub(super) struct Demands {
    /// What they lose on purpose.
    pub(super) loss: Option<Loss>,
    /// How far one may be from what was asked for, as a share.
    pub(super) tolerance: f64,
}

impl Demands {
    /// The share of segments that is lost.
    fn loss(&self) -> f64 {
        self.loss.map_or(0.0, |loss| f64::from(loss.per_mille) * 1e-3)
    }
}

/// Makes a link, and measures it.
pub(super) fn make(
    setting: LinkSetting,
    demands: &Demands,
) -> (LinkRecord, std::result::Result<Between, Trouble>) {
    let mut record = LinkRecord {
        kind: LinkKind::Namespaces,
        rtt_ms: setting.rtt_ms,
        rate_bits: setting.rate_bits,
        loss: demands.loss(),
        measured_rtt_s: None,
        measured_rate_bits: None,
        measured_loss: None,
        accepted: false,
        reason: None,
    };
    let result = measured(setting, demands, &mut record);
    record.accepted = result.is_ok();
    if let Err(trouble) = &result {
        record.reason = Some(trouble.reason.clone());
    }
    (record, result)
}

fn measured(
    setting: LinkSetting,
    demands: &Demands,
    record: &mut LinkRecord,
) -> std::result::Result<Between, Trouble> {
    let options = LinkOptions {
        rate: setting.rate_bits,
        loss: demands.loss,
        ..LinkOptions::new(Duration::from_millis(setting.rtt_ms.into()))
    };
    let link = match Link::new(options) {
        Ok(link) => link,
        Err(error) => return without(setting, demands, &error, record),
    };
    for attempt in 1.. {
        let measured = link.verify()?;
        record.measured_rtt_s = Some(measured.round_trip.as_secs_f64());
        record.measured_rate_bits = Some(measured.rate);
        record.measured_loss = Some(measured.loss());
        match judge(setting, demands, measured) {
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
    demands: &Demands,
    error: &io::Error,
    record: &mut LinkRecord,
) -> std::result::Result<Between, Trouble> {
    // The loopback device loses nothing.
    if setting == (LinkSetting { rtt_ms: 0, rate_bits: None }) && demands.loss.is_none() {
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
fn judge(setting: LinkSetting, demands: &Demands, measured: LinkMeasured) -> std::result::Result<(), String> {
    let tolerance = demands.tolerance;
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
    let (found, asked, segments) = (measured.loss(), demands.loss(), measured.segments.max(1) as f64);
    // Chance loses some more or less: by four standard deviations once in 16,000 times.
    let chance = CHANCE * (asked * (1.0 - asked) / segments).sqrt();
    if (found - asked).abs() > asked * tolerance + chance + STRAY {
        let [found, asked] = [found, asked].map(|share| share * 100.0);
        return Err(format!("the link loses {found:.2} % of {segments:.0} segments instead of {asked} %"));
    }
    if let Some(rate) = setting.rate_bits {
        let share = measured.rate as f64 / rate as f64;
        // TCP that loses segments does not fill a link.
        let is_slow = demands.loss.is_none() && share < 1.0 - tolerance;
        if is_slow || share > 1.05 {
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

    const LOSSLESS: Demands = Demands { loss: None, tolerance: 0.25 };

    fn measured(millis: f64, rate: u64) -> LinkMeasured {
        let round_trip = Duration::from_secs_f64(millis / 1e3);
        LinkMeasured { round_trip, rate: rate * 1_000_000, segments: 10_000, dropped: 0 }
    }

    #[test]
    fn a_link_that_is_too_slow_or_too_fast_is_refused() {
        let setting = LinkSetting { rtt_ms: 10, rate_bits: Some(1_000_000_000) };
        let judge = |millis: f64, rate: u64| judge(setting, &LOSSLESS, measured(millis, rate));
        assert_eq!(judge(10.3, 950), Ok(()));
        assert_eq!(judge(12.4, 800), Ok(()));
        assert!(judge(12.6, 950).unwrap_err().contains("12.600 ms instead of 10 ms"));
        assert!(judge(5.0, 950).is_err() && judge(10.0, 700).is_err() && judge(10.0, 1100).is_err());
        let none = LinkSetting { rtt_ms: 0, rate_bits: None };
        assert_eq!(super::judge(none, &LOSSLESS, measured(0.08, 1)), Ok(()));
    }

    #[test]
    fn a_link_that_loses_more_or_less_than_was_asked_for_is_refused() {
        let setting = LinkSetting { rtt_ms: 10, rate_bits: Some(1_000_000_000) };
        let demands = Demands { loss: Some(Loss { per_mille: 10, seed: 1 }), tolerance: 0.25 };
        let judge = |segments: u64, dropped: u64| {
            super::judge(setting, &demands, LinkMeasured { segments, dropped, ..measured(10.3, 40) })
        };
        for dropped in [65, 80, 100, 120, 135] {
            assert_eq!(judge(10_000, dropped), Ok(()), "{dropped}: TCP is slow then");
        }
        let said = judge(10_000, 300).unwrap_err();
        assert!(said.contains("loses 3.00 % of 10000 segments instead of 1 %"), "{said}");
        assert!(judge(10_000, 20).is_err() && judge(1_000_000, 6_000).is_err());
        assert_eq!(judge(100, 3), Ok(()), "of so few it is chance");
        let lossless =
            |dropped: u64| super::judge(setting, &LOSSLESS, LinkMeasured { dropped, ..measured(10.3, 950) });
        assert!(lossless(1).is_ok() && lossless(20).is_err(), "nothing is lost where nothing was asked for");
    }
}
