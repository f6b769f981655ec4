//! Decisions of Pagewire, and nothing else: no I/O, no clock, no thread.
#![forbid(unsafe_code)]
