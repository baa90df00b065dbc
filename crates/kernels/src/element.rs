//! The kinds of numbers that kernels compute with, and their conversions.

use half::bf16;

/// A floating point kind that kernels widen to fp32, compute in, and round back from.
pub trait Element: Copy + Send + Sync + 'static {
    /// Exact.
    fn widen(self) -> f32;
    /// To nearest even, as libtorch rounds.
    fn round(value: f32) -> Self;

    /// The same elements, where this is the kind.
    #[inline(always)]
    fn as_bf16<const N: usize>(_elements: &mut [Self; N]) -> Option<&mut [bf16; N]> {
        None
    }
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn round(value: f32) -> Self {
        value
    }
}

// The conversions of `half` look the processor up at run time or branch on NaN; these compile to vector code.
impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn round(value: f32) -> Self {
        let bits = value.to_bits();
        // The carry of a NaN's payload could reach the sign: a NaN becomes the quiet one instead.
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let rounded = if value.is_nan() { 0x7fc0 } else { rounded };
        Self::from_bits(rounded as u16)
    }

    #[inline(always)]
    fn as_bf16<const N: usize>(elements: &mut [Self; N]) -> Option<&mut [Self; N]> {
        Some(elements)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_to_nearest_even_and_widens_exactly() {
        let values = (0..1u32 << 20)
            .map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9)))
            .chain([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, 1.0, 3.4e38])
            // Halfway between two neighbours: to the even one, down and up.
            .chain([0x3f80_8000, 0x3f81_8000, 0x3f80_7fff, 0x3f80_8001].map(f32::from_bits))
            .filter(|v| !v.is_nan());
        for value in values {
            let (rounded, expected) = (<bf16 as Element>::round(value), bf16::from_f32(value));
            assert_eq!(rounded.to_bits(), expected.to_bits(), "{value:e}");
            assert_eq!(rounded.widen(), expected.to_f32());
        }
        for nan in [f32::NAN, -f32::NAN, f32::from_bits(0x7fff_ffff)] {
            assert!(<bf16 as Element>::round(nan).is_nan());
        }
    }
}
