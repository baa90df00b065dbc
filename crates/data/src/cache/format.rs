//! The bytes of a token cache.
//!
//! | bytes | content |
//! |---|---|
//! | 144 | header |
//! | 4 per token | tokens, `u32`; the highest bit says that a token is not trained |
//! | 0 or 4 | zeros, so that what follows is aligned |
//! | 8 per document | where its tokens end, `u64` |
//!
//! Numbers have the byte order of the machine. The first of them, [`MAGIC`], is another number where that is different.

use std::ops::Range;

use super::Verify;

/// Bytes before the first token.
pub(super) const HEADER_BYTES: usize = 144;

/// The first eight bytes.
const MAGIC: u64 = u64::from_be_bytes(*b"TANDEMTK");

/// Changes whenever the same dataset and tokenizer would give another file.
pub(super) const VERSION: u32 = 2;

/// Where the header's own checksum begins; it reaches to the header's end.
const CHECKSUM_AT: usize = 120;

/// What the first bytes say about the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) eos_id: u32,
    pub(super) pad_id: u32,
    /// Tokens between documents: 1 (EOS), or 0 when the documents end with EOS themselves.
    pub(super) separator: u64,
    /// What the documents were: an [`crate::ExampleKind`] as a number.
    pub(super) kind: u8,
    pub(super) documents: u64,
    pub(super) tokens: u64,
    /// Tokens of them that are trained.
    pub(super) trained: u64,
    /// Documents that are left out because a template refuses them.
    pub(super) refused: u64,
    /// blake3 of all that follows the header.
    pub(super) body: [u8; 32],
    /// blake3 of what the tokens depend on.
    pub(super) key: [u8; 32],
}

/// Where things are, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) tokens: Range<usize>,
    pub(super) ends: Range<usize>,
}

impl Header {
    pub(super) fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend(MAGIC.to_ne_bytes());
        bytes.extend(VERSION.to_ne_bytes());
        bytes.extend(self.eos_id.to_ne_bytes());
        bytes.extend(self.pad_id.to_ne_bytes());
        bytes.extend((self.separator as u16).to_ne_bytes());
        bytes.extend(u16::from(self.kind).to_ne_bytes());
        bytes.extend(self.documents.to_ne_bytes());
        bytes.extend(self.tokens.to_ne_bytes());
        bytes.extend(self.trained.to_ne_bytes());
        bytes.extend(self.refused.to_ne_bytes());
        bytes.extend(self.body);
        bytes.extend(self.key);
        let checksum = blake3::hash(&bytes);
        bytes.extend(&checksum.as_bytes()[..HEADER_BYTES - CHECKSUM_AT]);
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(&bytes);
        header
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, &'static str> {
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err("it ends within the header");
        };
        if number(bytes, 0) != MAGIC {
            return Err("it is not a token cache of this kind of machine");
        }
        if small_number(bytes, 8) != VERSION {
            return Err("it has the format of another version");
        }
        let checksum = blake3::hash(&bytes[..CHECKSUM_AT]);
        if checksum.as_bytes()[..HEADER_BYTES - CHECKSUM_AT] != bytes[CHECKSUM_AT..] {
            return Err("its header does not fit its checksum");
        }
        Ok(Self {
            eos_id: small_number(bytes, 12),
            pad_id: small_number(bytes, 16),
            separator: u64::from(u16::from_ne_bytes([bytes[20], bytes[21]])),
            kind: u16::from_ne_bytes([bytes[22], bytes[23]]) as u8,
            documents: number(bytes, 24),
            tokens: number(bytes, 32),
            trained: number(bytes, 40),
            refused: number(bytes, 48),
            body: hash(bytes, 56),
            key: hash(bytes, 88),
        })
    }

    /// Where tokens and ends are, unless the counts are larger than any file.
    fn layout(&self) -> Option<Layout> {
        let token_bytes = usize::try_from(self.tokens).ok()?.checked_mul(4)?;
        let tokens = HEADER_BYTES..HEADER_BYTES.checked_add(token_bytes)?;
        let start = tokens.end.checked_next_multiple_of(8)?;
        let end_bytes = usize::try_from(self.documents).ok()?.checked_mul(8)?;
        let ends = start..start.checked_add(end_bytes)?;
        Some(Layout { tokens, ends })
    }
}

/// Takes the header off a file's bytes and checks that the rest fits it. The error says what does not.
pub(super) fn check(bytes: &[u8], verify: Verify) -> Result<(Header, Layout), &'static str> {
    let header = Header::from_bytes(bytes)?;
    let layout = header.layout().ok_or("its counts are impossible")?;
    if layout.ends.end != bytes.len() {
        return Err("its size does not fit its header");
    }
    if header.separator > 1 {
        return Err("it joins documents with more than one token");
    }
    if verify == Verify::Full {
        let mut hasher = blake3::Hasher::new();
        hasher.update_rayon(&bytes[HEADER_BYTES..]);
        if *hasher.finalize().as_bytes() != header.body {
            return Err("its content does not fit its checksum");
        }
        // A hash proves nothing to who can write another one.
        let mut ends = bytes[layout.ends.clone()].chunks_exact(8);
        let last = ends.try_fold(0, |before, end| {
            let mut number = [0; 8];
            number.copy_from_slice(end);
            Some(u64::from_ne_bytes(number)).filter(|end| *end > before)
        });
        if last != Some(header.tokens) {
            return Err("its documents do not follow each other to the last token");
        }
    }
    Ok((header, layout))
}

fn number(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(number)
}

fn small_number(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(number)
}

fn hash(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(&bytes[at..at + 32]);
    hash
}
