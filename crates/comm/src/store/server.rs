//! Rank 0's side of the store.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::health::Fate;
use crate::store::wire::Message;

/// A connection that does not say hello within this time is not one of ours.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// A rank that does not read (stopped, say) must not keep the others' messages.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

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
    connections: BTreeMap<usize, TcpStream>,
    ended: Vec<(usize, Fate)>,
    closing: bool,
}

impl Server {
    /// Serves `world_size` ranks on `listener`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn start(listener: TcpListener, world_size: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            world_size,
            state: Mutex::default(),
        });
        let accepting = listener.try_clone()?;
        let serving = shared.clone();
        let acceptor = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || serving.accept_from(&accepting))?;
        Ok(Self {
            shared,
            listener,
            acceptor: Some(acceptor),
        })
    }

    /// Tells everyone how rank 0 ends, without the detour over its own connection.
    pub(crate) fn end(&self, fate: Fate) {
        self.shared.lock().end(0, fate);
    }

    /// The address under which other hosts reach this one, if there are others: the near end of their connections.
    ///
    /// # Errors
    /// When the system does not tell.
    pub(crate) fn address_seen_by_others(&self) -> io::Result<IpAddr> {
        let state = self.shared.lock();
        let mut own = IpAddr::V4(Ipv4Addr::LOCALHOST);
        for connection in state.connections.values() {
            own = connection.local_addr()?.ip().to_canonical();
            if !own.is_loopback() {
                break;
            }
        }
        Ok(own)
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
        let mut state = self.shared.lock();
        state.closing = true;
        state.end(0, Fate::Finished);
        for connection in state.connections.values() {
            // Already closed is closed.
            let _closed = connection.shutdown(Shutdown::Both);
        }
        drop(state);
        // Ends the blocking accept.
        let _shut = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ended = acceptor.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept_from(self: Arc<Self>, listener: &TcpListener) {
        loop {
            let accepted = listener.accept();
            if self.lock().closing {
                return;
            }
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the store could not accept a connection");
                    // Out of descriptors, for example: give others time to return some.
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                }
            };
            let serving = self.clone();
            let spawned = std::thread::Builder::new()
                .name("store".into())
                .spawn(move || serving.serve(stream));
            if let Err(error) = spawned {
                tracing::warn!(%error, "the store could not serve a connection");
            }
        }
    }

    /// One connection, from hello to its end.
    fn serve(&self, mut stream: TcpStream) {
        let rank = match self.welcome(&mut stream) {
            Ok(rank) => rank,
            Err(error) => {
                tracing::debug!(%error, "a stranger connected to the store");
                return;
            }
        };
        let fate = loop {
            match Message::read(&mut stream) {
                Ok(Message::Ended { fate, .. }) => break fate,
                Ok(message) => self.lock().handle(rank, message),
                Err(error) => {
                    tracing::debug!(rank, %error, "lost a rank");
                    break Fate::Lost;
                }
            }
        };
        let mut state = self.lock();
        if !state.closing {
            state.end(rank, fate);
        }
        state.connections.remove(&rank);
    }

    fn welcome(&self, stream: &mut TcpStream) -> io::Result<usize> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        stream.set_read_timeout(Some(HELLO_TIMEOUT))?;
        let hello = Message::read(stream)?;
        let Message::Hello { world_size, rank } = hello else {
            return Err(io::Error::other("no hello"));
        };
        stream.set_read_timeout(None)?;
        let mut state = self.lock();
        let rank = rank as usize;
        let refusal = if world_size as usize != self.world_size {
            Some(format!(
                "rank {rank} was started for {world_size} ranks, rank 0 for {}; give all the same WORLD_SIZE",
                self.world_size
            ))
        } else if rank >= self.world_size {
            Some(format!("rank {rank} of {world_size} does not exist"))
        } else if state.connections.contains_key(&rank)
            || state.ended.iter().any(|(ended, _)| *ended == rank)
        {
            Some(format!(
                "there is a rank {rank} already; either two workers were given the same rank, or two runs share one \
                 MASTER_ADDR and MASTER_PORT"
            ))
        } else {
            None
        };
        if let Some(reason) = refusal {
            Message::Refused {
                reason: reason.clone(),
            }
            .write(stream)?;
            return Err(io::Error::other(reason));
        }
        Message::Welcome.write(stream)?;
        state.connections.insert(rank, stream.try_clone()?);
        state.broadcast(&Message::Joined { rank: rank as u64 });
        let known: Vec<usize> = state.connections.keys().copied().collect();
        for other in known {
            state.send(rank, &Message::Joined { rank: other as u64 });
        }
        for (ended, fate) in state.ended.clone() {
            let message = Message::Ended {
                rank: ended as u64,
                fate,
            };
            state.send(rank, &message);
        }
        Ok(rank)
    }
}

impl State {
    fn handle(&mut self, rank: usize, message: Message) {
        match message {
            Message::Set { key, value } => self.set(key, value),
            Message::Get { id, key } => match self.values.get(&key) {
                Some(value) => {
                    let value = value.clone();
                    self.send(rank, &Message::Value { id, value });
                }
                None => self.waiting.entry(key).or_default().push((rank, id)),
            },
            // A client sends nothing else.
            other => tracing::debug!(rank, ?other, "an unexpected message"),
        }
    }

    fn set(&mut self, key: String, value: Vec<u8>) {
        for (rank, id) in self.waiting.remove(&key).unwrap_or_default() {
            let value = value.clone();
            self.send(rank, &Message::Value { id, value });
        }
        self.values.insert(key, value);
    }

    fn end(&mut self, rank: usize, fate: Fate) {
        if self.ended.iter().any(|(ended, _)| *ended == rank) {
            return;
        }
        self.connections.remove(&rank);
        self.broadcast(&Message::Ended {
            rank: rank as u64,
            fate: fate.clone(),
        });
        self.ended.push((rank, fate));
    }

    fn broadcast(&mut self, message: &Message) {
        let ranks: Vec<usize> = self.connections.keys().copied().collect();
        for rank in ranks {
            self.send(rank, message);
        }
    }

    fn send(&mut self, rank: usize, message: &Message) {
        if let Some(connection) = self.connections.get_mut(&rank) {
            // A broken connection ends its own thread, which then tells everyone.
            let _sent = message.write(connection);
        }
    }
}
