//! The NBD server, met by a client that says whatever a test has it say.
#![cfg(feature = "nbd")]

mod client;
mod faults;
mod hostile;
mod leases;
mod moved;
mod requests;
mod transmission;
