//! What the ranks of one run know and nobody else does.

use std::fmt;
use std::io;

/// Bytes of a secret, of a nonce and of a proof.
pub(crate) const SECRET_BYTES: usize = 32;

/// Shorter texts could be guessed.
const SHORTEST_TEXT: usize = 16;

/// No text that somebody made up is longer.
const LONGEST_TEXT: usize = 4096;

/// The secret of a run. Ranks prove to each other that they have it, and never send it ([`WorldConfig`](crate::WorldConfig)).
#[derive(Clone)]
pub struct RunSecret([u8; SECRET_BYTES]);

/// Why a text is no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// It could be guessed.
    #[error(
        "it has {0} bytes; a secret has at least {SHORTEST_TEXT}, such as the output of `openssl rand -hex 32`"
    )]
    TooShort(usize),
    /// It is something else.
    #[error("it has {0} bytes; a secret has at most {LONGEST_TEXT}")]
    TooLong(usize),
}

impl RunSecret {
    /// 256 bits from the system's source of randomness. For all ranks that this value reaches.
    ///
    /// # Errors
    /// When the system has none.
    pub fn random() -> io::Result<Self> {
        Ok(Self(random_bytes()?))
    }

    /// The secret that everybody makes of the same text; white space around it does not count.
    ///
    /// # Errors
    /// [`SecretError`], which does not repeat the text.
    pub fn from_text(text: &str) -> Result<Self, SecretError> {
        let text = text.trim();
        match text.len() {
            len if len < SHORTEST_TEXT => Err(SecretError::TooShort(len)),
            len if len > LONGEST_TEXT => Err(SecretError::TooLong(len)),
            _ => Ok(Self(blake3::derive_key(
                "tandem run secret, given",
                text.as_bytes(),
            ))),
        }
    }

    /// What stands for a secret where nobody has given one: made of things that all ranks know, so that runs do not mix.
    /// Whoever knows these things too can guess it.
    pub fn guessable(known: &str) -> Self {
        Self(blake3::derive_key(
            "tandem run secret, derived",
            known.as_bytes(),
        ))
    }

    /// A proof that its maker knows the secret, good for exactly `message`.
    pub(crate) fn proof(&self, message: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.0, message)
    }
}

/// Nothing that is printed shows it.
impl fmt::Debug for RunSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RunSecret(..)")
    }
}

/// Bytes that nobody can foresee.
///
/// # Errors
/// When the system has no source of randomness.
pub(crate) fn random_bytes() -> io::Result<[u8; SECRET_BYTES]> {
    let mut bytes = [0; SECRET_BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_text_is_the_same_secret_and_nothing_shows_it() {
        let text = "correct horse battery staple";
        let proof = |secret: RunSecret| secret.proof(b"message");
        let of = |text: &str| proof(RunSecret::from_text(text).unwrap());
        assert_eq!(of(text), of(&format!("  {text}\n")));
        assert_ne!(of(text), of("correct horse battery stable"));
        assert_ne!(of(text), proof(RunSecret::guessable(text)));
        assert_ne!(
            proof(RunSecret::random().unwrap()),
            proof(RunSecret::random().unwrap())
        );
        let short = RunSecret::from_text("hunter2").unwrap_err();
        assert_eq!(short, SecretError::TooShort(7));
        assert!(RunSecret::from_text(&"x".repeat(5000)).is_err());
        let shown = format!("{:?}", RunSecret::from_text(text).unwrap());
        assert_eq!(shown, "RunSecret(..)");
    }
}
