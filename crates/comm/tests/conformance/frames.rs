//! Any bytes at all, into whatever reads bytes of strangers: nothing panics, and memory stays within its limits.

use proptest::collection::vec;
use proptest::prelude::*;
use tandem_comm::testing::frames::{
    handshake_frame, handshake_sample, operation_header, store_frames, store_sample,
};

/// Changes to good bytes: at a place, what to do and with which byte.
fn changes() -> impl Strategy<Value = Vec<(usize, u8, u8)>> {
    vec((any::<usize>(), 0u8..4, any::<u8>()), 1..12)
}

fn changed(mut bytes: Vec<u8>, changes: &[(usize, u8, u8)]) -> Vec<u8> {
    for (at, how, byte) in changes {
        let at = at % (bytes.len() + 1);
        match how {
            0 if at < bytes.len() => bytes[at] = *byte,
            1 if at < bytes.len() => bytes[at] ^= 1 << (byte % 8),
            2 => bytes.insert(at, *byte),
            _ => bytes.truncate(at.max(1)),
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes(bytes in vec(any::<u8>(), 0..600)) {
        prop_assert!(!handshake_frame(&bytes));
        store_frames(&bytes);
        operation_header(&bytes);
    }

    #[test]
    fn messages_of_any_kind_and_length(len in any::<u32>(), tag in 0u8..12, bytes in vec(any::<u8>(), 0..300)) {
        for len in [len, bytes.len() as u32 + 1] {
            let mut frame = len.to_le_bytes().to_vec();
            frame.push(tag);
            frame.extend(&bytes);
            store_frames(&frame);
        }
    }

    #[test]
    fn changed_messages(changes in changes()) {
        let whole = store_sample();
        prop_assert!(store_frames(&whole) > 5, "the sample is good");
        store_frames(&changed(whole, &changes));
    }

    #[test]
    fn changed_handshakes(changes in changes()) {
        prop_assert!(!handshake_frame(&changed(handshake_sample(), &changes)));
    }
}
