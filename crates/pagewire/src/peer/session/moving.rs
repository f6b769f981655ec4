//! What who takes a region over asks of its origin.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use pagewire_core::wire::{MigrateRequest, MigrateStep, Migrated, Reply, Request, SetStream};

use super::{Answer, Ask, Call, Flow, Link, ReplyTo, Session, Shared, StreamCall, unexpected};
use crate::error::Result;
use crate::sink::Sink;

impl Session {
    /// Asks for a step of the migration that the region is open for, once.
    pub(crate) fn migrate(&self, step: MigrateStep) -> Result<Migrated> {
        self.shared.migrate(step, None)
    }

    /// The same for a step that takes a set, whose pages follow the answer, into `sink`: they may come before this returns.
    pub(crate) fn migrate_with_pages(
        &self,
        step: MigrateStep,
        epoch: u64,
        sink: Arc<dyn Sink>,
    ) -> Result<(Migrated, StreamCall)> {
        let flow = Flow::new(Instant::now());
        let credit = flow.initial();
        let call = Call::new(Ask::Stream { epoch, flow }, Answer::Sink(sink), None);
        let (link, _) = self.shared.primary()?;
        // What asks for it is the step.
        let id = self.shared.send_once(&link, call, false, |_, _| {});
        let stream = StreamCall { shared: Arc::downgrade(&self.shared), id };
        let migrated = self.shared.migrate(step, Some(SetStream { id, credit }))?;
        Ok((migrated, stream))
    }

    /// Waits until what the peer has sent before is here, on each connection that carries bulk, but for `limit` at most:
    /// what is on its way delays what is asked for next.
    pub(crate) fn drain(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let links: Vec<Arc<Link>> = self.shared.lock().bulk.iter().flatten().cloned().collect();
        let (sender, answers) = mpsc::sync_channel(links.len());
        for link in &links {
            let sender = sender.clone();
            let reply: ReplyTo = Box::new(move |_| {
                // Who has waited for long enough has gone.
                let _ = sender.try_send(());
            });
            let ping = Request::Ping(Vec::new());
            let call = self.shared.control_call(reply);
            self.shared.send_once(link, call, false, |id, link| link.send(|out| ping.encode(id, out)));
        }
        drop(sender);
        for _ in &links {
            if answers.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_err() {
                return;
            }
        }
    }
}

impl Shared {
    fn migrate(&self, step: MigrateStep, pages: Option<SetStream>) -> Result<Migrated> {
        match self.control(|handle| Request::Migrate(MigrateRequest { handle, step, pages }))? {
            Reply::Migrated(migrated) => Ok(migrated),
            _ => Err(unexpected("MIGRATE")),
        }
    }
}
