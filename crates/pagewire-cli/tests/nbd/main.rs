//! `pagewire serve --nbd`, met by the clients that there are: libnbd's tools and its Python binding, qemu's, and fio.

#[path = "../cli/driving.rs"]
#[allow(dead_code, reason = "not all of it is needed here")]
mod driving;
mod fio;
mod killed;
mod libnbd;
mod qemu;
mod shell;
mod support;
#[cfg(feature = "tls")]
mod tls;
