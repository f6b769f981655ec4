//! Moving a region that is in use to another host.
//!
//! [`moment`] says when to begin: at once, or in the part of the workload's cycle in which little is written.

pub mod moment;
