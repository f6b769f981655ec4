//! What to pull next, and how much of it may be in flight.
//!
//! Three decisions that do not know of each other. [`PullOrder`] plans the background pull of everything that
//! is absent. [`Readahead`] looks at the demand faults and says which chunks an application is likely to want
//! next; these come before the background order. [`Window`] says how many bytes may be asked for at once: enough
//! to keep the link busy, and not so many that a demand fault waits behind them. Demand itself is never
//! planned: it goes out at once, on its own connection, outside of the window.

mod order;
mod readahead;
mod sending;
mod trace;
mod window;

pub use order::PullOrder;
pub use readahead::Readahead;
pub use sending::SendOrder;
pub use trace::{Trace, TraceError};
pub use window::{Window, WindowLimits};
