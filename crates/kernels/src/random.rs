//! Random numbers that depend on what is drawn, never on who draws it.
//!
//! Element `index` of tensor `name` is a pure function of `(seed, name, index)` (the counter-based idea of Salmon et
//! al., "Parallel random numbers: as easy as 1, 2, 3", SC'11), so any rank can draw any slice of a parameter and all
//! meshes start from the same weights.

use rayon::prelude::*;

/// Elements that one task draws; even, because the Box-Muller transform makes them in pairs.
const BLOCK: usize = 1 << 14;

/// Fills `out` with elements `start..start + out.len()` of the normal distribution `N(0, std^2)` that belongs to
/// `(seed, name)`.
pub fn fill_normal(out: &mut [f32], seed: u64, name: &str, start: u64, std: f32) {
    let key = key(seed, name);
    out.par_chunks_mut(BLOCK)
        .enumerate()
        .for_each(|(block, values)| {
            let first = start + (block * BLOCK) as u64;
            for (index, value) in (first..).zip(values) {
                *value = std * normal(key, index);
            }
        });
}

/// Fills `out` with elements `start..start + out.len()` of the numbers between 0 (excluded) and 1 that belong to `(seed, name)`.
pub fn fill_uniform(out: &mut [f32], seed: u64, name: &str, start: u64) {
    let random = Uniform::new(seed, name);
    for (index, value) in (start..).zip(out) {
        *value = random.at(index);
    }
}

/// The numbers between 0 (excluded) and 1 that belong to a seed and a name.
#[derive(Debug, Clone, Copy)]
pub struct Uniform {
    key: u64,
}

impl Uniform {
    /// Those of `(seed, name)`.
    pub fn new(seed: u64, name: &str) -> Self {
        Self {
            key: key(seed, name),
        }
    }

    /// Element `index` of them.
    #[inline(always)]
    pub fn at(&self, index: u64) -> f32 {
        uniform(mix(self.key ^ mix(index)) as u32)
    }
}

/// One number between 0 (excluded) and 1.
#[inline(always)]
fn uniform(bits: u32) -> f32 {
    ((bits >> 8) as f32 + 1.0) * (1.0 / 16_777_216.0)
}

/// Box-Muller: elements 2k and 2k+1 are the two outputs of pair k.
fn normal(key: u64, index: u64) -> f32 {
    let bits = mix(key ^ mix(index / 2));
    let radius = (-2.0 * uniform(bits as u32).ln()).sqrt();
    let angle = std::f32::consts::TAU * uniform((bits >> 32) as u32);
    if index.is_multiple_of(2) {
        radius * angle.cos()
    } else {
        radius * angle.sin()
    }
}

/// FNV-1a over the name, then mixed with the seed.
fn key(seed: u64, name: &str) -> u64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mix(hash ^ mix(seed))
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
#[inline(always)]
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_slice_equals_the_same_part_of_the_whole() {
        let mut whole = vec![0.0; 100_000];
        fill_normal(&mut whole, 7, "layer.weight", 0, 0.02);
        for (start, len) in [(0, 1), (1, 3), (16_383, 40_001), (99_999, 1)] {
            let mut part = vec![0.0; len];
            fill_normal(&mut part, 7, "layer.weight", start as u64, 0.02);
            assert_eq!(part, whole[start..start + len]);
        }
    }

    #[test]
    fn moments_are_normal_and_keys_matter() {
        let mut a = vec![0.0; 200_000];
        fill_normal(&mut a, 1, "a", 0, 2.0);
        let mean = a.iter().map(|&x| f64::from(x)).sum::<f64>() / a.len() as f64;
        let variance = a.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / a.len() as f64;
        let fourth = a.iter().map(|&x| f64::from(x).powi(4)).sum::<f64>() / a.len() as f64;
        assert!(mean.abs() < 0.02, "{mean}");
        assert!((variance - 4.0).abs() < 0.05, "{variance}");
        assert!((fourth / variance.powi(2) - 3.0).abs() < 0.1, "{fourth}");
        let mut b = vec![0.0; 10];
        fill_normal(&mut b, 2, "a", 0, 2.0);
        assert_ne!(a[..10], b);
        fill_normal(&mut b, 1, "b", 0, 2.0);
        assert_ne!(a[..10], b);
    }

    #[test]
    fn uniform_numbers_fill_the_interval_and_any_slice_is_that_of_the_whole() {
        let mut whole = vec![0.0; 100_000];
        fill_uniform(&mut whole, 7, "a", 0);
        let mean = whole.iter().map(|&x| f64::from(x)).sum::<f64>() / 1e5;
        assert!((mean - 0.5).abs() < 0.005, "{mean}");
        assert!(whole.iter().all(|&x| 0.0 < x && x <= 1.0));
        let below = whole.iter().filter(|&&x| x < 0.1).count();
        assert!((9_700..10_300).contains(&below), "{below}");
        let mut part = vec![0.0; 40];
        fill_uniform(&mut part, 7, "a", 517);
        assert_eq!(part, whole[517..557]);
    }
}
