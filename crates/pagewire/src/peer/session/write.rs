//! Writing to a region of a peer: the lease, and what becomes of it when connections are lost.
//!
//! Whatever changes the region goes out once. When it is in doubt whether the peer still carries it out
//! (its connection is lost, or the patience is over), the whole session begins anew: the peer lets a new
//! session go on with the lease only when nothing of the old one can reach the region any more. Who
//! writes then writes again, and so nothing that is older can come later.

use std::time::Duration;

use pagewire_core::chunk::ByteRange;
use pagewire_core::wire::{
    InstanceId, Leased, OpenMode, PackedWriteHeader, RegionInfo, Reply, Request, WriteHeader,
};

use super::{Lane, ReplyTo, Session, Shared, State, unexpected};
use crate::error::{Error, ErrorKind, Result};
use crate::transport::lost;

/// How long to wait for the peer to say that it has the lease back.
const GIVE_BACK: Duration = Duration::from_secs(1);

/// The lease of a session.
#[derive(Clone)]
pub(super) struct Lease {
    owner: String,
    /// 0 until it is taken.
    pub(super) token: u64,
    /// Which memory of the peer's what was written is in.
    at: Option<(InstanceId, u64)>,
    stage: u64,
    flushed: u64,
    /// Why it is lost for good, if it is: the region can only be read then.
    fenced: Option<Error>,
}

/// How far what was written has come.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Written {
    pub(crate) token: u64,
    /// Another number means that the peer has lost what was not flushed.
    pub(crate) stage: u64,
    pub(crate) flushed: u64,
}

impl Lease {
    /// One that is still to be taken, where the token is 0; or one that was taken in an earlier life.
    pub(super) fn wanted(owner: &str, token: u64) -> Self {
        Self { owner: owner.into(), token, at: None, stage: 0, flushed: 0, fenced: None }
    }

    /// How the region is to be opened.
    pub(super) fn mode(&self) -> OpenMode {
        match self.fenced {
            Some(_) => OpenMode::Read,
            None => OpenMode::Write { token: self.token, owner: self.owner.clone() },
        }
    }

    pub(super) fn is_fenced(&self) -> bool {
        self.fenced.is_some()
    }

    /// The peer has given it, for the first time or again.
    fn given(&mut self, instance: InstanceId, leased: &Leased) {
        let at = Some((instance, leased.stage));
        if self.at != at {
            self.at = at;
            self.stage += 1;
        }
        self.token = leased.token;
        self.flushed = self.flushed.max(leased.flushed);
    }

    fn check(&self) -> Result<()> {
        self.fenced.clone().map_or(Ok(()), Err)
    }
}

impl State {
    /// The epoch that a read names on the wire: a writer that is one no more reads the epoch that it was
    /// at.
    pub(super) fn epoch_of(&self, epoch: u64) -> u64 {
        let fenced = self.lease.as_ref().is_some_and(Lease::is_fenced);
        if fenced && epoch == 0 { self.info.epoch } else { epoch }
    }

    pub(super) fn leased(&mut self, instance: InstanceId, leased: Option<&Leased>) {
        if let (Some(lease), Some(leased)) = (&mut self.lease, leased) {
            lease.given(instance, leased);
        }
    }

    /// The peer has given up what was staged: it is another stage from now on.
    fn given_up(&mut self) {
        if let Some(lease) = &mut self.lease {
            lease.stage += 1;
        }
    }

    /// The lease is somebody else's. Answers whether that is news.
    pub(super) fn fenced(&mut self, error: &Error) -> bool {
        match &mut self.lease {
            Some(lease) if lease.fenced.is_none() && lease.token != 0 => {
                lease.fenced = Some(error.clone());
                true
            }
            _ => false,
        }
    }
}

impl Session {
    /// How far what was written has come.
    pub(crate) fn written(&self) -> Written {
        let state = self.shared.lock();
        let Some(lease) = &state.lease else { return Written::default() };
        Written { token: lease.token, stage: lease.stage, flushed: lease.flushed }
    }

    /// Writes the bytes of some ranges: at most as many as fit in one frame.
    pub(crate) fn write(
        &self,
        ranges: &[ByteRange],
        bytes: &[u8],
        done: impl FnOnce(Result<()>) + Send + 'static,
    ) {
        let ready = {
            let mut state = self.shared.lock();
            let checked = state.lease.as_ref().map_or_else(|| Err(not_open()), Lease::check);
            checked.map(|()| (state.link(Lane::Bulk), state.handle))
        };
        let (link, handle) = match ready {
            Ok((Some(link), handle)) => (link, handle),
            Ok((None, _)) => return done(Err(self.shared.no_link())),
            Err(error) => return done(Err(error)),
        };
        let reply: ReplyTo = Box::new(move |reply| done(is_done(reply, "WRITE")));
        let call = self.shared.control_call(reply);
        self.shared.send_once(&link, call, true, |id, link| {
            let packed =
                link.packer.choose().and_then(|codec| Some((codec, link.packer.pack(codec, bytes)?)));
            let sent = match &packed {
                Some((codec, packed)) => {
                    let write = WriteHeader { handle, ranges: ranges.to_vec() };
                    let header = PackedWriteHeader { write, codec: *codec };
                    link.send_with(|out| header.encode(packed.len(), id, out), packed);
                    packed.len()
                }
                None => {
                    link.send_with(|out| WriteHeader::encode(handle, ranges, id, out), bytes);
                    bytes.len()
                }
            };
            link.packer.sent(sent as u64, &link.connection);
        });
    }

    /// Gives up what is staged, also what an earlier life of this writer has left, and finds out how long the
    /// region is without it.
    pub(crate) fn begin_anew(&self) -> Result<()> {
        let (sender, discarded) = std::sync::mpsc::sync_channel(1);
        self.change(
            |handle| Request::Discard { handle },
            move |result| {
                // The other end waits for it.
                let _ = sender.try_send(result);
            },
        );
        match discarded.recv().unwrap_or_else(|_| Err(super::cancelled(&self.shared.region))) {
            // What is written through cannot be taken back, and is not expected to be.
            Err(error) if error.kind() == ErrorKind::Unsupported => {}
            result => result?,
        }
        let name = self.shared.region.name.clone();
        match self.shared.control(|_| Request::Info { name })? {
            Reply::Info(info) => {
                let mut state = self.shared.lock();
                (state.info.epoch, state.info.length) = (info.epoch, info.length);
                Ok(())
            }
            _ => Err(unexpected("INFO")),
        }
    }

    /// Asks for a change that has no bytes.
    pub(crate) fn change(
        &self,
        request: impl FnOnce(u32) -> Request,
        done: impl FnOnce(Result<()>) + Send + 'static,
    ) {
        self.ask_for_change(None, request, Box::new(move |reply| done(is_done(reply, "a change"))));
    }

    /// Has the peer give up what is staged.
    pub(crate) fn discard(&self, done: impl FnOnce(Result<()>) + Send + 'static) {
        let shared = std::sync::Arc::downgrade(&self.shared);
        self.change(
            |handle| Request::Discard { handle },
            move |result| {
                if let (Ok(()), Some(shared)) = (&result, shared.upgrade()) {
                    shared.lock().given_up();
                }
                done(result);
            },
        );
    }

    /// Changes the region's length.
    pub(crate) fn set_length(&self, length: u64, done: impl FnOnce(Result<()>) + Send + 'static) {
        let shared = std::sync::Arc::downgrade(&self.shared);
        self.change(
            |handle| Request::SetLength { handle, length },
            move |result| {
                if let (Ok(()), Some(shared)) = (&result, shared.upgrade()) {
                    shared.lock().info.length = length;
                }
                done(result);
            },
        );
    }

    /// Flushes what was written at `stage`.
    pub(crate) fn flush(
        &self,
        number: u64,
        stage: u64,
        done: impl FnOnce(Result<RegionInfo>) + Send + 'static,
    ) {
        let shared = std::sync::Arc::downgrade(&self.shared);
        let reply: ReplyTo = Box::new(move |reply| {
            done(match reply {
                Ok(Reply::Flushed(info)) => {
                    if let Some(shared) = shared.upgrade() {
                        let mut state = shared.lock();
                        state.info = info;
                        if let Some(lease) = &mut state.lease {
                            lease.flushed = lease.flushed.max(number);
                        }
                    }
                    Ok(info)
                }
                Ok(_) => Err(unexpected("FLUSH")),
                Err(error) => {
                    // A peer that says so has given up what was staged.
                    if error.kind() != ErrorKind::Unavailable
                        && let Some(shared) = shared.upgrade()
                    {
                        shared.lock().given_up();
                    }
                    Err(error)
                }
            });
        });
        self.ask_for_change(Some(stage), |handle| Request::Flush { handle, number }, reply);
    }

    /// Asks for a change on the primary link, if the peer still is at `stage`.
    fn ask_for_change(&self, stage: Option<u64>, request: impl FnOnce(u32) -> Request, reply: ReplyTo) {
        let ready = {
            let state = self.shared.lock();
            let checked = state.lease.as_ref().map_or_else(
                || Err(not_open()),
                |lease| {
                    lease.check()?;
                    if stage.is_some_and(|stage| stage != lease.stage) {
                        return Err(lost(
                            &self.shared.region,
                            "the server has restarted; what was not flushed is to be written again",
                        ));
                    }
                    Ok(())
                },
            );
            checked.map(|()| (state.primary.clone(), state.handle))
        };
        let (link, handle) = match ready {
            Ok((Some(link), handle)) => (link, handle),
            Ok((None, _)) => return reply(Err(self.shared.no_link())),
            Err(error) => return reply(Err(error)),
        };
        let (call, request) = (self.shared.control_call(reply), request(handle));
        self.shared.send_once(&link, call, true, |id, link| link.send(|out| request.encode(id, out)));
    }

    /// Tells the peer that the lease is free, so that nobody has to wait for it to lapse.
    pub(super) fn give_lease_back(&self) {
        let held =
            self.shared.lock().lease.as_ref().is_some_and(|lease| lease.token != 0 && !lease.is_fenced());
        if !held {
            return;
        }
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let reply: ReplyTo = Box::new(move |reply| {
            // Whoever waited may have lost its patience.
            let _ = sender.try_send(reply.map(drop));
        });
        if self.shared.ask_once(self.shared.control_call(reply), |handle| Request::Close { handle }).is_ok() {
            // If the peer does not answer, the lease lapses.
            let _ = receiver.recv_timeout(GIVE_BACK);
        }
    }
}

impl Shared {
    fn no_link(&self) -> Error {
        self.primary().err().unwrap_or_else(|| lost(&self.region, "it is being made again"))
    }
}

fn is_done(reply: Result<Reply>, request: &str) -> Result<()> {
    match reply? {
        Reply::Done => Ok(()),
        _ => Err(unexpected(request)),
    }
}

fn not_open() -> Error {
    Error::new(ErrorKind::Unsupported, "the region is open for reading")
}
