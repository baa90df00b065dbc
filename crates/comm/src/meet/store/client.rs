//! A rank's side of the store.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use socket2::{SockRef, TcpKeepalive};

use crate::collective::Site;
use crate::error::{CommError, Result};
use crate::meet::config::WorldConfig;
use crate::meet::handshake::{self, Unanswered, until};
use crate::meet::health::{Fate, Health};
use crate::meet::store::parts::unpack;
use crate::meet::store::wire::{Message, PURPOSE};

/// How long to wait between looks at the health of the others.
const LOOK_AROUND: Duration = Duration::from_millis(50);

/// How long rank 0 may take to say who is missing.
const PARTIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a server may take to answer the first message.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);

/// The connection of one rank. Dropping it without a word counts as a failure of this rank.
pub(crate) struct Client {
    shared: Arc<Shared>,
    stream: Mutex<TcpStream>,
    reader: Mutex<Option<JoinHandle<()>>>,
    next_id: AtomicU64,
    timeout: Duration,
}

/// What was asked for and may be answered.
#[cfg(feature = "nccl")]
pub(crate) struct Question(u64);

struct Shared {
    health: Arc<Health>,
    inbox: Mutex<Inbox>,
    arrived: Condvar,
    /// Set when this rank itself ends the connection.
    closing: AtomicBool,
}

#[derive(Default)]
struct Inbox {
    values: HashMap<u64, Vec<u8>>,
    gathered: HashMap<u64, Gathered>,
    disconnected: bool,
}

/// The parts of a gathering that have arrived.
struct Gathered {
    members: usize,
    /// In order, from the first on. `None` is one that rank 0 does not have.
    parts: Vec<Option<Vec<u8>>>,
}

impl Gathered {
    fn is_complete(&self) -> bool {
        self.parts.len() == self.members
    }

    /// Takes the next parts; those that nobody asked for are left.
    fn take(&mut self, first: u64, packed: &[u8]) {
        if first != self.parts.len() as u64 {
            tracing::debug!(first, "parts out of order");
            return;
        }
        let room = self.members - self.parts.len();
        let parts = unpack(packed).take(room);
        self.parts
            .extend(parts.map(|part| part.map(<[u8]>::to_vec)));
    }
}

/// Why a connection did not become one.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Nobody of ours there, perhaps not yet.
    NotThere(io::Error),
    /// Somebody there who does not know this run's secret: another run, say, or ranks that were given different ones.
    OtherSecret,
    /// The server does not want this rank.
    Refused(String),
}

impl Client {
    /// Proves to the server at `address` that this is a rank of the run, lets it prove the same, and says hello.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn connect(
        address: SocketAddr,
        config: &WorldConfig,
        health: Arc<Health>,
    ) -> Result<Self, Refusal> {
        let stream = hello(address, config)?;
        let shared = Arc::new(Shared {
            health,
            inbox: Mutex::default(),
            arrived: Condvar::new(),
            closing: AtomicBool::new(false),
        });
        let mut reading = stream.try_clone().map_err(Refusal::NotThere)?;
        let receiver = shared.clone();
        let reader = std::thread::Builder::new()
            .name("store-client".into())
            .spawn(move || receiver.read_from(&mut reading))
            .map_err(Refusal::NotThere)?;
        Ok(Self {
            shared,
            stream: Mutex::new(stream),
            reader: Mutex::new(Some(reader)),
            next_id: AtomicU64::new(0),
            timeout: config.timeout,
        })
    }

    /// This rank's address on the way to rank 0.
    pub(crate) fn local_address(&self) -> io::Result<SocketAddr> {
        self.stream.lock().local_addr()
    }

    /// Publishes a value.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(crate) fn set(&self, key: &str, value: &[u8], site: &Site) -> Result<()> {
        self.send(&Message::Set { key, value }, site)
    }

    /// The value of `key`, which `owner` publishes or has published.
    ///
    /// # Errors
    /// When `owner` leaves, anybody fails, or the timeout passes.
    pub(crate) fn get(&self, key: &str, owner: usize, site: &Site) -> Result<Vec<u8>> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.send(&Message::Get { id, key }, site)?;
        self.answer(id, owner, site)
    }

    /// Gives this rank's `part`, that of number `place` of `ranks`, and waits for those of all, in that order. All of it is one
    /// request and its answer. The inner error is the ranks that have not given theirs within the timeout.
    ///
    /// # Errors
    /// When one of them leaves, or anybody fails.
    pub(crate) fn gather(
        &self,
        key: &str,
        (place, ranks): (usize, &[usize]),
        part: &[u8],
        site: &Site,
    ) -> Result<Result<Vec<Vec<u8>>, Vec<usize>>> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let members = ranks.len();
        let empty = Gathered {
            members,
            parts: Vec::new(),
        };
        self.shared.inbox.lock().gathered.insert(id, empty);
        let (place, members) = (place as u64, members as u64);
        let request = Message::Gather {
            id,
            key,
            place,
            members,
            part,
        };
        self.send(&request, site)?;
        let mut parts = self.parts(id, ranks, self.timeout, site)?;
        if parts.is_none() {
            self.send(&Message::GiveUp { id, key }, site)?;
            parts = self.parts(id, ranks, PARTIAL_TIMEOUT, site)?;
        }
        let Some(parts) = parts else {
            // Who does not even say that is the one who is missing.
            return Ok(Err(vec![0]));
        };
        let is_there = parts.iter().map(Option::is_some);
        let missing = ranks.iter().zip(is_there).filter(|(_, is_there)| !is_there);
        let missing: Vec<usize> = missing.map(|(rank, _)| *rank).collect();
        Ok(match missing.is_empty() {
            true => Ok(parts.into_iter().flatten().collect()),
            false => Err(missing),
        })
    }

    /// Asks for the value of `key`, which may never be published, and does not wait for the answer.
    ///
    /// # Errors
    /// When the connection is broken.
    #[cfg(feature = "nccl")]
    pub(crate) fn ask(&self, key: &str, site: &Site) -> Result<Question> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.send(&Message::Get { id, key }, site)?;
        Ok(Question(id))
    }

    /// The answer, once it is here; it is given once.
    #[cfg(feature = "nccl")]
    pub(crate) fn answer_to(&self, question: &Question) -> Option<Vec<u8>> {
        self.shared.inbox.lock().values.remove(&question.0)
    }

    /// The error for ranks that did not answer in time.
    pub(crate) fn timed_out(&self, ranks: Vec<usize>, site: &Site) -> CommError {
        CommError::Timeout {
            ranks,
            timeout: self.timeout,
            site: site.clone(),
        }
    }

    /// Tells everyone how this rank ends.
    pub(crate) fn end(&self, fate: Fate) {
        // The rank is in the connection; the server ignores the field. Nobody is left to tell if this fails.
        let _sent = Message::ended(0, &fate).write(&mut *self.stream.lock());
    }

    /// What has been gathered, once it is here.
    fn parts(
        &self,
        id: u64,
        ranks: &[usize],
        timeout: Duration,
        site: &Site,
    ) -> Result<Option<Vec<Option<Vec<u8>>>>> {
        let parts = self.wait_until(ranks, timeout, site, |inbox| {
            let gathered = inbox.gathered.get(&id);
            if !gathered.is_some_and(Gathered::is_complete) {
                return None;
            }
            inbox.gathered.remove(&id)
        })?;
        Ok(parts.map(|gathered| gathered.parts))
    }

    fn answer(&self, id: u64, owner: usize, site: &Site) -> Result<Vec<u8>> {
        let found = |inbox: &mut Inbox| inbox.values.remove(&id);
        self.wait_until(&[owner], self.timeout, site, found)?
            .ok_or_else(|| self.timed_out(vec![owner], site))
    }

    /// `None` after the timeout.
    fn wait_until<T>(
        &self,
        awaited: &[usize],
        timeout: Duration,
        site: &Site,
        mut found: impl FnMut(&mut Inbox) -> Option<T>,
    ) -> Result<Option<T>> {
        let deadline = Instant::now() + timeout;
        let mut inbox = self.shared.inbox.lock();
        loop {
            if let Some(value) = found(&mut inbox) {
                return Ok(Some(value));
            }
            self.shared.health.check(awaited, &|| site.clone())?;
            if inbox.disconnected {
                drop(inbox);
                return Err(self.shared.health.explain(0, site.clone()));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            self.shared.arrived.wait_for(&mut inbox, LOOK_AROUND);
        }
    }

    fn send(&self, message: &Message<'_>, site: &Site) -> Result<()> {
        message
            .write(&mut *self.stream.lock())
            .map(drop)
            .map_err(|_| self.shared.health.explain(0, site.clone()))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        // Already closed is closed.
        let _closed = self.stream.lock().shutdown(Shutdown::Both);
        if let Some(reader) = self.reader.lock().take() {
            let _ended = reader.join();
        }
    }
}

impl Shared {
    fn read_from(&self, stream: &mut TcpStream) {
        let mut buffer = Vec::new();
        loop {
            let message = Message::read(stream, &mut buffer);
            let mut inbox = self.inbox.lock();
            match message {
                Ok(Message::Value { id, value }) => {
                    inbox.values.insert(id, value.to_vec());
                }
                Ok(Message::Parts { id, first, packed }) => match inbox.gathered.get_mut(&id) {
                    Some(gathered) => gathered.take(first, packed),
                    None => tracing::debug!(id, "parts that nobody waits for"),
                },
                Ok(Message::Ended { rank, fate }) => self.health.report(rank as usize, fate),
                Ok(other) => tracing::debug!(?other, "an unexpected message"),
                Err(error) => {
                    tracing::debug!(%error, "the store's connection ended");
                    if !self.closing.load(Ordering::Relaxed) {
                        // If it said goodbye before, that word stands.
                        self.health.report(0, fate_of_rank_0(&error));
                    }
                    inbox.disconnected = true;
                    drop(inbox);
                    self.arrived.notify_all();
                    return;
                }
            }
            drop(inbox);
            self.arrived.notify_all();
        }
    }
}

/// What the end of rank 0's connection says about it.
fn fate_of_rank_0(error: &io::Error) -> Fate {
    match error.kind() {
        // The connection's own timeout, by this name or by that of the last attempt to reach the host.
        ErrorKind::TimedOut | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
            Fate::Silent
        }
        _ => Fate::Lost,
    }
}

fn hello(address: SocketAddr, config: &WorldConfig) -> Result<TcpStream, Refusal> {
    let deadline = Instant::now() + WELCOME_TIMEOUT;
    let stream =
        TcpStream::connect_timeout(&address, WELCOME_TIMEOUT).map_err(Refusal::NotThere)?;
    let (world_size, rank) = (config.world_size as u64, config.rank as u64);
    let prepared = stream.set_nodelay(true).map_err(Unanswered::NotOurs);
    match prepared
        .and_then(|()| handshake::call(&stream, &config.secret, PURPOSE, rank, &until(deadline)))
    {
        Ok(()) => {}
        Err(Unanswered::OtherSecret) => return Err(Refusal::OtherSecret),
        Err(Unanswered::NotOurs(error)) => return Err(Refusal::NotThere(error)),
    }
    let mut buffer = Vec::new();
    let mut ask = || -> io::Result<Result<(), Refusal>> {
        let socket = SockRef::from(&stream);
        // A host that vanishes without a word is noticed when the timeout for everything else is over, not in hours.
        let idle = (config.timeout / 4).clamp(Duration::from_secs(1), Duration::from_secs(60));
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle).with_interval(idle))?;
        socket.set_tcp_user_timeout(Some(config.timeout))?;
        stream.set_read_timeout(Some(WELCOME_TIMEOUT))?;
        Message::Hello { world_size, rank }.write(&mut &stream)?;
        let answer = match Message::read(&mut &stream, &mut buffer)? {
            Message::Welcome => Ok(()),
            Message::Refused { reason } => Err(Refusal::Refused(reason.to_owned())),
            _ => Err(Refusal::NotThere(io::Error::other("no welcome"))),
        };
        stream.set_read_timeout(None)?;
        Ok(answer)
    };
    ask().map_err(Refusal::NotThere)??;
    Ok(stream)
}
