//! Whatever a stranger may send, into everything that reads it. For property tests, and for a fuzzer: each function takes any
//! bytes, and panics where something is wrong.

use crate::collective::Signature;
use crate::meet::handshake;
use crate::meet::secret::RunSecret;
use crate::meet::store::wire;

/// The first bytes of a connection to the store or to a group's TCP port. Returns whether they were let in, which nobody is
/// who does not know a secret that is drawn anew.
pub fn handshake_frame(bytes: &[u8]) -> bool {
    let secret = RunSecret::random().expect("the system has randomness");
    let (admitted, kept) = handshake::answer_to(bytes, &secret);
    assert!(kept < 256, "{kept} bytes for a stranger");
    admitted
}

/// What follows on a connection to the store. Returns how many messages it was.
pub fn store_frames(bytes: &[u8]) -> usize {
    let (count, largest) = wire::read_all(bytes);
    assert!(
        largest <= wire::LARGEST_BUFFER,
        "{largest} bytes of memory for {} that came",
        bytes.len()
    );
    count
}

/// Good messages of every kind, for a fuzzer to begin with.
pub fn store_sample() -> Vec<u8> {
    wire::sample()
}

/// A handshake as a caller with another secret would send it, for a fuzzer to begin with.
pub fn handshake_sample() -> Vec<u8> {
    handshake::sample(&RunSecret::guessable("another"))
}

/// Headers of good operations, for a fuzzer to begin with.
pub fn operation_samples() -> Vec<Vec<u8>> {
    let signatures = Signature::samples();
    let wire = |signature: Signature| signature.encode().map(u64::to_le_bytes).concat();
    signatures.into_iter().map(wire).collect()
}

/// The header of an operation over TCP or in shared memory, as a member that does something else sends it: it is compared and
/// described, never obeyed. Returns the description.
pub fn operation_header(bytes: &[u8]) -> String {
    let mut words = [0; Signature::WORDS];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks(8)) {
        let mut whole = [0; 8];
        whole[..chunk.len()].copy_from_slice(chunk);
        *word = u64::from_le_bytes(whole);
    }
    if let Some(signature) = Signature::decode(words) {
        let again = Signature::decode(signature.encode());
        assert_eq!(
            again,
            Some(signature),
            "a header changes when it is passed on"
        );
    }
    let text = Signature::describe(words);
    assert!(text.len() < 256, "{text}");
    text
}
