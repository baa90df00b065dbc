//! Cutting a length into contiguous, possibly uneven, parts.

use std::ops::Range;

/// Part `index` of `len` items cut into `parts` contiguous ranges whose lengths differ by at most one; the
/// longer ones come first.
///
/// # Panics
/// When `index >= parts`.
pub fn partition(len: usize, parts: usize, index: usize) -> Range<usize> {
    partition_aligned(len, parts, index, 1)
}

/// As [`partition`], but every inner boundary is a multiple of `align` (the last part takes what is left).
///
/// # Panics
/// When `index >= parts` or `align` is zero.
pub fn partition_aligned(len: usize, parts: usize, index: usize, align: usize) -> Range<usize> {
    assert!(index < parts, "part {index} of {parts}");
    assert!(align > 0, "alignment 0");
    let units = len.div_ceil(align);
    let (each, longer) = (units / parts, units % parts);
    let boundary = |i: usize| ((i * each + i.min(longer)) * align).min(len);
    boundary(index)..boundary(index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_item_is_owned_exactly_once(len in 0usize..5000, parts in 1usize..17, align in 1usize..65) {
            let mut next = 0;
            for index in 0..parts {
                let part = partition_aligned(len, parts, index, align);
                prop_assert_eq!(part.start, next);
                prop_assert!(part.end >= part.start);
                if part.end != len {
                    prop_assert_eq!(part.end % align, 0);
                }
                next = part.end;
            }
            prop_assert_eq!(next, len);
        }

        #[test]
        fn parts_are_balanced(len in 0usize..5000, parts in 1usize..17) {
            let sizes: Vec<_> = (0..parts).map(|i| partition(len, parts, i).len()).collect();
            let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
            prop_assert!(most - least <= 1);
        }
    }
}
