//! What a stranger may send to the ports of a run, and what a member that does something else may send to the others.

use tandem_comm::testing::frames;

pub mod seeds {
    use super::frames;

    pub fn handshake() -> Vec<Vec<u8>> {
        vec![frames::handshake_sample()]
    }

    pub fn store() -> Vec<Vec<u8>> {
        vec![frames::store_sample()]
    }

    pub fn operation() -> Vec<Vec<u8>> {
        frames::operation_samples()
    }
}

/// The first bytes of a connection, of whoever does not know the secret.
pub fn handshake(bytes: &[u8]) {
    assert!(!frames::handshake_frame(bytes), "a stranger was let in");
}

pub fn store(bytes: &[u8]) {
    frames::store_frames(bytes);
}

/// The header of an operation over TCP or in shared memory.
pub fn operation(bytes: &[u8]) {
    assert!(!frames::operation_header(bytes).is_empty());
}
