//! Events on their way to the controller: a queue that the training loop never waits for.

use crate::protocol::{Level, WorkerEvent, encode};
use parking_lot::{Condvar, Mutex};
use std::io::Write;
use std::time::{Duration, Instant};

/// Events that may wait. A controller reads within milliseconds, so only a stopped one ever lets them pile up.
const CAPACITY: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<Vec<u8>>,
    /// Events left out because the queue was full, since the controller was last told.
    dropped: u64,
    /// The writer holds lines that are not in the socket yet.
    writing: bool,
    closed: bool,
    gone: bool,
}

impl Outbox {
    pub(super) fn push(&self, event: &WorkerEvent) {
        let mut state = self.state.lock();
        if state.gone || state.closed {
            return;
        }
        let may_be_dropped = matches!(
            event,
            WorkerEvent::Progress { .. } | WorkerEvent::Message { .. }
        );
        if may_be_dropped && state.lines.len() >= CAPACITY {
            state.dropped += 1;
            return;
        }
        state.lines.push(encode(event));
        self.changed.notify_all();
    }

    /// The writer thread's life: ends when the outbox is closed and empty, or when the controller is gone.
    pub(super) fn write_to(&self, mut socket: impl Write) {
        while let Some(bytes) = self.next_bytes() {
            if let Err(error) = socket.write_all(&bytes) {
                tracing::warn!(%error, "the controller is gone; its events are dropped from now on");
                self.set_gone();
                return;
            }
            self.state.lock().writing = false;
            self.changed.notify_all();
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        self.state.lock().gone
    }

    pub(super) fn set_gone(&self) {
        let mut state = self.state.lock();
        state.gone = true;
        state.lines.clear();
        state.writing = false;
        self.changed.notify_all();
    }

    /// Takes no more events and waits until all are in the socket, or `timeout` is over.
    pub(super) fn close(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut state = self.state.lock();
        state.closed = true;
        self.changed.notify_all();
        while state.writing || !state.lines.is_empty() {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }

    fn next_bytes(&self) -> Option<Vec<u8>> {
        let mut state = self.state.lock();
        while state.lines.is_empty() {
            if state.closed || state.gone {
                return None;
            }
            self.changed.wait(&mut state);
        }
        let mut bytes = state.lines.concat();
        state.lines.clear();
        if state.dropped > 0 {
            let text = format!(
                "{} events were dropped while the controller did not read",
                state.dropped
            );
            bytes.extend(encode(&WorkerEvent::Message {
                level: Level::Warning,
                text,
            }));
            state.dropped = 0;
        }
        state.writing = true;
        Some(bytes)
    }
}
