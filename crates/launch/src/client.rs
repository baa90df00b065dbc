//! The worker's end of the control socket.
//!
//! Sending never blocks the training loop and never fails the run: events wait in a queue for a
//! writer thread, and are dropped once the controller is gone. A worker must still not outlive its controller:
//! [`parent::die_with_parent`](crate::parent::die_with_parent) sees to that.

mod outbox;

use crate::env::{CONTROL, Lookup};
use crate::protocol::{Command, MAX_LINE_BYTES, Parsed, VERSION, WorkerEvent, parse_command};
use crate::stop_signals::StopFlag;
use outbox::Outbox;
use std::io::{self, BufRead, BufReader, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long [`ControlClient::close`] and dropping wait for a slow controller to take the last events.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the control socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens there.
    #[error(
        "cannot connect to the control socket {} (from {CONTROL}): {source}; \
         the controller that started this worker is gone, or the variable is left over from another run",
        path.display()
    )]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The threads that read and write the socket could not be started.
    #[error("cannot start a thread for the control socket: {0}")]
    Thread(#[source] io::Error),
}

/// A connection to the controller, or to nobody when the worker was started without one. Dropping it delivers what
/// was sent, waiting at most 2 s; `std::process::exit` drops nothing, so call [`close`](Self::close) before it.
#[derive(Debug)]
pub struct ControlClient {
    link: Option<Link>,
    requests: Requests,
}

/// Sends as [`ControlClient::send`] does.
#[derive(Debug, Clone)]
pub struct EventSender(Arc<Outbox>);

impl EventSender {
    /// Queues `event` for the controller.
    pub fn send(&self, event: &WorkerEvent) {
        self.0.push(event);
    }
}

#[derive(Debug)]
struct Link {
    outbox: Arc<Outbox>,
    socket: UnixStream,
    writer: Option<JoinHandle<()>>,
}

/// What the controller asked for.
#[derive(Debug, Clone, Default)]
struct Requests {
    stop: StopFlag,
    save_now: Arc<AtomicBool>,
}

impl ControlClient {
    /// Connects to the socket named in `TANDEM_CONTROL` and says hello as `rank`. Without the variable the client
    /// is [`disconnected`](Self::disconnected).
    ///
    /// # Errors
    /// [`ConnectError`] when the variable is set but nobody listens there.
    pub fn from_env(lookup: &Lookup<'_>, rank: usize) -> Result<Self, ConnectError> {
        match lookup(CONTROL) {
            Some(path) => Self::connect(PathBuf::from(path), rank),
            None => Ok(Self::disconnected()),
        }
    }

    /// A client without a controller: events go nowhere, and no command ever comes.
    #[must_use]
    pub fn disconnected() -> Self {
        Self {
            link: None,
            requests: Requests::default(),
        }
    }

    /// Whether there is a controller that still takes events.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.link
            .as_ref()
            .is_some_and(|link| !link.outbox.is_gone())
    }

    /// Queues `event` for the controller. When the controller does not keep up, progress events and messages are
    /// dropped (it learns how many); all others are kept. After the controller is gone everything is dropped.
    pub fn send(&self, event: &WorkerEvent) {
        if let Some(link) = &self.link {
            link.outbox.push(event);
        }
    }

    /// Something that sends from any thread, for as long as there is a connection; none without a controller.
    #[must_use]
    pub fn sender(&self) -> Option<EventSender> {
        let link = self.link.as_ref()?;
        Some(EventSender(Arc::clone(&link.outbox)))
    }

    /// Whether the controller asked to finish the step, save and exit.
    #[must_use]
    pub fn stop_requested(&self) -> bool {
        self.requests.stop.is_set()
    }

    /// The flag behind [`stop_requested`](Self::stop_requested), to be set by signals too where no controller
    /// translates them ([`StopFlag::set_by_signals`]).
    #[must_use]
    pub fn stop_flag(&self) -> StopFlag {
        self.requests.stop.clone()
    }

    /// Whether the controller asked for a checkpoint since the last call.
    #[must_use]
    pub fn take_save_now(&self) -> bool {
        self.requests.save_now.swap(false, Ordering::Relaxed)
    }

    /// Delivers what was sent, waiting at most 2 s. Events sent afterwards are dropped.
    pub fn close(&self) {
        if let Some(link) = &self.link {
            link.outbox.close(CLOSE_TIMEOUT);
        }
    }

    fn connect(path: PathBuf, rank: usize) -> Result<Self, ConnectError> {
        let connect = || -> io::Result<_> {
            let socket = UnixStream::connect(&path)?;
            Ok((socket.try_clone()?, socket.try_clone()?, socket))
        };
        let (reading, writing, socket) =
            connect().map_err(|source| ConnectError::Connect { path, source })?;
        let outbox = Arc::new(Outbox::default());
        let requests = Requests::default();
        let start = |name: &str, body: Box<dyn FnOnce() + Send>| {
            let builder = std::thread::Builder::new().name(name.to_owned());
            builder.spawn(body).map_err(ConnectError::Thread)
        };
        let (outbox_of_reader, requests_of_reader) = (Arc::clone(&outbox), requests.clone());
        start(
            "control-reader",
            Box::new(move || {
                read_commands(reading, &requests_of_reader);
                outbox_of_reader.set_gone();
            }),
        )?;
        let outbox_of_writer = Arc::clone(&outbox);
        let writer = start(
            "control-writer",
            Box::new(move || outbox_of_writer.write_to(writing)),
        )?;
        outbox.push(&WorkerEvent::Hello {
            rank,
            pid: std::process::id(),
            version: VERSION,
        });
        Ok(Self {
            link: Some(Link {
                outbox,
                socket,
                writer: Some(writer),
            }),
            requests,
        })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.outbox.close(CLOSE_TIMEOUT);
        // Ends the reader, and a writer that is stuck on a controller which does not read.
        let _ = self.socket.shutdown(Shutdown::Both);
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn read_commands(socket: UnixStream, requests: &Requests) {
    let mut reader = BufReader::new(socket);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut bounded = (&mut reader).take(MAX_LINE_BYTES as u64);
        match bounded.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        match parse_command(&line) {
            Ok(Parsed::Known {
                message,
                unknown_fields,
            }) => {
                if !unknown_fields.is_empty() {
                    tracing::warn!(
                        ?message,
                        ?unknown_fields,
                        "ignored unknown fields of a command"
                    );
                }
                match message {
                    Command::Stop => requests.stop.set(),
                    Command::SaveNow => requests.save_now.store(true, Ordering::Relaxed),
                }
            }
            Ok(Parsed::Unknown { name }) => tracing::warn!(name, "ignored an unknown command"),
            Err(error) => tracing::warn!(%error, "ignored a line on the control socket"),
        }
    }
}

#[cfg(test)]
mod tests;
