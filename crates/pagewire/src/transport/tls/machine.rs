//! rustls's part of a connection: it gets records and gives bytes, gets bytes and gives records, and does no
//! I/O. Whoever has it holds up whoever else wants it, so nobody waits for a socket meanwhile.
//!
//! What the receiving side makes it necessary to send (an alert, the answer to a key update) is kept here
//! until somebody sends: it goes before whatever is encrypted next, as its sequence number has it.

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{CommonState, Error};

/// The header of a record: its type, a version, and the length of what follows.
const RECORD_HEADER: usize = 5;

/// What the encryption of a record adds to it, without padding: its header, its inner type, its tag.
pub(super) const RECORD_OVERHEAD: usize = RECORD_HEADER + 1 + 16;

/// The most that a record carries.
pub(super) const RECORD: usize = 16 << 10;

/// The length of the largest record that rustls waits for, as it comes. TLS 1.3 allows less, and what is
/// longer than that does not decrypt.
pub(super) const LARGEST: usize = RECORD_HEADER + RECORD + 2048;

pub(super) struct Machine {
    side: Side,
    /// Records that are to be sent before any others.
    owed: Ciphertext,
    /// The peer has said that it sends no more.
    peer_has_ended: bool,
    we_have_ended: bool,
    failed: bool,
}

enum Side {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// Records on their way out. The buffer is used again and again, and cleared but not zeroed.
#[derive(Default)]
pub(super) struct Ciphertext {
    bytes: Vec<u8>,
    length: usize,
}

/// What there is to do next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// More of the same.
    Again,
    /// Bytes have come; more may.
    Data,
    /// To wait for records.
    Wait,
    /// The handshake is over, and no record is left.
    Ready,
    /// Both sides have ended the connection.
    Closed,
}

/// What to do when the connection can be written to.
enum Then<'a> {
    Nothing,
    Encrypt(&'a [u8]),
    End,
}

impl From<UnbufferedClientConnection> for Machine {
    fn from(connection: UnbufferedClientConnection) -> Self {
        Self::new(Side::Client(connection))
    }
}

impl From<UnbufferedServerConnection> for Machine {
    fn from(connection: UnbufferedServerConnection) -> Self {
        Self::new(Side::Server(connection))
    }
}

impl Machine {
    fn new(side: Side) -> Self {
        let owed = Ciphertext::default();
        Self { side, owed, peer_has_ended: false, we_have_ended: false, failed: false }
    }

    /// What both sides know of the connection.
    pub(super) fn state(&self) -> &CommonState {
        match &self.side {
            Side::Client(connection) => connection,
            Side::Server(connection) => connection,
        }
    }

    /// Whether the peer has said that it sends no more.
    pub(super) fn peer_has_ended(&self) -> bool {
        self.peer_has_ended
    }

    /// Goes on with the handshake. Answers how many bytes of `incoming` are dealt with, and whether the
    /// handshake is over; else it waits for records, once those that are owed are sent. The peer's first
    /// bytes may come with its last word of the handshake, and go behind `plain`.
    pub(super) fn shake_hands(
        &mut self,
        incoming: &mut [u8],
        plain: &mut Vec<u8>,
    ) -> (usize, Result<bool, Error>) {
        let mut used = 0;
        let mut took = |bytes: &[u8]| plain.extend_from_slice(bytes);
        loop {
            let (more, next) = self.step(&mut incoming[used..], &Then::Nothing, &mut took, None);
            used += more;
            match next {
                Ok(Next::Again) => {}
                Ok(Next::Data | Next::Ready) => return (used, Ok(!self.state().is_handshaking())),
                Ok(Next::Wait) => return (used, Ok(false)),
                Ok(Next::Closed) => return (used, Err(Error::HandshakeNotComplete)),
                Err(error) => return (used, Err(self.fail(&mut incoming[used..], error))),
            }
        }
    }

    /// Decrypts the whole records that `incoming` begins with, and calls `plain` with the bytes of each,
    /// until it answers that this is enough. Answers how many bytes of `incoming` are dealt with.
    pub(super) fn decrypt(
        &mut self,
        incoming: &mut [u8],
        mut plain: impl FnMut(&[u8]) -> bool,
    ) -> (usize, Result<(), Error>) {
        let (mut used, mut enough) = (0, false);
        while !enough && !self.peer_has_ended && has_record(&incoming[used..]) {
            if self.failed {
                return (used, Err(Error::HandshakeNotComplete));
            }
            let whole = whole_records(&incoming[used..]);
            let mut took = |bytes: &[u8]| enough = !plain(bytes);
            let (more, next) = self.step(&mut incoming[used..], &Then::Nothing, &mut took, None);
            used += more;
            match next {
                Ok(Next::Again | Next::Data) => {}
                // rustls has dealt with all whole records, but keeps what begins a message of the handshake
                // and does not end it. No such message is that long after the handshake; and it keeps its
                // place in `incoming`, which who encrypts does not have. To come back for a record that it
                // does not take would be to come back for ever.
                Ok(Next::Ready | Next::Wait | Next::Closed) => {
                    if (more == 0 || more < whole) && !self.peer_has_ended {
                        self.failed = true;
                        let text = "a message of the handshake comes in pieces, or a record is too long";
                        return (used, Err(Error::General(text.into())));
                    }
                    break;
                }
                Err(error) => return (used, Err(self.fail(&mut incoming[used..], error))),
            }
        }
        (used, Ok(()))
    }

    /// Encrypts `plain` behind what is owed.
    pub(super) fn encrypt(&mut self, plain: &[u8], out: &mut Ciphertext) -> Result<(), Error> {
        self.write(&Then::Encrypt(plain), out)
    }

    /// Gives what is owed, and with it the word that no more is sent, where there was a handshake. Nothing
    /// can be encrypted after it.
    pub(super) fn end(&mut self, out: &mut Ciphertext) {
        if self.failed {
            out.take(&mut self.owed);
        } else if !self.we_have_ended {
            // One that cannot be told is cut off.
            let _ = self.write(&Then::End, out);
            self.we_have_ended = true;
        }
    }

    /// The records that are owed.
    pub(super) fn take_owed(&mut self, out: &mut Ciphertext) {
        out.take(&mut self.owed);
    }

    fn write(&mut self, then: &Then<'_>, out: &mut Ciphertext) -> Result<(), Error> {
        if self.failed || self.we_have_ended {
            return Err(Error::HandshakeNotComplete);
        }
        loop {
            out.take(&mut self.owed);
            let (_, next) = self.step(&mut [], then, &mut |_| (), Some(out));
            match next {
                Ok(Next::Again | Next::Data) => {}
                Ok(Next::Ready) => return Ok(()),
                Ok(Next::Wait | Next::Closed) => return Err(Error::HandshakeNotComplete),
                Err(error) => {
                    self.failed = true;
                    return Err(error);
                }
            }
        }
    }

    /// The connection has failed; the peer is owed an alert that says why. rustls gives it to whoever asks
    /// again with the same records.
    fn fail(&mut self, incoming: &mut [u8], error: Error) -> Error {
        self.failed = true;
        // It gives the alert, or the same error.
        let _ = self.step(incoming, &Then::Nothing, &mut |_| (), None);
        error
    }

    /// One step of rustls. What is to be sent goes to `out`; it is owed where there is none.
    fn step(
        &mut self,
        incoming: &mut [u8],
        then: &Then<'_>,
        plain: &mut dyn FnMut(&[u8]),
        out: Option<&mut Ciphertext>,
    ) -> (usize, Result<Next, Error>) {
        let Self { side, owed, peer_has_ended, .. } = self;
        let out = out.unwrap_or(owed);
        match side {
            Side::Client(client) => {
                advance(client.process_tls_records(incoming), then, plain, out, peer_has_ended)
            }
            Side::Server(server) => {
                advance(server.process_tls_records(incoming), then, plain, out, peer_has_ended)
            }
        }
    }
}

fn advance<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    then: &Then<'_>,
    plain: &mut dyn FnMut(&[u8]),
    out: &mut Ciphertext,
    peer_has_ended: &mut bool,
) -> (usize, Result<Next, Error>) {
    let UnbufferedStatus { discard, state } = status;
    let next = state.and_then(|state| {
        Ok(match state {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    plain(record?.payload);
                }
                Next::Data
            }
            ConnectionState::EncodeTlsData(mut data) => {
                out.append(0, |room| {
                    data.encode(room).map_err(|error| match error {
                        EncodeError::InsufficientSize(size) => Refused::TooSmall(size),
                        EncodeError::AlreadyEncoded => Refused::For("encoded twice"),
                    })
                })?;
                Next::Again
            }
            ConnectionState::TransmitTlsData(transmit) => {
                // Who has the machine sends it, in its order.
                transmit.done();
                Next::Again
            }
            ConnectionState::BlockedHandshake => Next::Wait,
            ConnectionState::WriteTraffic(mut traffic) => {
                let refused = |error| match error {
                    EncryptError::InsufficientSize(size) => Refused::TooSmall(size),
                    EncryptError::EncryptExhausted => Refused::For("the keys are used up"),
                };
                match then {
                    Then::Nothing => {}
                    Then::Encrypt(bytes) => {
                        let overhead = bytes.len().div_ceil(RECORD) * RECORD_OVERHEAD;
                        out.append(bytes.len() + overhead, |room| {
                            traffic.encrypt(bytes, room).map_err(refused)
                        })?;
                    }
                    Then::End => out.append(0, |room| traffic.queue_close_notify(room).map_err(refused))?,
                }
                Next::Ready
            }
            ConnectionState::PeerClosed => {
                *peer_has_ended = true;
                Next::Again
            }
            ConnectionState::Closed => Next::Closed,
            // Nobody is asked for early data.
            _ => return Err(Error::General("a state that should not be".into())),
        })
    });
    (discard, next)
}

/// Whether `incoming` begins with a whole record. One that is longer than any may be counts as whole: it is
/// to be refused, and not waited for.
pub(super) fn has_record(incoming: &[u8]) -> bool {
    first_record(incoming).is_some_and(|length| length <= incoming.len() || length > LARGEST)
}

/// The length of the whole records that `incoming` begins with.
fn whole_records(incoming: &[u8]) -> usize {
    let mut whole = 0;
    while let Some(length) =
        first_record(&incoming[whole..]).filter(|length| whole + length <= incoming.len())
    {
        whole += length;
    }
    whole
}

/// The length of the record that `incoming` begins with, with its header, if that is there.
fn first_record(incoming: &[u8]) -> Option<usize> {
    let [_, _, _, high, low, ..] = incoming else { return None };
    Some(RECORD_HEADER + usize::from(u16::from_be_bytes([*high, *low])))
}

/// Why nothing was written to a buffer.
enum Refused {
    TooSmall(InsufficientSizeError),
    For(&'static str),
}

impl Ciphertext {
    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    pub(super) fn clear(&mut self) {
        self.length = 0;
    }

    /// Has `write` fill the room behind what there is, of `guess` bytes, or of as many as it wants.
    fn append(
        &mut self,
        guess: usize,
        mut write: impl FnMut(&mut [u8]) -> Result<usize, Refused>,
    ) -> Result<(), Error> {
        let mut room = guess;
        loop {
            if self.bytes.len() < self.length + room {
                self.bytes.resize(self.length + room, 0);
            }
            match write(&mut self.bytes[self.length..]) {
                Ok(written) => {
                    self.length += written;
                    return Ok(());
                }
                Err(Refused::TooSmall(InsufficientSizeError { required_size })) if required_size > room => {
                    room = required_size;
                }
                Err(Refused::TooSmall(_)) => return Err(Error::General("records that fit nowhere".into())),
                Err(Refused::For(reason)) => return Err(Error::General(reason.into())),
            }
        }
    }

    /// Takes all that another has.
    fn take(&mut self, other: &mut Self) {
        if other.length > 0 {
            self.bytes.truncate(self.length);
            self.bytes.extend_from_slice(other.bytes());
            self.length = self.bytes.len();
            other.clear();
        }
    }
}
