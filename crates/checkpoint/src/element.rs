//! Conversion between the bytes of a file and `f32` or `f64`.

use half::{bf16, f16};
use safetensors::Dtype;

/// The kinds of floating-point numbers that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatKind {
    /// IEEE single precision: what is in memory, unchanged.
    F32,
    /// bfloat16, rounded to nearest, ties to even.
    Bf16,
}

impl FloatKind {
    /// The safetensors name of the kind.
    pub fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
        }
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// Appends `values` to `bytes`, little-endian.
    pub fn encode(self, values: &[f32], bytes: &mut Vec<u8>) {
        match self {
            Self::F32 => bytes.extend_from_slice(bytemuck::cast_slice(values)),
            Self::Bf16 => {
                bytes.reserve(2 * values.len());
                bytes.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()));
            }
        }
    }
}

/// Bytes of one element of a kind that [`decode`] understands, `None` for all others.
pub(crate) fn float_size(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F64 => Some(8),
        Dtype::F32 => Some(4),
        Dtype::BF16 | Dtype::F16 => Some(2),
        _ => None,
    }
}

/// Converts little-endian elements to `f32`, one per place in `out`. Kinds without a [`float_size`] leave `out` as it is.
pub(crate) fn decode(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::F32 => convert(bytes, out, f32::from_le_bytes),
        Dtype::BF16 => convert(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F16 => convert(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::F64 => convert(bytes, out, |b| f64::from_le_bytes(b) as f32),
        _ => {}
    }
}

/// As [`decode`], to `f64`, which holds all that any of the kinds can. Other kinds are no elements.
pub(crate) fn decode_f64(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    fn elements<const N: usize>(bytes: &[u8], element: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        bytes
            .as_chunks::<N>()
            .0
            .iter()
            .map(|&b| element(b))
            .collect()
    }
    match dtype {
        Dtype::F64 => elements(bytes, f64::from_le_bytes),
        Dtype::F32 => elements(bytes, |b| f32::from_le_bytes(b).into()),
        Dtype::BF16 => elements(bytes, |b| bf16::from_le_bytes(b).to_f64()),
        Dtype::F16 => elements(bytes, |b| f16::from_le_bytes(b).to_f64()),
        _ => Vec::new(),
    }
}

fn convert<const N: usize>(bytes: &[u8], out: &mut [f32], element: impl Fn([u8; N]) -> f32) {
    let (elements, rest) = bytes.as_chunks::<N>();
    debug_assert!(rest.is_empty() && elements.len() == out.len());
    for (to, &from) in out.iter_mut().zip(elements) {
        *to = element(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kind_can_hold_survives_and_the_rest_is_rounded_to_even() {
        let values = [0.0, -1.5, 3.140625, f32::INFINITY, 1.0 + 1.0 / 256.0];
        let mut bytes = Vec::new();
        FloatKind::Bf16.encode(&values, &mut bytes);
        let mut back = [0.0; 5];
        decode(Dtype::BF16, &bytes, &mut back);
        assert_eq!(back, [0.0, -1.5, 3.140625, f32::INFINITY, 1.0]);

        let half: Vec<u8> = values[..3]
            .iter()
            .flat_map(|&v| f16::from_f32(v).to_le_bytes())
            .collect();
        decode(Dtype::F16, &half, &mut back[..3]);
        assert_eq!(back[..3], values[..3]);

        let double: Vec<u8> = values
            .iter()
            .flat_map(|&v| f64::from(v).to_le_bytes())
            .collect();
        decode(Dtype::F64, &double, &mut back);
        assert_eq!(back, values);
    }

    #[test]
    fn every_kind_is_read_as_f64_without_a_loss() {
        let third: f64 = 1.0 / 3.0;
        let bytes = third.to_le_bytes();
        assert_eq!(decode_f64(Dtype::F64, &bytes), [third]);
        let single = third as f32;
        let bytes = single.to_le_bytes();
        assert_eq!(decode_f64(Dtype::F32, &bytes), [f64::from(single)]);
        let bytes = bf16::from_f32(-1.5).to_le_bytes();
        assert_eq!(decode_f64(Dtype::BF16, &bytes), [-1.5]);
        let bytes = f16::from_f32(-1.5).to_le_bytes();
        assert_eq!(decode_f64(Dtype::F16, &bytes), [-1.5]);
    }
}
