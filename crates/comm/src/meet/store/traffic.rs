//! How much is said over the store.

use std::io;

/// Messages so far, of all ranks together, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Messages of ranks to the store.
    pub received: u64,
    /// The store's to ranks.
    pub sent: u64,
    /// Bytes of the former.
    pub received_bytes: u64,
    /// Bytes of the latter.
    pub sent_bytes: u64,
}

impl Traffic {
    /// A message of so many bytes that was sent. A broken connection is read from next, which then tells everyone.
    pub(super) fn note(&mut self, sent: &io::Result<usize>) {
        if let Ok(bytes) = sent {
            self.sent += 1;
            self.sent_bytes += *bytes as u64;
        }
    }

    /// A message of so many bytes that has arrived.
    pub(super) fn hear(&mut self, bytes: usize) {
        self.received += 1;
        self.received_bytes += bytes as u64;
    }

    /// For the log, when all is said.
    pub(super) fn tell(&self) {
        let Self {
            received,
            sent,
            received_bytes,
            sent_bytes,
        } = *self;
        tracing::debug!(
            received_bytes,
            sent_bytes,
            received,
            sent,
            "messages of the store that closes"
        );
    }
}
