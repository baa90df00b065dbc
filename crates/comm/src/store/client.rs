//! A rank's side of the store.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};

use crate::collective::Site;
use crate::error::{CommError, Result};
use crate::health::{Fate, Health};
use crate::store::wire::Message;

/// How long to wait between looks at the health of the others.
const LOOK_AROUND: Duration = Duration::from_millis(50);

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
    joined: BTreeSet<usize>,
    disconnected: bool,
}

/// Why a connection did not become one.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Nobody of ours there, perhaps not yet.
    NotThere(io::Error),
    /// The server does not want this rank.
    Refused(String),
}

impl Client {
    /// Says hello to the server at `address`, as `rank`.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn connect(
        address: SocketAddr,
        rank: usize,
        world_size: usize,
        timeout: Duration,
        health: Arc<Health>,
    ) -> Result<Self, Refusal> {
        let stream = hello(address, rank, world_size, timeout)?;
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
            timeout,
        })
    }

    /// This rank's address on the way to rank 0.
    pub(crate) fn local_address(&self) -> io::Result<SocketAddr> {
        lock(&self.stream).local_addr()
    }

    /// Waits until all ranks are connected. The error is the ranks that are missing after the timeout, or whatever
    /// ended one of them meanwhile.
    pub(crate) fn wait_for_all(
        &self,
        world_size: usize,
        site: &Site,
    ) -> Result<Result<(), Vec<usize>>> {
        let everyone: Vec<usize> = (0..world_size).collect();
        let complete = self.wait_until(&everyone, site, |inbox| {
            (inbox.joined.len() == world_size).then_some(())
        })?;
        if complete.is_some() {
            return Ok(Ok(()));
        }
        let inbox = lock(&self.shared.inbox);
        let missing = everyone
            .into_iter()
            .filter(|rank| !inbox.joined.contains(rank));
        Ok(Err(missing.collect()))
    }

    /// Publishes a value.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(crate) fn set(&self, key: &str, value: &[u8], site: &Site) -> Result<()> {
        self.send(
            &Message::Set {
                key: key.to_owned(),
                value: value.to_vec(),
            },
            site,
        )
    }

    /// The value of `key`, which `owner` publishes or has published.
    ///
    /// # Errors
    /// When `owner` leaves, anybody fails, or the timeout passes.
    pub(crate) fn get(&self, key: &str, owner: usize, site: &Site) -> Result<Vec<u8>> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.send(
            &Message::Get {
                id,
                key: key.to_owned(),
            },
            site,
        )?;
        self.answer(id, owner, site)
    }

    /// Tells everyone how this rank ends.
    pub(crate) fn end(&self, fate: Fate) {
        // The rank is in the connection; the server ignores the field. Nobody is left to tell if this fails.
        let _sent = Message::Ended { rank: 0, fate }.write(&mut *lock(&self.stream));
    }

    fn answer(&self, id: u64, owner: usize, site: &Site) -> Result<Vec<u8>> {
        self.wait_until(&[owner], site, |inbox| inbox.values.remove(&id))?
            .ok_or_else(|| CommError::Timeout {
                ranks: vec![owner],
                timeout: self.timeout,
                site: site.clone(),
            })
    }

    /// `None` after the timeout.
    fn wait_until<T>(
        &self,
        awaited: &[usize],
        site: &Site,
        mut found: impl FnMut(&mut Inbox) -> Option<T>,
    ) -> Result<Option<T>> {
        let deadline = Instant::now() + self.timeout;
        let mut inbox = lock(&self.shared.inbox);
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
            inbox = self
                .shared
                .arrived
                .wait_timeout(inbox, LOOK_AROUND)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn send(&self, message: &Message, site: &Site) -> Result<()> {
        message
            .write(&mut *lock(&self.stream))
            .map_err(|_| self.shared.health.explain(0, site.clone()))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        // Already closed is closed.
        let _closed = lock(&self.stream).shutdown(Shutdown::Both);
        if let Some(reader) = lock(&self.reader).take() {
            let _ended = reader.join();
        }
    }
}

impl Shared {
    fn read_from(&self, stream: &mut TcpStream) {
        loop {
            let message = Message::read(stream);
            let mut inbox = lock(&self.inbox);
            match message {
                Ok(Message::Value { id, value }) => {
                    inbox.values.insert(id, value);
                }
                Ok(Message::Joined { rank }) => {
                    inbox.joined.insert(rank as usize);
                }
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

fn hello(
    address: SocketAddr,
    rank: usize,
    world_size: usize,
    timeout: Duration,
) -> Result<TcpStream, Refusal> {
    let ask = || -> io::Result<(TcpStream, Message)> {
        let mut stream = TcpStream::connect_timeout(&address, WELCOME_TIMEOUT)?;
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        // A host that vanishes without a word is noticed when the timeout for everything else is over, not in hours.
        let idle = (timeout / 4).clamp(Duration::from_secs(1), Duration::from_secs(60));
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle).with_interval(idle))?;
        socket.set_tcp_user_timeout(Some(timeout))?;
        stream.set_read_timeout(Some(WELCOME_TIMEOUT))?;
        let (world_size, rank) = (world_size as u64, rank as u64);
        Message::Hello { world_size, rank }.write(&mut stream)?;
        let answer = Message::read(&mut stream)?;
        stream.set_read_timeout(None)?;
        Ok((stream, answer))
    };
    match ask() {
        Ok((stream, Message::Welcome)) => Ok(stream),
        Ok((_, Message::Refused { reason })) => Err(Refusal::Refused(reason)),
        Ok(_) => Err(Refusal::NotThere(io::Error::other("no welcome"))),
        Err(error) => Err(Refusal::NotThere(error)),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
