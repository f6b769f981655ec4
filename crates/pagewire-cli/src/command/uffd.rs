//! `pagewire uffd REGION --socket PATH`.

use std::sync::Arc;

use anyhow::Result;
use pagewire::PullOrder;
use pagewire::access::uffd::{Handler, HandlerOptions, OpenRegion};
use pagewire::engine::{PullOptions, Region};
use pagewire::store;

use super::Termination;
use crate::args::Uffd;
use crate::output;

pub(super) fn run(args: &Uffd) -> Result<()> {
    let termination = Termination::watch()?;
    let order = if args.no_pull { PullOrder::None } else { PullOrder::Sequential };
    let pull = PullOptions { order, chunk: args.chunk, ..PullOptions::default() };
    let (address, remote) = (args.region.clone(), args.remote.options());
    let open: OpenRegion = Arc::new(move || Region::at(&address, store::open(&address, false, &remote)?));
    let handler = Handler::listen(&args.socket, open, HandlerOptions { pull })?;
    output::line(format!("listening {}", handler.path().display()))?;
    termination.wait()
}
