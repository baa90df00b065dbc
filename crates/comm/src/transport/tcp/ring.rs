//! How much of a member's contribution may have arrived and wait for the others' to be reduced with.

/// Less is not worth reducing while more is to come.
pub(super) const REDUCE_BYTES: usize = 64 << 10;

/// Bytes of a member's ring in a group of few.
const MOST: usize = 1 << 19;

/// Bytes of all members' rings together, as far as [`LEAST`] allows.
const ALL: usize = 16 << 20;

/// Bytes of a member's ring in a group of many.
const LEAST: usize = 4 << 10;

/// Bytes of a ring in a group of so many members that contribute so many bytes each. A power of two and thereby a multiple of
/// all element sizes, so that no element lies across its end; no more than is needed, and together not much, however many
/// members there are.
pub fn ring_bytes(members: usize, contribution: usize) -> usize {
    let each = (ALL / members.next_power_of_two()).clamp(LEAST, MOST);
    contribution.min(each).next_power_of_two().max(LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_are_as_large_as_is_needed_and_together_no_larger_than_they_may_be() {
        for (members, contribution, ring) in [
            (2, 0, LEAST),
            (2, 5000, 8192),
            (2, 1 << 30, MOST),
            (32, 1 << 30, MOST),
            (33, 1 << 30, MOST / 2),
            (256, 1 << 30, 64 << 10),
            (1024, 1 << 30, 16 << 10),
            (1024, 8, LEAST),
            (100_000, 1 << 30, LEAST),
        ] {
            assert_eq!(ring_bytes(members, contribution), ring, "{members}");
        }
    }
}
