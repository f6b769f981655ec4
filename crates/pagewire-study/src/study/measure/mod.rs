//! What is measured besides the application's own time.
//!
//! - [`kernel`]: processor time of kernel threads.
//! - [`spread`]: percentiles and samples of single measurements.
//! - [`staleness`]: how long a change takes to the server.

pub(super) mod kernel;
pub(super) mod spread;
pub(super) mod staleness;
