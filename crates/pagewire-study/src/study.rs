//! The comparative study: every access method, on the same work, over links that were measured first.
//!
//! Four kinds of processes take part, all of them this very program, started again. [`run`] plans, and writes the raw data. Its
//! *worker* has namespaces of its own where it may, makes one link after another, and starts for each cell a
//! *server* at one end and an *application* at the other, which may have *sidecars*: a mount, a mirror. So processor
//! time and memory have an owner, and whatever ends the study ends all of them: each lives as long as its standard input.
//!
//! - [`record`]: the raw data, one JSON object a line: all that a report is made from.
//! - [`plan`]: which cells there are, and in which order they are run.
//! - `workload`: what applications do; pure.
//! - [`run`]: a study from outside: what is left to do, its process, its file.
//! - `worker`, `cell`: the process that carries it out; one round of one cell.
//! - `links`, `side`: the links; the server's side, and what its file holds in the end.
//! - `application`, `method`, `sidecar`: the client's side: its work, the access methods, and processes that they need.
//! - `measure`: what is measured besides the application's own time.
//! - [`machine`]: the machine, and who runs a study.
//! - [`trouble`]: why something was not measured.

pub mod machine;
pub mod plan;
pub mod record;
pub mod run;
pub mod trouble;

mod application;
mod cell;
mod links;
mod measure;
mod method;
mod side;
mod sidecar;
mod worker;
mod workload;

pub use worker::Event;
