//! One connection: how far an exchange has got in each direction.

use std::io::{IoSlice, IoSliceMut};
use std::net::TcpStream;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, recvmsg, sendmsg,
};

use crate::collective::Signature;
use crate::transport::tcp::plan::Bytes;

/// Bytes of an operation's signature on the wire.
pub(super) const HEADER_BYTES: usize = Signature::WORDS * 8;

/// A connected member.
pub(super) struct Peer {
    pub(super) socket: TcpStream,
    /// What is to be reduced: a ring of its first [`Self::ring`] bytes.
    stage: Vec<u8>,
    /// See [`ring_bytes`](super::ring::ring_bytes).
    ring: usize,
    header: [u8; HEADER_BYTES],
    /// Bytes of this exchange that went out and came in, headers included.
    sent: usize,
    received: usize,
}

/// Why a connection is of no more use.
#[derive(Debug)]
pub(super) enum Broken {
    /// The other side closed it or is gone.
    Left,
    /// The other side has not acknowledged anything for as long as it may.
    Silent,
}

/// What there is to send in an exchange: header, then this, then a result as far as it is ready.
pub(super) struct Outgoing<'a> {
    pub(super) header: &'a [u8; HEADER_BYTES],
    pub(super) direct: Bytes,
    pub(super) result: Bytes,
    pub(super) result_ready: usize,
}

/// What there is to receive in an exchange: header, then `staged` bytes into the ring, then the rest.
pub(super) struct Incoming {
    pub(super) staged: usize,
    pub(super) direct: Bytes,
}

impl Peer {
    /// `socket` must not block.
    pub(super) fn new(socket: TcpStream) -> Self {
        Self {
            socket,
            stage: Vec::new(),
            ring: 1,
            header: [0; HEADER_BYTES],
            sent: 0,
            received: 0,
        }
    }

    /// A new exchange, with so many bytes of the ring where it reduces anything.
    pub(super) fn begin(&mut self, ring: Option<usize>) {
        (self.sent, self.received) = (0, 0);
        if let Some(ring) = ring {
            self.ring = ring;
            if self.stage.len() < ring {
                self.stage = vec![0; ring];
            }
        }
    }

    /// The member's signature, once it is here.
    pub(super) fn signature(&self) -> Option<[u64; Signature::WORDS]> {
        let word = |index: usize| {
            let bytes: [u8; 8] = std::array::from_fn(|byte| self.header[index * 8 + byte]);
            u64::from_le_bytes(bytes)
        };
        (self.received >= HEADER_BYTES).then(|| std::array::from_fn(word))
    }

    /// Bytes of the staged contribution that have arrived so far in this exchange.
    pub(super) fn staged(&self, incoming: &Incoming) -> usize {
        self.received
            .saturating_sub(HEADER_BYTES)
            .min(incoming.staged)
    }

    /// Where the byte `position` of the staged contribution is.
    pub(super) fn stage_at(&self, position: usize) -> *const u8 {
        self.stage[position % self.ring..].as_ptr()
    }

    pub(super) fn has_sent(&self, outgoing: &Outgoing<'_>) -> bool {
        self.sent == HEADER_BYTES + outgoing.direct.len + outgoing.result.len
    }

    /// Whether something is there that has not been sent.
    pub(super) fn can_send(&self, outgoing: &Outgoing<'_>) -> bool {
        self.sent < HEADER_BYTES + outgoing.direct.len + outgoing.result_ready
    }

    pub(super) fn has_received(&self, incoming: &Incoming) -> bool {
        self.received == HEADER_BYTES + incoming.staged + incoming.direct.len
    }

    /// Whether there is something to receive and room for it. `reduced` bytes of the stage are free again.
    pub(super) fn can_receive(&self, incoming: &Incoming, reduced: usize) -> bool {
        let in_stage = self.staged(incoming);
        !self.has_received(incoming)
            && (in_stage == incoming.staged || in_stage < reduced + self.ring)
    }

    /// Sends what the socket takes. True when something went out.
    pub(super) fn send(&mut self, outgoing: &Outgoing<'_>) -> Result<bool, Broken> {
        let before = self.sent;
        while self.can_send(outgoing) {
            let header = &outgoing.header[self.sent.min(HEADER_BYTES)..];
            let in_direct = self
                .sent
                .saturating_sub(HEADER_BYTES)
                .min(outgoing.direct.len);
            let in_result = self.sent.saturating_sub(HEADER_BYTES + outgoing.direct.len);
            // SAFETY: within the memory that the plan names, which stays valid for the exchange. Nobody writes to it: a
            // part is overwritten by its result only after it has been sent, and a result is final once it is ready.
            let (direct, result) = unsafe {
                (
                    slice(outgoing.direct.start, in_direct, outgoing.direct.len),
                    slice(outgoing.result.start, in_result, outgoing.result_ready),
                )
            };
            let slices = [
                IoSlice::new(header),
                IoSlice::new(direct),
                IoSlice::new(result),
            ];
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(
                &self.socket,
                &slices,
                &mut SendAncillaryBuffer::default(),
                flags,
            ) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(broken(error)),
            }
        }
        Ok(self.sent > before)
    }

    /// Receives what is there, as far as there is room. True when something came in.
    pub(super) fn receive(&mut self, incoming: &Incoming, reduced: usize) -> Result<bool, Broken> {
        let before = self.received;
        while self.can_receive(incoming, reduced) {
            let in_stage = self.staged(incoming);
            let in_direct = self.received.saturating_sub(HEADER_BYTES + incoming.staged);
            let room = (reduced + self.ring).min(incoming.staged) - in_stage;
            let ring_start = in_stage % self.ring;
            let stage_len = room.min(self.ring - ring_start);
            // The rest of the exchange follows the stage only once the whole contribution fits.
            let is_last = in_stage + stage_len == incoming.staged;
            let direct_len = if is_last {
                incoming.direct.len
            } else {
                in_direct
            };
            // SAFETY: within the memory that the plan names, which is this operation's to write.
            let direct = unsafe { slice_mut(incoming.direct.start, in_direct, direct_len) };
            let stage: &mut [u8] = match stage_len {
                0 => &mut [],
                len => &mut self.stage[ring_start..ring_start + len],
            };
            let header = &mut self.header[self.received.min(HEADER_BYTES)..];
            let mut slices = [
                IoSliceMut::new(header),
                IoSliceMut::new(stage),
                IoSliceMut::new(direct),
            ];
            match recvmsg(
                &self.socket,
                &mut slices,
                &mut RecvAncillaryBuffer::default(),
                RecvFlags::DONTWAIT,
            ) {
                Ok(message) if message.bytes == 0 => return Err(Broken::Left),
                Ok(message) => self.received += message.bytes,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(broken(error)),
            }
        }
        Ok(self.received > before)
    }
}

fn broken(error: Errno) -> Broken {
    match error {
        // The socket's user timeout, which is the group's, by this name or by that of the last attempt to reach the host.
        Errno::TIMEDOUT | Errno::HOSTUNREACH | Errno::NETUNREACH => Broken::Silent,
        error => {
            tracing::debug!(%error, "a connection broke");
            Broken::Left
        }
    }
}

/// The bytes `from..to` of the memory at `start`.
///
/// # Safety
/// They are readable, and nobody writes to them as long as the result lives.
unsafe fn slice<'a>(start: *const u8, from: usize, to: usize) -> &'a [u8] {
    if from >= to {
        return &[];
    }
    // SAFETY: passed on from the caller.
    unsafe { std::slice::from_raw_parts(start.add(from), to - from) }
}

/// The bytes `from..to` of the memory at `start`.
///
/// # Safety
/// They are writable, and nobody else touches them as long as the result lives.
unsafe fn slice_mut<'a>(start: *mut u8, from: usize, to: usize) -> &'a mut [u8] {
    if from >= to {
        return &mut [];
    }
    // SAFETY: passed on from the caller.
    unsafe { std::slice::from_raw_parts_mut(start.add(from), to - from) }
}
