//! Parts of a gathering, one after the other in the bytes of a message.

use std::io;

/// Bytes of a packed part besides its own: whether it is there, and its length.
const OVERHEAD: usize = 4;

/// The most bytes that go into one message, unless a single part has more.
const PACKED: usize = 1 << 16;

/// Packs `parts`, of which some may not be there, into as many pieces as it takes. Each comes with the number of its first part.
///
/// # Errors
/// When memory cannot be had.
pub(super) fn pack<'a>(
    parts: impl Iterator<Item = Option<&'a [u8]>>,
) -> io::Result<Vec<(u64, Vec<u8>)>> {
    let mut pieces = Vec::new();
    let (mut first, mut piece) = (0, Vec::new());
    for (number, part) in parts.enumerate() {
        let room = part.map_or(0, <[u8]>::len) + OVERHEAD;
        if !piece.is_empty() && piece.len() + room > PACKED {
            pieces.push((first, std::mem::take(&mut piece)));
            first = number as u64;
        }
        piece = postcard::to_extend(&part, piece).map_err(io::Error::other)?;
    }
    pieces.push((first, piece));
    Ok(pieces)
}

/// The parts of one piece. Ends at what is none. Each takes at least a byte of `packed`, and nothing is allocated.
pub(super) fn unpack(mut packed: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    std::iter::from_fn(move || {
        let (part, rest) = postcard::take_from_bytes(packed).ok()?;
        packed = rest;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_of_any_length_come_out_as_they_went_in(parts in vec(option::of(vec(any::<u8>(), 0..20_000)), 1..40)) {
            let pieces = pack(parts.iter().map(Option::as_deref)).unwrap();
            let mut unpacked: Vec<Option<Vec<u8>>> = Vec::new();
            for (first, piece) in &pieces {
                prop_assert_eq!(*first, unpacked.len() as u64);
                prop_assert!(piece.len() <= PACKED);
                unpacked.extend(unpack(piece).map(|part| part.map(<[u8]>::to_vec)));
            }
            prop_assert_eq!(unpacked, parts);
        }
    }

    #[test]
    fn what_is_no_part_ends_the_list() {
        assert_eq!(unpack(b"").count(), 0);
        assert_eq!(unpack(b"\0\x02").count(), 1);
        // A part that claims to be longer than what there is.
        assert_eq!(unpack(b"\x01\xff\xff\xff\xff\x0f").count(), 0);
    }
}
