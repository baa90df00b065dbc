//! What goes over a store connection: length-prefixed messages, integers in little-endian order.

use std::io::{self, Read, Write};

use crate::health::Fate;

/// Proof that the other side is one of us, in a protocol that it knows.
const MAGIC: u64 = u64::from_le_bytes(*b"TANDEM\0\x01");

/// Keys and values are addresses and the like. Whatever claims to be longer is not ours.
const MAX_MESSAGE: u32 = 1 << 20;

/// A message in either direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// The first message of a rank.
    Hello {
        world_size: u64,
        rank: u64,
    },
    Set {
        key: String,
        value: Vec<u8>,
    },
    /// Answered as soon as the key exists.
    Get {
        id: u64,
        key: String,
    },
    /// From a rank: how it ends. From the server: how `rank` ended.
    Ended {
        rank: u64,
        fate: Fate,
    },
    /// The server's answer to a hello that it likes.
    Welcome,
    /// The server's answer to any other.
    Refused {
        reason: String,
    },
    /// `rank` has connected.
    Joined {
        rank: u64,
    },
    /// The answer to `Get`.
    Value {
        id: u64,
        value: Vec<u8>,
    },
}

impl Message {
    /// # Errors
    /// When the connection is broken.
    pub(super) fn write(&self, stream: &mut impl Write) -> io::Result<()> {
        let mut out = Encoder(vec![0; 4]);
        match self {
            Self::Hello { world_size, rank } => {
                out.tag(1).number(MAGIC).number(*world_size).number(*rank)
            }
            Self::Set { key, value } => out.tag(2).bytes(key.as_bytes()).bytes(value),
            Self::Get { id, key } => out.tag(3).number(*id).bytes(key.as_bytes()),
            Self::Ended { rank, fate } => {
                let (kind, reason) = match fate {
                    Fate::Finished => (0, ""),
                    Fate::Lost => (1, ""),
                    Fate::Aborted(reason) => (2, reason.as_str()),
                    Fate::Silent => (3, ""),
                };
                out.tag(4)
                    .number(*rank)
                    .number(kind)
                    .bytes(reason.as_bytes())
            }
            Self::Welcome => out.tag(5),
            Self::Refused { reason } => out.tag(6).bytes(reason.as_bytes()),
            Self::Joined { rank } => out.tag(7).number(*rank),
            Self::Value { id, value } => out.tag(8).number(*id).bytes(value),
        };
        let mut message = out.0;
        let len = u32::try_from(message.len() - 4)
            .ok()
            .filter(|len| *len <= MAX_MESSAGE)
            .ok_or_else(|| io::Error::other("the message is too long for the store"))?;
        message[..4].copy_from_slice(&len.to_le_bytes());
        // One call, so that two threads' messages do not mix and no half message waits for the other half.
        stream.write_all(&message)
    }

    /// # Errors
    /// When the connection is broken or the other side does not speak this protocol.
    pub(super) fn read(stream: &mut impl Read) -> io::Result<Self> {
        let mut len = [0; 4];
        stream.read_exact(&mut len)?;
        let len = u32::from_le_bytes(len);
        if len > MAX_MESSAGE {
            return Err(not_ours());
        }
        let mut message = vec![0; len as usize];
        stream.read_exact(&mut message)?;
        let mut input = Decoder(&message);
        let message = input.message().ok_or_else(not_ours)?;
        if input.0.is_empty() {
            Ok(message)
        } else {
            Err(not_ours())
        }
    }
}

fn not_ours() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the other side does not speak this protocol",
    )
}

struct Encoder(Vec<u8>);

impl Encoder {
    fn tag(&mut self, tag: u8) -> &mut Self {
        self.0.push(tag);
        self
    }

    fn number(&mut self, number: u64) -> &mut Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }
}

struct Decoder<'a>(&'a [u8]);

impl Decoder<'_> {
    fn message(&mut self) -> Option<Message> {
        let (tag, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(match tag {
            1 => {
                if self.number()? != MAGIC {
                    return None;
                }
                Message::Hello {
                    world_size: self.number()?,
                    rank: self.number()?,
                }
            }
            2 => Message::Set {
                key: self.text()?,
                value: self.bytes()?,
            },
            3 => Message::Get {
                id: self.number()?,
                key: self.text()?,
            },
            4 => {
                let rank = self.number()?;
                let kind = self.number()?;
                let reason = self.text()?;
                let fate = match kind {
                    0 => Fate::Finished,
                    1 => Fate::Lost,
                    2 => Fate::Aborted(reason),
                    3 => Fate::Silent,
                    _ => return None,
                };
                Message::Ended { rank, fate }
            }
            5 => Message::Welcome,
            6 => Message::Refused {
                reason: self.text()?,
            },
            7 => Message::Joined {
                rank: self.number()?,
            },
            8 => Message::Value {
                id: self.number()?,
                value: self.bytes()?,
            },
            _ => return None,
        })
    }

    fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }

    fn bytes(&mut self) -> Option<Vec<u8>> {
        let len = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes.to_vec())
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire_and_nonsense_is_refused() {
        let messages = [
            Message::Hello {
                world_size: 4,
                rank: 3,
            },
            Message::Set {
                key: "k".into(),
                value: vec![1, 2],
            },
            Message::Get {
                id: 9,
                key: "k".into(),
            },
            Message::Ended {
                rank: 2,
                fate: Fate::Aborted("NaN".into()),
            },
            Message::Ended {
                rank: 2,
                fate: Fate::Finished,
            },
            Message::Welcome,
            Message::Refused {
                reason: "no".into(),
            },
            Message::Joined { rank: 1 },
            Message::Value {
                id: 9,
                value: Vec::new(),
            },
        ];
        let mut wire = Vec::new();
        for message in &messages {
            message.write(&mut wire).unwrap();
        }
        let mut input = wire.as_slice();
        for message in &messages {
            assert_eq!(&Message::read(&mut input).unwrap(), message);
        }
        for nonsense in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[1, 0, 0, 0, 99],
            &[2, 0, 0, 0, 6, 0],
        ] {
            assert!(Message::read(&mut &*nonsense).is_err(), "{nonsense:?}");
        }
    }
}
