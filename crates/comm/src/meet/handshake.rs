//! How the two ends of a new connection prove to each other that they know the run's secret, without showing it.
//!
//! ```text
//! caller                                   door
//! magic | nonce | number   ─────────────►        who calls, and a number that never comes again
//!                          ◄─────────────  nonce
//! proof                    ─────────────►        keyed hash of both nonces, the number and the purpose
//!                          ◄─────────────  verdict | proof
//! ```
//!
//! The caller proves first: a stranger that connects learns nothing that a guess at the secret could be tried on. Both nonces
//! are new for every connection, so a recorded handshake is of no use; the purpose says what the connection is for, so that a
//! proof for one cannot be passed on to another; and who proves what is part of the proof, so that it cannot be sent back.
//! What follows on the connection is neither encrypted nor signed (docs/security.md).

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::meet::secret::{RunSecret, SECRET_BYTES, random_bytes};

/// What a connection of ours begins with: the name and the version of what follows.
const MAGIC: [u8; 8] = *b"TANDEM\0\x03";

const NONCE_AT: usize = MAGIC.len();
const NUMBER_AT: usize = NONCE_AT + SECRET_BYTES;
/// Magic, nonce and number.
const OPENING_BYTES: usize = NUMBER_AT + 8;
/// All that a caller sends; nothing more is read of it before it has proved itself.
const CALLER_BYTES: usize = OPENING_BYTES + SECRET_BYTES;
/// Verdict and proof.
const ANSWER_BYTES: usize = 1 + SECRET_BYTES;

const ACCEPTED: u8 = 1;
const REFUSED: u8 = 0;

/// How long to wait for the other side before asking whether to go on waiting.
const LOOK_AROUND: Duration = Duration::from_millis(50);

/// Who makes a proof.
#[derive(Clone, Copy)]
enum Role {
    Caller = 1,
    Door = 2,
}

/// What a proof is about.
struct Claim<'a> {
    purpose: &'a str,
    number: u64,
    caller_nonce: &'a [u8],
    door_nonce: &'a [u8; SECRET_BYTES],
}

impl Claim<'_> {
    fn proof(&self, secret: &RunSecret, role: Role) -> blake3::Hash {
        // All but the purpose have a fixed length, so no two claims are the same bytes.
        let mut message = vec![role as u8];
        message.extend_from_slice(&self.number.to_le_bytes());
        message.extend_from_slice(self.caller_nonce);
        message.extend_from_slice(self.door_nonce);
        message.extend_from_slice(self.purpose.as_bytes());
        secret.proof(&message)
    }
}

/// Why a handshake failed, on the caller's side.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// The connection ended, or what answers is none of ours.
    NotOurs(io::Error),
    /// The other side is one of ours and has another secret.
    OtherSecret,
}

impl From<io::Error> for Unanswered {
    fn from(error: io::Error) -> Self {
        Self::NotOurs(error)
    }
}

/// The caller's side, on a blocking socket. `goes_on` is asked now and then whether to wait longer.
///
/// # Errors
/// [`Unanswered`].
pub(crate) fn call(
    stream: &TcpStream,
    secret: &RunSecret,
    purpose: &str,
    number: u64,
    goes_on: &dyn Fn() -> bool,
) -> Result<(), Unanswered> {
    let caller_nonce = random_bytes()?;
    let mut opening = [0; OPENING_BYTES];
    opening[..NONCE_AT].copy_from_slice(&MAGIC);
    opening[NONCE_AT..NUMBER_AT].copy_from_slice(&caller_nonce);
    opening[NUMBER_AT..].copy_from_slice(&number.to_le_bytes());
    stream.set_read_timeout(Some(LOOK_AROUND))?;
    let mut out = stream;
    out.write_all(&opening)?;
    let mut door_nonce = [0; SECRET_BYTES];
    read_patiently(stream, &mut door_nonce, goes_on)?;
    let claim = Claim {
        purpose,
        number,
        caller_nonce: &caller_nonce,
        door_nonce: &door_nonce,
    };
    out.write_all(claim.proof(secret, Role::Caller).as_bytes())?;
    let mut verdict = [0; 1];
    read_patiently(stream, &mut verdict, goes_on)?;
    if verdict[0] != ACCEPTED {
        return Err(Unanswered::OtherSecret);
    }
    let mut proof = [0; SECRET_BYTES];
    read_patiently(stream, &mut proof, goes_on)?;
    stream.set_read_timeout(None)?;
    // Compared in constant time, as hashes of this library are.
    if claim.proof(secret, Role::Door) != proof {
        return Err(Unanswered::OtherSecret);
    }
    Ok(())
}

fn read_patiently(
    mut stream: &TcpStream,
    mut into: &mut [u8],
    goes_on: &dyn Fn() -> bool,
) -> io::Result<()> {
    while !into.is_empty() {
        match stream.read(into) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => into = &mut into[count..],
            Err(error) if is_temporary(&error) => {
                if !goes_on() {
                    return Err(ErrorKind::TimedOut.into());
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether nothing has come yet, or a signal came instead.
pub(crate) fn is_temporary(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

/// For how long an attempt goes on: see [`call`].
pub(crate) fn until(deadline: Instant) -> impl Fn() -> bool {
    move || Instant::now() < deadline
}

/// The door's side of one connection. It holds a fixed number of bytes, whatever the caller sends.
pub(crate) struct Answer {
    received: [u8; CALLER_BYTES],
    len: usize,
    nonce: [u8; SECRET_BYTES],
}

/// What follows from the bytes that have arrived.
#[derive(Debug)]
pub(crate) enum Next {
    /// More of them.
    Wait,
    /// Send this, then more of them.
    Send([u8; SECRET_BYTES]),
    /// The caller knows the secret: send this, and the connection is `number`'s.
    Admit {
        /// What the caller says it is.
        number: u64,
        /// The last word of the handshake.
        answer: [u8; ANSWER_BYTES],
    },
    /// The caller does not know the secret: send this and close.
    Refuse([u8; 1]),
    /// The caller does not even speak this protocol: close without a word.
    Stranger,
}

impl Answer {
    /// # Errors
    /// When the system has no randomness.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self::with_nonce(random_bytes()?))
    }

    fn with_nonce(nonce: [u8; SECRET_BYTES]) -> Self {
        Self {
            received: [0; CALLER_BYTES],
            len: 0,
            nonce,
        }
    }

    /// Where the next bytes go. Never more than the caller may send at this point.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        let end = match self.len < OPENING_BYTES {
            true => OPENING_BYTES,
            false => CALLER_BYTES,
        };
        &mut self.received[self.len..end]
    }

    /// `count` bytes have arrived in the [`room`](Self::room).
    pub(crate) fn arrived(&mut self, count: usize, secret: &RunSecret, purpose: &str) -> Next {
        self.len = (self.len + count).min(CALLER_BYTES);
        let magic = self.len.min(MAGIC.len());
        if self.received[..magic] != MAGIC[..magic] {
            return Next::Stranger;
        }
        match self.len {
            OPENING_BYTES => Next::Send(self.nonce),
            CALLER_BYTES => self.verdict(secret, purpose),
            _ => Next::Wait,
        }
    }

    fn verdict(&self, secret: &RunSecret, purpose: &str) -> Next {
        let mut number = [0; 8];
        number.copy_from_slice(&self.received[NUMBER_AT..OPENING_BYTES]);
        let number = u64::from_le_bytes(number);
        let claim = Claim {
            purpose,
            number,
            caller_nonce: &self.received[NONCE_AT..NUMBER_AT],
            door_nonce: &self.nonce,
        };
        let mut proof = [0; SECRET_BYTES];
        proof.copy_from_slice(&self.received[OPENING_BYTES..]);
        if claim.proof(secret, Role::Caller) != proof {
            return Next::Refuse([REFUSED]);
        }
        let mut answer = [ACCEPTED; ANSWER_BYTES];
        answer[1..].copy_from_slice(claim.proof(secret, Role::Door).as_bytes());
        Next::Admit { number, answer }
    }
}

/// The door that [`answer_to`] plays.
#[cfg(feature = "testing")]
const PLAYED: (&str, [u8; SECRET_BYTES]) = ("fuzz", [7; SECRET_BYTES]);

/// What a caller with `secret` sends to the door of [`answer_to`].
#[cfg(feature = "testing")]
pub(crate) fn sample(secret: &RunSecret) -> Vec<u8> {
    caller(secret, PLAYED.0, PLAYED.1)
}

/// Plays a stranger whose bytes are `input` to a door; returns whether it was let in, and the bytes that the door kept.
#[cfg(feature = "testing")]
pub(crate) fn answer_to(input: &[u8], secret: &RunSecret) -> (bool, usize) {
    let mut answer = Answer::with_nonce(PLAYED.1);
    let mut rest = input;
    while !rest.is_empty() {
        let room = answer.room();
        let count = room.len().min(rest.len());
        room[..count].copy_from_slice(&rest[..count]);
        rest = &rest[count..];
        match answer.arrived(count, secret, PLAYED.0) {
            Next::Wait | Next::Send(_) => {}
            Next::Admit { .. } => return (true, size_of_val(&answer)),
            Next::Refuse(_) | Next::Stranger => break,
        }
    }
    (false, size_of_val(&answer))
}

/// What a caller with `secret` sends to a door that has this nonce.
#[cfg(any(test, feature = "testing"))]
fn caller(secret: &RunSecret, purpose: &str, door_nonce: [u8; SECRET_BYTES]) -> Vec<u8> {
    let caller_nonce = [1; SECRET_BYTES];
    let claim = Claim {
        purpose,
        number: 3,
        caller_nonce: &caller_nonce,
        door_nonce: &door_nonce,
    };
    let mut bytes = MAGIC.to_vec();
    bytes.extend(caller_nonce);
    bytes.extend(3u64.to_le_bytes());
    bytes.extend(claim.proof(secret, Role::Caller).as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const PURPOSE: &str = "test";

    /// The door's last word to these bytes, which come `step` at a time.
    fn door(secret: &RunSecret, nonce: [u8; SECRET_BYTES], bytes: &[u8], step: usize) -> Next {
        let mut answer = Answer::with_nonce(nonce);
        let mut last = Next::Wait;
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = answer.room();
            let count = room.len().min(rest.len()).min(step);
            room[..count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
            last = answer.arrived(count, secret, PURPOSE);
            if !matches!(last, Next::Wait | Next::Send(_)) {
                break;
            }
        }
        last
    }

    #[test]
    fn who_knows_the_secret_is_let_in_and_nobody_else() {
        let secret = RunSecret::random().unwrap();
        let other = RunSecret::random().unwrap();
        let nonce = [9; SECRET_BYTES];
        let good = caller(&secret, PURPOSE, nonce);
        for step in [1, 7, 1000] {
            let next = door(&secret, nonce, &good, step);
            assert!(matches!(next, Next::Admit { number: 3, .. }), "{next:?}");
        }
        // Another secret, another purpose, and a recording, which meets another nonce.
        for (bytes, nonce) in [
            (caller(&other, PURPOSE, nonce), nonce),
            (caller(&secret, "another", nonce), nonce),
            (good.clone(), [8; SECRET_BYTES]),
        ] {
            let next = door(&secret, nonce, &bytes, 1000);
            assert!(matches!(next, Next::Refuse(_)), "{next:?}");
        }
        // Every bit counts.
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            let next = door(&secret, nonce, &bytes, 1000);
            assert!(!matches!(next, Next::Admit { .. }), "byte {at}: {next:?}");
        }
        // The door's own proof, sent back to it, is no caller's.
        let Next::Admit { answer, .. } = door(&secret, nonce, &good, 1000) else {
            unreachable!("it was let in above");
        };
        let mut reflected = good.clone();
        reflected[OPENING_BYTES..].copy_from_slice(&answer[1..]);
        let next = door(&secret, nonce, &reflected, 1000);
        assert!(matches!(next, Next::Refuse(_)), "{next:?}");
    }
}
