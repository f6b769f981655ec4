//! Which pages to send last, since they are written most often.
