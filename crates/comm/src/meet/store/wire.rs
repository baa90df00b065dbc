//! What goes over a store connection once its two ends have proved themselves: messages in postcard's format, each with its
//! length in front.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use crate::meet::health::Fate;
#[cfg(feature = "testing")]
use crate::meet::store::parts::unpack;

/// What connections to the store are for, in their handshake.
pub(super) const PURPOSE: &str = "store";

/// Bytes of the length.
const LENGTH_BYTES: usize = 4;

/// Keys are names of groups and numbers of members.
pub(super) const MAX_KEY: usize = 1 << 10;

/// Values are addresses and the like.
pub(super) const MAX_VALUE: usize = 1 << 16;

/// Longer texts are cut: an error of a rank, say, whose whole is in that rank's log.
const MAX_REASON: usize = 1 << 14;

/// The longest message. One that claims to be longer is refused before anything is allocated for it.
const MAX_MESSAGE: usize = MAX_KEY + MAX_VALUE + 64;

/// A message in either direction. What it names lies in the buffer that it was read into: decoding allocates nothing but
/// the texts of ends, which are as long as what has arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Message<'a> {
    /// The first message of a rank.
    Hello { world_size: u64, rank: u64 },
    /// Publishes a value.
    Set {
        #[serde(borrow)]
        key: &'a str,
        #[serde(borrow)]
        value: &'a [u8],
    },
    /// Answered as soon as the key exists.
    Get {
        id: u64,
        #[serde(borrow)]
        key: &'a str,
    },
    /// From a rank: how it ends. From the server: how `rank` ended.
    Ended { rank: u64, fate: Fate },
    /// The server's answer to a hello that it likes.
    Welcome,
    /// The server's answer to any other.
    Refused {
        #[serde(borrow)]
        reason: &'a str,
    },
    /// The answer to `Get`.
    Value {
        id: u64,
        #[serde(borrow)]
        value: &'a [u8],
    },
    /// Gives the part number `place` of the `members` that are gathered under `key`, and asks for all of them.
    Gather {
        id: u64,
        #[serde(borrow)]
        key: &'a str,
        place: u64,
        members: u64,
        #[serde(borrow)]
        part: &'a [u8],
    },
    /// Asks for those that are there, of a rank that will not wait for the others any longer.
    GiveUp {
        id: u64,
        #[serde(borrow)]
        key: &'a str,
    },
    /// The answer to `Gather`, in as many messages as it takes: the parts from number `first` on, packed
    /// ([`parts`](super::parts)).
    Parts {
        id: u64,
        first: u64,
        #[serde(borrow)]
        packed: &'a [u8],
    },
}

impl<'a> Message<'a> {
    /// How `rank` ended, in words that fit.
    pub(super) fn ended(rank: usize, fate: &Fate) -> Self {
        let fate = match fate {
            Fate::Aborted(reason) if reason.len() > MAX_REASON => {
                let mut end = MAX_REASON;
                while !reason.is_char_boundary(end) {
                    end -= 1;
                }
                Fate::Aborted(format!("{} ...", &reason[..end]))
            }
            fate => fate.clone(),
        };
        Self::Ended {
            rank: rank as u64,
            fate,
        }
    }

    /// Returns how many bytes it took.
    ///
    /// # Errors
    /// When the connection is broken, or the message is longer than the other side would take.
    pub(super) fn write(&self, stream: &mut impl Write) -> io::Result<usize> {
        let too_long = || io::Error::other("the message is too long for the store");
        let is_short = match self {
            Self::Set { key, value } => key.len() <= MAX_KEY && value.len() <= MAX_VALUE,
            Self::Get { key, .. } | Self::GiveUp { key, .. } => key.len() <= MAX_KEY,
            Self::Gather { key, part, .. } => key.len() <= MAX_KEY && part.len() <= MAX_VALUE,
            _ => true,
        };
        if !is_short {
            return Err(too_long());
        }
        let mut message =
            postcard::to_extend(self, vec![0; LENGTH_BYTES]).map_err(io::Error::other)?;
        let len = message.len() - LENGTH_BYTES;
        if len > MAX_MESSAGE {
            return Err(too_long());
        }
        message[..LENGTH_BYTES].copy_from_slice(&(len as u32).to_le_bytes());
        // One call, so that two threads' messages do not mix and no half message waits for the other half.
        stream.write_all(&message)?;
        Ok(message.len())
    }

    /// Reads the next message into `buffer`, whose capacity stays below a fixed size whatever comes.
    ///
    /// # Errors
    /// When the connection is broken or the other side does not speak this protocol.
    pub(super) fn read(stream: &mut impl Read, buffer: &'a mut Vec<u8>) -> io::Result<Self> {
        let mut len = [0; LENGTH_BYTES];
        stream.read_exact(&mut len)?;
        let len = u32::from_le_bytes(len) as usize;
        if len > MAX_MESSAGE {
            return Err(not_ours());
        }
        buffer.clear();
        buffer.reserve_exact(len);
        buffer.resize(len, 0);
        stream.read_exact(buffer)?;
        match postcard::take_from_bytes(buffer) {
            Ok((message, [])) => Ok(message),
            _ => Err(not_ours()),
        }
    }
}

/// Bytes of the first message of what has arrived, its length included; `None` where it is not whole yet.
///
/// # Errors
/// When it claims to be longer than any message.
pub(super) fn first_message(arrived: &[u8]) -> io::Result<Option<usize>> {
    let Some(len) = arrived.first_chunk::<LENGTH_BYTES>() else {
        return Ok(None);
    };
    let len = u32::from_le_bytes(*len) as usize;
    if len > MAX_MESSAGE {
        return Err(not_ours());
    }
    let whole = LENGTH_BYTES + len;
    Ok((arrived.len() >= whole).then_some(whole))
}

fn not_ours() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the other side does not speak this protocol",
    )
}

/// Reads `input` as messages, as many as it holds, and writes each again. Returns how many there were and the largest buffer
/// that they took.
#[cfg(feature = "testing")]
pub(crate) fn read_all(mut input: &[u8]) -> (usize, usize) {
    let mut buffer = Vec::new();
    let (mut count, mut largest) = (0, 0);
    loop {
        let read = Message::read(&mut input, &mut buffer).map(|message| {
            if let Message::Parts { packed, .. } = message {
                let count = unpack(packed).count();
                assert!(count <= packed.len(), "{count} parts of nothing");
            }
            let mut wire = Vec::new();
            // Keys and values may be longer than a sender may make them; then they are not written.
            let written = message.write(&mut wire);
            written.ok().map(|_| (format!("{message:?}"), wire))
        });
        largest = largest.max(buffer.capacity());
        let Ok(again) = read else {
            return (count, largest);
        };
        count += 1;
        if let Some((before, wire)) = again {
            let mut buffer = Vec::new();
            let after = Message::read(&mut wire.as_slice(), &mut buffer);
            let after = after.map(|message| format!("{message:?}"));
            assert_eq!(
                after.ok(),
                Some(before),
                "a message changes when it is passed on"
            );
        }
    }
}

/// One message of every kind, and then some.
#[cfg(any(test, feature = "testing"))]
fn samples() -> [Message<'static>; 11] {
    [
        Message::Hello {
            world_size: 4,
            rank: 3,
        },
        Message::Set {
            key: "k",
            value: &[1, 2],
        },
        Message::Get { id: 9, key: "k" },
        Message::Ended {
            rank: 2,
            fate: Fate::Aborted("NaN".into()),
        },
        Message::Ended {
            rank: 2,
            fate: Fate::Finished,
        },
        Message::Welcome,
        Message::Refused { reason: "no" },
        Message::Value { id: 9, value: &[] },
        Message::Gather {
            id: 10,
            key: "k",
            place: 1,
            members: 3,
            part: b"part",
        },
        Message::GiveUp { id: 10, key: "k" },
        Message::Parts {
            id: 10,
            first: 0,
            // None, and one of four bytes.
            packed: b"\0\x01\x04part",
        },
    ]
}

/// The same, as they go over a connection.
#[cfg(feature = "testing")]
pub(crate) fn sample() -> Vec<u8> {
    let mut wire = Vec::new();
    for message in samples() {
        message.write(&mut wire).expect("memory takes everything");
    }
    wire
}

/// The most that [`read_all`] may report.
#[cfg(feature = "testing")]
pub(crate) const LARGEST_BUFFER: usize = MAX_MESSAGE;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meet::store::parts::pack;

    #[test]
    fn messages_survive_the_wire_and_nonsense_is_refused() {
        let messages = samples();
        let mut wire = Vec::new();
        for message in &messages {
            message.write(&mut wire).unwrap();
        }
        let mut input = wire.as_slice();
        for message in &messages {
            let mut buffer = Vec::new();
            let read = Message::read(&mut input, &mut buffer).unwrap();
            assert_eq!(&read, message);
        }
        for nonsense in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[1, 0, 0, 0, 99],
            &[2, 0, 0, 0, 4, 4],
            // A text that claims to be longer than its message.
            &[8, 0, 0, 0, 5, 0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0],
        ] {
            let mut buffer = Vec::new();
            assert!(
                Message::read(&mut &*nonsense, &mut buffer).is_err(),
                "{nonsense:?}"
            );
            assert!(buffer.capacity() <= MAX_MESSAGE);
        }
    }

    #[test]
    fn the_longest_part_goes_into_a_message_of_its_own() {
        let part = vec![7; MAX_VALUE];
        let pieces = pack([Some(&part[..]), None, Some(&part[..])].into_iter()).unwrap();
        assert_eq!(pieces.len(), 3);
        for (first, packed) in &pieces {
            let (id, first) = (u64::MAX, *first);
            let message = Message::Parts { id, first, packed };
            message.write(&mut Vec::new()).unwrap();
        }
    }

    #[test]
    fn what_is_too_long_is_cut_or_refused_before_it_is_sent() {
        let mut wire = Vec::new();
        let reason = "ä".repeat(MAX_REASON);
        Message::ended(1, &Fate::Aborted(reason))
            .write(&mut wire)
            .unwrap();
        let mut buffer = Vec::new();
        let read = Message::read(&mut wire.as_slice(), &mut buffer).unwrap();
        let Message::Ended {
            fate: Fate::Aborted(reason),
            ..
        } = read
        else {
            panic!("{read:?}");
        };
        assert!(reason.starts_with("ää") && reason.ends_with("ä ..."));
        assert!(reason.len() < MAX_REASON + 5);
        for (key, len) in [
            ("k".repeat(MAX_KEY + 1), 1),
            ("k".to_owned(), MAX_VALUE + 1),
        ] {
            let value = vec![0; len];
            let set = Message::Set {
                key: &key,
                value: &value,
            };
            let gather = Message::Gather {
                id: 1,
                key: &key,
                place: 0,
                members: 2,
                part: &value,
            };
            for message in [set, gather] {
                assert!(message.write(&mut Vec::new()).is_err());
            }
        }
    }
}
