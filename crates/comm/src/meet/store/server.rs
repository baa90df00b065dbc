//! Rank 0's side of the store.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::net::{RecvFlags, recv};

use crate::meet::door::{Admitted, Door};
use crate::meet::handshake::is_temporary;
use crate::meet::health::Fate;
use crate::meet::secret::RunSecret;
use crate::meet::store::gathering::Gathering;
use crate::meet::store::quota::Quota;
use crate::meet::store::traffic::Traffic;
use crate::meet::store::wire::{Message, PURPOSE, first_message};

/// A connection that has proved itself says who it is within this time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// A rank that does not read (stopped, say) must not keep the others' messages.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections that know the secret and are no rank yet: those of ranks that are told why they are not wanted.
const UNWELCOME: usize = 32;

/// The running server. Dropping it says goodbye in rank 0's name and closes all connections.
pub(crate) struct Server {
    shared: Arc<Shared>,
    listener: TcpListener,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    world_size: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    values: HashMap<String, Vec<u8>>,
    /// Who waits for a key: rank and request.
    waiting: HashMap<String, Vec<(usize, u64)>>,
    /// Those that are not complete, by key.
    gatherings: HashMap<String, Gathering>,
    connections: BTreeMap<usize, Connection>,
    ended: Vec<(usize, Fate)>,
    traffic: Traffic,
    closing: bool,
}

struct Connection {
    stream: Arc<TcpStream>,
    quota: Quota,
}

impl Server {
    /// Serves the `world_size` ranks that know `secret`, on `listener`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn start(
        listener: TcpListener,
        world_size: usize,
        secret: RunSecret,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            world_size,
            state: Mutex::default(),
        });
        let door = Door::new(
            listener.try_clone()?,
            secret,
            PURPOSE.to_owned(),
            world_size,
        )?;
        let opening = shared.clone();
        let acceptor = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || opening.run(door))?;
        Ok(Self {
            shared,
            listener,
            acceptor: Some(acceptor),
        })
    }

    /// Tells everyone how rank 0 ends, without the detour over its own connection.
    pub(crate) fn end(&self, fate: Fate) {
        self.shared.state.lock().end(0, fate);
    }

    /// The address under which other hosts reach this one, if there are others: the near end of their connections.
    ///
    /// # Errors
    /// When the system does not tell.
    pub(crate) fn address_seen_by_others(&self) -> io::Result<IpAddr> {
        let state = self.shared.state.lock();
        let mut own = IpAddr::V4(Ipv4Addr::LOCALHOST);
        for connection in state.connections.values() {
            own = connection.stream.local_addr()?.ip().to_canonical();
            if !own.is_loopback() {
                break;
            }
        }
        Ok(own)
    }

    /// What was said so far.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn traffic(&self) -> Traffic {
        self.shared.state.lock().traffic
    }

    /// Where the server listens.
    ///
    /// # Errors
    /// When the system does not tell.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.closing = true;
        state.end(0, Fate::Finished);
        for connection in state.connections.values() {
            // Already closed is closed.
            let _closed = connection.stream.shutdown(Shutdown::Both);
        }
        state.traffic.tell();
        drop(state);
        // Wakes the thread at the door.
        let _shut = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ended = acceptor.join();
        }
    }
}

/// A connection that is read from.
struct Peer {
    stream: Arc<TcpStream>,
    who: Who,
    /// What has arrived and is no whole message yet: never more than one message.
    arrived: Vec<u8>,
}

/// Whose connection it is.
#[derive(Clone, Copy)]
enum Who {
    /// Nobody's yet: the number that the handshake was for, and when a hello must have come.
    Caller { number: u64, until: Instant },
    /// A rank's.
    Rank(usize),
}

impl Peer {
    /// One that knows the secret. It blocks, so that a message is written whole; what it has sent is taken without waiting.
    fn new(admitted: Admitted) -> io::Result<Self> {
        admitted.stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        Ok(Self {
            stream: Arc::new(admitted.stream),
            who: Who::Caller {
                number: admitted.number,
                until: Instant::now() + HELLO_TIMEOUT,
            },
            arrived: Vec::new(),
        })
    }

    /// Takes some of what has been sent.
    ///
    /// # Errors
    /// When the connection has ended.
    fn receive(&mut self) -> io::Result<()> {
        let mut some = [0; 4096];
        match recv(&self.stream, &mut some[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => Err(ErrorKind::UnexpectedEof.into()),
            Ok((count, _)) => {
                self.arrived.extend_from_slice(&some[..count]);
                Ok(())
            }
            Err(error) => {
                let error = io::Error::from(error);
                match is_temporary(&error) {
                    true => Ok(()),
                    false => Err(error),
                }
            }
        }
    }

    /// For how long it may still be silent; for ever where it is a rank's.
    fn patience(&self) -> Option<Duration> {
        match self.who {
            Who::Rank(_) => None,
            Who::Caller { until, .. } => Some(until.saturating_duration_since(Instant::now())),
        }
    }
}

impl Shared {
    /// Lets ranks in and serves all of them, until the server closes. One thread does all of it: a message takes microseconds, and
    /// there are a few for each rank in the life of a run.
    fn run(self: Arc<Self>, mut door: Door) {
        let mut peers: Vec<Peer> = Vec::new();
        loop {
            let limit = peers.iter().filter_map(Peer::patience).min();
            let streams: Vec<_> = peers.iter().map(|peer| peer.stream.as_fd()).collect();
            let waited = door.wait(limit, &streams);
            if self.state.lock().closing {
                return;
            }
            let (admitted, is_ready) = match waited {
                Ok(waited) => waited,
                Err(error) => {
                    // Nobody shuts it down but who closes the server.
                    tracing::warn!(%error, "the store takes no connections any more");
                    return;
                }
            };
            let mut ready = is_ready.into_iter();
            peers.retain_mut(|peer| {
                let stays = !ready.next().unwrap_or(false) || self.read(peer);
                stays && peer.patience() != Some(Duration::ZERO)
            });
            for one in admitted {
                if peers.len() >= self.world_size + UNWELCOME {
                    tracing::warn!("the store could not serve a connection: there are too many");
                    continue;
                }
                match Peer::new(one) {
                    Ok(peer) => peers.push(peer),
                    Err(error) => tracing::debug!(%error, "a connection could not be set up"),
                }
            }
        }
    }

    /// Does what a connection has asked for. Whether it goes on.
    fn read(&self, peer: &mut Peer) -> bool {
        let received = peer.receive();
        let fate = match self.messages(peer) {
            Ok(Some(fate)) => fate,
            Ok(None) => match received {
                Ok(()) => return true,
                Err(error) => {
                    tracing::debug!(%error, "a connection to the store ended");
                    Fate::Lost
                }
            },
            Err(error) => {
                tracing::debug!(%error, "a connection to the store speaks another protocol");
                Fate::Lost
            }
        };
        if let Who::Rank(rank) = peer.who {
            let mut state = self.state.lock();
            if !state.closing {
                state.end(rank, fate);
            }
            state.connections.remove(&rank);
        }
        false
    }

    /// The whole messages that have arrived, one after the other; how the rank ends, where it does.
    fn messages(&self, peer: &mut Peer) -> io::Result<Option<Fate>> {
        let mut buffer = Vec::new();
        while let Some(len) = first_message(&peer.arrived)? {
            let rest = peer.arrived.split_off(len);
            let bytes = std::mem::replace(&mut peer.arrived, rest);
            let message = Message::read(&mut bytes.as_slice(), &mut buffer)?;
            self.state.lock().traffic.hear(len);
            match (peer.who, message) {
                (Who::Caller { number, .. }, hello) => {
                    peer.who = Who::Rank(self.welcome(&peer.stream, number, &hello)?);
                }
                (Who::Rank(_), Message::Ended { fate, .. }) => return Ok(Some(fate)),
                (Who::Rank(rank), message) => {
                    let handled = self.state.lock().handle(rank, self.world_size, &message);
                    if let Err(wrong) = handled {
                        return Ok(Some(Fate::Aborted(format!(
                            "its connection to rank 0's store was closed: {wrong}"
                        ))));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Makes the connection that of a rank, which its handshake was for: `number`.
    fn welcome(
        &self,
        stream: &Arc<TcpStream>,
        number: u64,
        hello: &Message<'_>,
    ) -> io::Result<usize> {
        let &Message::Hello { world_size, rank } = hello else {
            return Err(io::Error::other("no hello"));
        };
        if rank != number {
            return Err(io::Error::other("it was another rank that proved itself"));
        }
        let mut state = self.state.lock();
        let refusal = if world_size != self.world_size as u64 {
            Some(format!(
                "rank {rank} was started for {world_size} ranks, rank 0 for {}; give all the same WORLD_SIZE",
                self.world_size
            ))
        } else if rank >= self.world_size as u64 {
            Some(format!("rank {rank} of {world_size} does not exist"))
        } else if state.is_taken(rank as usize) {
            Some(format!(
                "there is a rank {rank} already; either two workers were given the same rank, or two runs share one \
                 MASTER_ADDR and MASTER_PORT"
            ))
        } else {
            None
        };
        if let Some(reason) = refusal {
            Message::Refused { reason: &reason }.write(&mut &**stream)?;
            return Err(io::Error::other(reason));
        }
        let rank = rank as usize;
        let welcomed = Message::Welcome.write(&mut &**stream);
        state.traffic.note(&welcomed);
        welcomed?;
        let connection = Connection {
            stream: stream.clone(),
            quota: Quota::default(),
        };
        state.connections.insert(rank, connection);
        for (ended, fate) in state.ended.clone() {
            state.send(rank, &Message::ended(ended, &fate));
        }
        Ok(rank)
    }
}

impl State {
    fn is_taken(&self, rank: usize) -> bool {
        self.connections.contains_key(&rank) || self.ended.iter().any(|(ended, _)| *ended == rank)
    }

    /// Does what `rank`, of `world_size`, asks for. The error says what it wants too much of, or what cannot be.
    fn handle(
        &mut self,
        rank: usize,
        world_size: usize,
        message: &Message<'_>,
    ) -> Result<(), String> {
        // One that has ended in the meantime has no connection any more.
        let Some(connection) = self.connections.get_mut(&rank) else {
            return Ok(());
        };
        match *message {
            Message::Set { key, value } => {
                connection.quota.set(key, value)?;
                self.set(key, value);
            }
            Message::Get { id, key } => match self.values.get(key) {
                Some(value) => {
                    let sent = Message::Value { id, value }.write(&mut &*connection.stream);
                    self.traffic.note(&sent);
                }
                None => {
                    connection.quota.wait()?;
                    let waiting = self.waiting.entry(key.to_owned()).or_default();
                    waiting.push((rank, id));
                }
            },
            Message::Gather {
                id,
                key,
                place,
                members,
                part,
            } => {
                if members > world_size as u64 {
                    return Err(format!("it gathers {members} values of {world_size} ranks"));
                }
                connection.quota.set(key, part)?;
                connection.quota.wait()?;
                self.gather(key, (place, members), part, (rank, id))?;
            }
            Message::GiveUp { id, key } => self.give_up(key, (rank, id)),
            // A client sends nothing else.
            ref other => tracing::debug!(rank, ?other, "an unexpected message"),
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: &[u8]) {
        for (rank, id) in self.waiting.remove(key).unwrap_or_default() {
            self.answered(rank);
            self.send(rank, &Message::Value { id, value });
        }
        self.values.insert(key.to_owned(), value.to_vec());
    }

    fn gather(
        &mut self,
        key: &str,
        (place, members): (u64, u64),
        part: &[u8],
        asker: (usize, u64),
    ) -> Result<(), String> {
        let gathering = self.gatherings.entry(key.to_owned());
        let gathering = gathering.or_insert_with(|| Gathering::new(members));
        gathering.add((place, members), part, asker)?;
        if gathering.is_complete()
            && let Some(mut complete) = self.gatherings.remove(key)
        {
            let waiting = complete.take_waiting();
            self.send_parts(&complete, &waiting);
        }
        Ok(())
    }

    /// Answers `asker` with what is there, unless it has its answer.
    fn give_up(&mut self, key: &str, asker: (usize, u64)) {
        // Out of the map while it is read: sending is noted beside it.
        if let Some(mut gathering) = self.gatherings.remove(key) {
            if gathering.forget(asker) {
                self.send_parts(&gathering, &[asker]);
            }
            self.gatherings.insert(key.to_owned(), gathering);
        }
    }

    fn send_parts(&mut self, gathering: &Gathering, askers: &[(usize, u64)]) {
        let pieces = match gathering.packed() {
            Ok(pieces) => pieces,
            Err(error) => {
                tracing::warn!(%error, "the store has no answer");
                return;
            }
        };
        for &(rank, id) in askers {
            self.answered(rank);
            for (first, packed) in &pieces {
                let first = *first;
                self.send(rank, &Message::Parts { id, first, packed });
            }
        }
    }

    /// `rank` waits for one thing less.
    fn answered(&mut self, rank: usize) {
        if let Some(connection) = self.connections.get_mut(&rank) {
            connection.quota.answered();
        }
    }

    fn end(&mut self, rank: usize, fate: Fate) {
        if self.ended.iter().any(|(ended, _)| *ended == rank) {
            return;
        }
        self.connections.remove(&rank);
        let message = Message::ended(rank, &fate);
        let others: Vec<usize> = self.connections.keys().copied().collect();
        for other in others {
            self.send(other, &message);
        }
        self.ended.push((rank, fate));
    }

    fn send(&mut self, rank: usize, message: &Message<'_>) {
        if let Some(connection) = self.connections.get(&rank) {
            self.traffic.note(&message.write(&mut &*connection.stream));
        }
    }
}
