//! The comparative study: every access method, on the same work, over links that were measured first.
//!
//! - [`record`]: the raw data, one JSON object a line: all that a report is made from.

pub mod record;
