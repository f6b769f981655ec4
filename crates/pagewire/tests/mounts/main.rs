//! Regions as files, over the real FUSE of this kernel: what programs find in a mounted file, whatever they do to it
//! and whatever happens to the connection and the server meanwhile.
//!
//! A test takes its mounts down also when it fails, and whatever could hang has a deadline: see [`support`].
#![cfg(feature = "fuse")]

mod support;

mod attributes;
mod directories;
mod epochs;
mod far;
mod faults;
mod holes;
mod killed;
mod life;
mod moving;
mod passthrough;
mod programs;
mod random;
mod traces;
