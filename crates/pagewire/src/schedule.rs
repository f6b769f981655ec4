//! How our threads share the processor: demand before bulk.
//!
//! On a machine whose processors are all busy, a fault passes through four threads, each of which has
//! to be given a processor first. The scheduler (EEVDF, Stoica and Abdel-Wahab, 1995) lets a thread
//! that asks for short turns interrupt one with longer turns when it wakes, and needs no privilege
//! for it. Bulk threads are a little nicer than others: where there is processor time to be had they
//! lose nothing, and where there is not, an application and its faults go first. Measured on two
//! processors that a pull keeps busy, the two together halve the median of a fault.
//!
//! On a machine whose processors are idle, these threads wait awake for a moment ([`awake`]).

mod awake;

use std::time::Duration;

pub(crate) use awake::{Wait, wait};

/// The shortest turn that the kernel grants.
const SHORT: Duration = Duration::from_micros(100);

/// A third of the share of a thread with the usual value.
const NICE: i32 = 5;

/// The calling thread serves those who wait.
pub(crate) fn demand() {
    awake::allow();
    if let Err(error) = pagewire_sys::thread::set_slice(SHORT) {
        tracing::debug!(%error, "cannot ask for short turns");
    }
}

/// The calling thread moves what nobody waits for yet.
pub(crate) fn bulk() {
    if let Err(error) = pagewire_sys::thread::set_nice(NICE) {
        tracing::debug!(%error, "cannot be nicer");
    }
}
