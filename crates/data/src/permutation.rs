//! A random order of `0..len` that is computed, not stored.
//!
//! A Feistel network over the smallest domain of `2^(2k)` numbers that holds `len`, with cycle walking: whatever leaves
//! `0..len` goes through the network again (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002).
//! The domain has fewer than `4 * len` numbers, so four rounds of walking are expected at most.

/// Rounds of the network. Four make a pseudo-random permutation of a good round function (Luby and Rackoff); small
/// domains need more to look random.
const ROUNDS: usize = 8;

/// A permutation of `0..len`, one for each `(seed, epoch)`.
#[derive(Debug, Clone)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The permutation of `0..len` that `(seed, epoch)` stands for.
    pub fn new(len: u64, seed: u64, epoch: u64) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        let mut state = mix(seed ^ mix(epoch.wrapping_add(0x9e37_79b9_7f4a_7c15)));
        let keys = std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mix(state)
        });
        Self {
            len,
            half_bits: bits.div_ceil(2).max(1),
            keys,
        }
    }

    /// Where position `index` of the order leads.
    ///
    /// # Panics
    /// If `index` is not below `len`: walking from there would not end.
    pub fn at(&self, index: u64) -> u64 {
        assert!(
            index < self.len,
            "{index} is outside a permutation of {}",
            self.len
        );
        let mut value = self.network(index);
        while value >= self.len {
            value = self.network(value);
        }
        value
    }

    /// One pass through the network: a bijection of `0..2^(2 * half_bits)`.
    fn network(&self, value: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): every bit of the input moves every bit of the output.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_number_comes_once(len in 1u64..3000, seed: u64, epoch: u64) {
            let order = Permutation::new(len, seed, epoch);
            let mut seen = vec![false; len as usize];
            for index in 0..len {
                let value = order.at(index) as usize;
                prop_assert!(!std::mem::replace(&mut seen[value], true), "{value} comes twice");
            }
        }

        #[test]
        fn large_domains_stay_inside(len in 1u64..1 << 62, seed: u64, at in 0.0f64..1.0) {
            let index = ((len as f64 * at) as u64).min(len - 1);
            prop_assert!(Permutation::new(len, seed, 0).at(index) < len);
        }
    }

    #[test]
    fn seeds_and_epochs_give_different_orders() {
        let order = |seed, epoch| -> Vec<u64> {
            let permutation = Permutation::new(100, seed, epoch);
            (0..100).map(|index| permutation.at(index)).collect()
        };
        assert_eq!(order(1, 2), order(1, 2));
        assert_ne!(order(1, 2), order(1, 3));
        assert_ne!(order(1, 2), order(2, 2));
        // Seed and epoch must not be added up: epoch 1 of seed 0 is not epoch 0 of seed 1.
        assert_ne!(order(0, 1), order(1, 0));
        assert_ne!(order(0, 0), (0..100).collect::<Vec<_>>());
    }

    /// The stored order of a run must survive an update of this program.
    #[test]
    fn the_order_is_pinned() {
        let permutation = Permutation::new(10, 42, 0);
        let order: Vec<u64> = (0..10).map(|index| permutation.at(index)).collect();
        println!("{order:?}");
        assert_eq!(order, PINNED);
    }

    const PINNED: [u64; 10] = [9, 4, 3, 7, 8, 6, 0, 1, 5, 2];

    /// Chi-square over (position, value): with 16 * 16 cells the statistic has mean 255 and deviation 22.6.
    #[test]
    fn every_value_is_as_likely_everywhere() {
        let (len, draws) = (16u64, 8000u64);
        let mut counts = vec![0u64; (len * len) as usize];
        for seed in 0..draws {
            let order = Permutation::new(len, seed, 0);
            for index in 0..len {
                counts[(index * len + order.at(index)) as usize] += 1;
            }
        }
        let expected = draws as f64 / len as f64;
        let chi_square: f64 = counts
            .iter()
            .map(|&count| (count as f64 - expected).powi(2) / expected)
            .sum();
        println!("chi-square {chi_square:.1} over 256 cells");
        assert!(
            (130.0..380.0).contains(&chi_square),
            "chi-square {chi_square}"
        );
    }
}
