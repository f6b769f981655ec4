//! What the library promises, tested from outside over real sockets: the contracts of stores and
//! local copies, and what happens when servers die, files change and peers misbehave.
//!
//! Parts that need a process of their own (one that is killed, or dies by a signal) are played by
//! this same program, started again: see [`support::role`].

mod support;

mod caches;
mod crowds;
mod epochs;
mod file_changes;
mod fork;
mod gone;
mod hostile_client;
mod hostile_server;
mod local_copies;
mod mappings;
mod network;
mod overload;
mod pushes;
mod restart;
mod stores;
mod writable;
mod writers;
