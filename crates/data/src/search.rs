//! Binary search over what is computed from an index.

/// The first of `0..len` for which `is_before` is false, or `len`. It must not become true again after that.
pub(crate) fn partition_index(len: usize, is_before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, len);
    while low < high {
        let middle = low.midpoint(high);
        if is_before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::partition_index;

    #[test]
    fn the_border_is_found_wherever_it_is() {
        for len in 0..20 {
            for border in 0..=len {
                assert_eq!(partition_index(len, |index| index < border), border);
            }
        }
    }
}
