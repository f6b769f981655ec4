//! What was acknowledged and is not flushed.
//!
//! A server may lose that when it is restarted, and says nothing of restarts. But a connection does not outlive
//! its server. So a flush counts if it goes by a connection that is older than the oldest write that it is to
//! cover; when there is no such connection any more, all that was not flushed counts as lost.

/// What was acknowledged and is not flushed.
///
/// Links and acknowledgements are in one order, by a count.
#[derive(Debug)]
pub(super) struct Unflushed {
    count: u64,
    /// When the oldest and the newest write were acknowledged that no flush covers.
    oldest: Option<u64>,
    newest: u64,
    /// Grows whenever something may be lost.
    stage: u64,
}

impl Unflushed {
    pub(super) fn new() -> Self {
        Self { count: 0, oldest: None, newest: 0, stage: 1 }
    }

    /// The stage that the store is at.
    pub(super) fn stage(&self) -> u64 {
        self.stage
    }

    /// Whether there is something to flush.
    pub(super) fn is_any(&self) -> bool {
        self.oldest.is_some()
    }

    /// The next moment.
    pub(super) fn tick(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    /// A write is acknowledged.
    pub(super) fn acknowledged(&mut self) {
        let now = self.tick();
        self.newest = now;
        self.oldest.get_or_insert(now);
    }

    /// Whether a link that was born then has lived since the oldest of it was written.
    pub(super) fn is_covered_by(&self, born: u64) -> bool {
        self.oldest.is_none_or(|oldest| born < oldest)
    }

    /// A flush is done that was sent at this count.
    pub(super) fn flushed(&mut self, sent: u64) {
        self.oldest = self.oldest.filter(|_| self.newest > sent).map(|oldest| oldest.max(sent + 1));
    }

    /// What was acknowledged may be lost.
    pub(super) fn lose(&mut self) {
        self.oldest = None;
        self.stage += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::Unflushed;

    #[test]
    fn a_flush_covers_what_was_acknowledged_before_it_was_sent() {
        let mut unflushed = Unflushed::new();
        let old = unflushed.tick();
        assert!(unflushed.is_covered_by(old));
        unflushed.acknowledged();
        let young = unflushed.tick();
        assert!(unflushed.is_covered_by(old) && !unflushed.is_covered_by(young));
        let sent = unflushed.tick();
        unflushed.acknowledged();
        unflushed.flushed(sent);
        assert!(unflushed.oldest.is_some(), "the second write came after the flush");
        assert!(unflushed.is_covered_by(young), "which the younger link has lived through");
        let sent = unflushed.tick();
        unflushed.flushed(sent);
        assert!(unflushed.oldest.is_none());
        let stage = unflushed.stage;
        unflushed.acknowledged();
        unflushed.lose();
        assert!(unflushed.stage > stage && unflushed.oldest.is_none());
    }
}
