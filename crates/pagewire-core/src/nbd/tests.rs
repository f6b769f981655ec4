//! Every message survives the wire, no bytes from a stranger do harm, and the rules are the specification's.

mod codec;
mod handshake;
mod rules;
