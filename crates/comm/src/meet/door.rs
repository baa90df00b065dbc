//! A listening socket that lets in only those who know the run's secret.
//!
//! One thread looks after all who have not proved themselves yet. Each of them costs a descriptor and a few hundred bytes, has a
//! limited time, and may be shut out for another: there is a limit to how many there are, and when it is reached, the oldest
//! connection of the address that has most must go. So somebody who holds connections, or opens them without end, keeps
//! nobody out who answers promptly from elsewhere.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::meet::handshake::{Answer, Next, is_temporary};
use crate::meet::secret::RunSecret;

/// How long a connection may take to prove itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections that may be waiting besides those that are expected.
const STRANGERS: usize = 32;

/// Connections that are taken before those that are here are looked at.
const ACCEPTED_AT_ONCE: usize = 64;

/// How long to wait when the system cannot accept a connection.
const UNTIL_IT_PASSES: Duration = Duration::from_millis(100);

/// What accepting says of a socket that was shut down.
const SHUT_DOWN: i32 = rustix::io::Errno::INVAL.raw_os_error();

/// The socket and those in front of it.
pub(crate) struct Door {
    listener: TcpListener,
    secret: RunSecret,
    purpose: String,
    limit: usize,
    /// See [`PATIENCE`].
    patience: Duration,
    waiting: Vec<Waiting>,
    /// Callers that did not know the secret, so far.
    refused: u64,
}

/// Somebody who has not proved anything yet.
struct Waiting {
    stream: TcpStream,
    from: IpAddr,
    since: Instant,
    answer: Answer,
}

/// Somebody who knows the secret.
pub(crate) struct Admitted {
    /// What the caller says it is.
    pub(crate) number: u64,
    /// It blocks.
    pub(crate) stream: TcpStream,
}

impl Door {
    /// A door for `expected` callers at the same time. What they call for is `purpose`.
    ///
    /// # Errors
    /// When the socket cannot be set up.
    pub(crate) fn new(
        listener: TcpListener,
        secret: RunSecret,
        purpose: String,
        expected: usize,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let limit = expected + STRANGERS;
        // All of them may call before one is let in, and whoever finds the queue full is not tried again for a second. The standard
        // library asks for 128 places; the system gives no more than it has (`net.core.somaxconn`).
        rustix::net::listen(&listener, i32::try_from(limit).unwrap_or(i32::MAX))?;
        Ok(Self {
            listener,
            secret,
            purpose,
            limit,
            patience: PATIENCE,
            waiting: Vec::new(),
            refused: 0,
        })
    }

    /// Waits until something happens, here or to one of `others`, at most for `limit`. Returns who has proved itself, perhaps
    /// nobody, and which of the others are ready to be read.
    ///
    /// # Errors
    /// When the socket takes no connections any more, because it was shut down, say.
    pub(crate) fn wait(
        &mut self,
        limit: Option<Duration>,
        others: &[BorrowedFd<'_>],
    ) -> io::Result<(Vec<Admitted>, Vec<bool>)> {
        let now = Instant::now();
        let patience = self.waiting.iter().map(|waiting| {
            // The first to come is the first to go, so this is how long at least one of them has.
            (waiting.since + self.patience).saturating_duration_since(now)
        });
        let timeout = patience.chain(limit).min();
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut polled = vec![PollFd::new(&self.listener, PollFlags::IN)];
        polled.extend(
            self.waiting
                .iter()
                .map(|waiting| PollFd::new(&waiting.stream, PollFlags::IN)),
        );
        polled.extend(others.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
        // An interrupted poll is one that found nothing.
        if poll(&mut polled, timeout.as_ref()).unwrap_or(0) == 0 {
            self.dismiss_the_slow();
            return Ok((Vec::new(), vec![false; others.len()]));
        }
        let mut is_ready: Vec<bool> = polled
            .iter()
            .map(|entry| !entry.revents().is_empty())
            .collect();
        drop(polled);
        let others = is_ready.split_off(1 + self.waiting.len());
        let admitted = self.listen_to(&is_ready[1..]);
        self.dismiss_the_slow();
        if is_ready[0] {
            self.accept()?;
        }
        Ok((admitted, others))
    }

    /// Reads what those that are ready have sent.
    fn listen_to(&mut self, is_ready: &[bool]) -> Vec<Admitted> {
        let mut admitted = Vec::new();
        let before = std::mem::take(&mut self.waiting);
        for (mut waiting, ready) in before.into_iter().zip(is_ready) {
            if !ready {
                self.waiting.push(waiting);
                continue;
            }
            match waiting.listen(&self.secret, &self.purpose) {
                Heard::Nothing => self.waiting.push(waiting),
                Heard::Proof(number) => match waiting.stream.set_nonblocking(false) {
                    Ok(()) => admitted.push(Admitted {
                        number,
                        stream: waiting.stream,
                    }),
                    Err(error) => tracing::debug!(%error, "a connection could not be set up"),
                },
                Heard::WrongProof => self.note_refusal(waiting.from),
                Heard::Nonsense => {
                    tracing::debug!(from = %waiting.from, "a stranger connected");
                }
            }
        }
        admitted
    }

    fn accept(&mut self) -> io::Result<()> {
        for _ in 0..ACCEPTED_AT_ONCE {
            match self.listener.accept() {
                Ok((stream, address)) => self.take(stream, address.ip()),
                Err(error) if is_temporary(&error) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) if error.raw_os_error() == Some(SHUT_DOWN) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    // It may be for want of descriptors: who has no business here gives one back. If nobody does, others may,
                    // and what else can be wrong with a network passes too.
                    self.make_room(1.max(self.waiting.len()));
                    std::thread::sleep(UNTIL_IT_PASSES);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, stream: TcpStream, from: IpAddr) {
        let set_up = || -> io::Result<Answer> {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            Answer::new()
        };
        match set_up() {
            Ok(answer) => {
                self.make_room(self.limit);
                self.waiting.push(Waiting {
                    stream,
                    from,
                    since: Instant::now(),
                    answer,
                });
            }
            Err(error) => tracing::debug!(%error, "a connection could not be set up"),
        }
    }

    /// Shuts out somebody, unless there are fewer than `limit`.
    fn make_room(&mut self, limit: usize) {
        if self.waiting.len() < limit {
            return;
        }
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for waiting in &self.waiting {
            *counts.entry(waiting.from).or_default() += 1;
        }
        let most = counts.values().copied().max().unwrap_or(0);
        // They are in the order in which they came.
        if let Some(at) = self
            .waiting
            .iter()
            .position(|waiting| counts.get(&waiting.from) == Some(&most))
        {
            self.waiting.remove(at);
        }
    }

    fn dismiss_the_slow(&mut self) {
        let patience = self.patience;
        self.waiting
            .retain(|waiting| waiting.since.elapsed() < patience);
    }

    /// Says that somebody did not know the secret; ever more rarely, because they may be many.
    fn note_refusal(&mut self, from: IpAddr) {
        self.refused += 1;
        if self.refused.is_power_of_two() {
            tracing::warn!(
                %from,
                so_far = self.refused,
                "refused a connection that does not know this run's secret"
            );
        }
    }
}

/// What somebody who waits has said.
enum Heard {
    Nothing,
    Proof(u64),
    WrongProof,
    Nonsense,
}

impl Waiting {
    fn listen(&mut self, secret: &RunSecret, purpose: &str) -> Heard {
        loop {
            let count = match self.stream.read(self.answer.room()) {
                Ok(0) => return Heard::Nonsense,
                Ok(count) => count,
                Err(error) if is_temporary(&error) => return Heard::Nothing,
                Err(_) => return Heard::Nonsense,
            };
            // What is sent is a few bytes into an empty buffer: a socket that does not take them whole is of no use.
            match self.answer.arrived(count, secret, purpose) {
                Next::Wait => {}
                Next::Send(nonce) => match self.stream.write_all(&nonce) {
                    Ok(()) => {}
                    Err(_) => return Heard::Nonsense,
                },
                Next::Admit { number, answer } => {
                    return match self.stream.write_all(&answer) {
                        Ok(()) => Heard::Proof(number),
                        Err(_) => Heard::Nonsense,
                    };
                }
                Next::Refuse(verdict) => {
                    let _told = self.stream.write_all(&verdict);
                    return Heard::WrongProof;
                }
                Next::Stranger => return Heard::Nonsense,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meet::handshake::{Unanswered, call};

    const SECRET: &str = "a secret of this test";

    fn door() -> (Door, std::net::SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let secret = RunSecret::guessable(SECRET);
        let door = Door::new(listener, secret, "test".to_owned(), 1).unwrap();
        (door, address)
    }

    /// Lets `door` work until it has admitted somebody.
    fn first_admitted(door: &mut Door) -> Admitted {
        loop {
            if let Some(admitted) = door.wait(None, &[]).unwrap().0.pop() {
                return admitted;
            }
        }
    }

    /// Calls from `from`, an address of the loopback interface.
    fn caller(
        address: std::net::SocketAddr,
        from: [u8; 4],
        secret: &str,
    ) -> std::thread::JoinHandle<Result<TcpStream, Unanswered>> {
        let secret = RunSecret::guessable(secret);
        std::thread::spawn(move || {
            let stream = connect_from(from, address);
            call(&stream, &secret, "test", 7, &|| true).map(|()| stream)
        })
    }

    fn connect_from(from: [u8; 4], to: std::net::SocketAddr) -> TcpStream {
        use socket2::{Domain, Socket, Type};
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let from = std::net::SocketAddr::from((from, 0));
        socket.bind(&from.into()).unwrap();
        socket.connect(&to.into()).unwrap();
        socket.into()
    }

    #[test]
    fn as_many_as_are_expected_may_call_before_anybody_is_let_in() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let secret = RunSecret::guessable("a secret of this test");
        let _door = Door::new(listener, secret, "test".to_owned(), 400).unwrap();
        let calls = (0..400).map(|_| TcpStream::connect_timeout(&address, PATIENCE));
        let connected: io::Result<Vec<TcpStream>> = calls.collect();
        assert_eq!(connected.unwrap().len(), 400);
    }

    #[test]
    fn strangers_that_hold_connections_take_no_place_from_others() {
        let (mut door, address) = door();
        let limit = door.limit;
        // One that is quiet and from elsewhere, then many from one address.
        let quiet = connect_from([127, 0, 0, 9], address);
        let held: Vec<TcpStream> = (0..3 * limit)
            .map(|_| {
                let stream = connect_from([127, 0, 0, 8], address);
                assert!(door.wait(None, &[]).unwrap().0.is_empty());
                assert!(door.waiting.len() <= limit);
                stream
            })
            .collect();
        while door.waiting.len() < limit {
            door.wait(None, &[]).unwrap();
        }
        let from = |door: &Door, address: [u8; 4]| {
            let of = |waiting: &&Waiting| waiting.from == IpAddr::from(address);
            door.waiting.iter().filter(of).count()
        };
        assert_eq!(from(&door, [127, 0, 0, 9]), 1, "it keeps its place");
        let calling = caller(address, [127, 0, 0, 1], SECRET);
        let admitted = first_admitted(&mut door);
        assert_eq!(admitted.number, 7);
        calling.join().unwrap().unwrap();
        // And the time of those who wait is limited.
        door.patience = Duration::ZERO;
        door.wait(Some(Duration::ZERO), &[]).unwrap();
        assert!(door.waiting.is_empty());
        drop((quiet, held));
    }

    #[test]
    fn another_secret_is_told_and_counted_and_the_door_stays_open() {
        let (mut door, address) = door();
        let wrong = caller(address, [127, 0, 0, 1], "another secret");
        while door.refused == 0 {
            assert!(door.wait(None, &[]).unwrap().0.is_empty());
        }
        let answer = wrong.join().unwrap();
        assert!(matches!(answer, Err(Unanswered::OtherSecret)));
        let right = caller(address, [127, 0, 0, 1], SECRET);
        first_admitted(&mut door);
        right.join().unwrap().unwrap();
    }

    #[test]
    fn who_answers_without_the_secret_is_found_out() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let calling = caller(listener.local_addr().unwrap(), [127, 0, 0, 1], SECRET);
        let (mut stream, _) = listener.accept().unwrap();
        let mut opening = [0; 48];
        stream.read_exact(&mut opening).unwrap();
        stream.write_all(&[1; 32]).unwrap();
        let mut proof = [0; 32];
        stream.read_exact(&mut proof).unwrap();
        // It says yes, and has nothing to show for it.
        stream.write_all(&[1; 33]).unwrap();
        let answer = calling.join().unwrap();
        assert!(matches!(answer, Err(Unanswered::OtherSecret)));
    }
}
