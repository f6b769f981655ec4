//! What the library promises, tested from outside over real sockets: the contracts of stores and
//! local copies, and what happens when servers die, files change and peers misbehave.
//!
//! Parts that need a process of their own (one that is killed, or dies by a signal) are played by
//! this same program, started again: see [`support::role`].

mod support;

mod caches;
mod compression;
mod crowds;
mod cuts;
mod delta_hostility;
mod deltas;
mod epochs;
mod fairness;
mod file_changes;
mod fork;
mod full_disks;
mod gone;
mod hostile_client;
mod hostile_server;
#[cfg(feature = "tls")]
mod hostile_tls;
#[cfg(feature = "tls")]
mod identities;
mod killed_writers;
mod local_copies;
mod mappings;
mod migrations;
mod mirrors;
mod model;
#[cfg(feature = "nbd")]
mod nbd_faults;
#[cfg(feature = "nbd")]
mod nbd_hostile;
#[cfg(feature = "nbd")]
mod nbd_mappings;
#[cfg(feature = "nbd")]
mod nbd_stores;
#[cfg(all(feature = "nbd", feature = "tls"))]
mod nbd_tls;
mod network;
mod overload;
mod pushes;
mod restart;
mod stores;
#[cfg(feature = "tls")]
mod tls;
mod witnesses;
mod writable;
mod writers;
