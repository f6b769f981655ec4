//! The kernel interfaces that Pagewire uses; the only crate with `unsafe`.
