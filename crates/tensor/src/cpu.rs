//! Plain slices over CPU tensors, for kernels written in Rust.

use tch::{Device, Kind, Tensor};

/// True when `t` is an fp32 tensor whose elements lie one after another in host memory.
pub fn is_plain_f32(t: &Tensor) -> bool {
    t.device() == Device::Cpu && t.kind() == Kind::Float && t.is_contiguous()
}

/// Copies `values` into the flat fp32 tensor `target`, starting at element `offset`; to any device.
///
/// # Panics
/// When `target` is not one-dimensional fp32 or is too short.
pub fn write_f32(target: &Tensor, offset: usize, values: &[f32]) {
    assert_eq!((target.dim(), target.kind()), (1, Kind::Float));
    let mut part = target.narrow(0, offset as i64, values.len() as i64);
    if is_plain_f32(&part) {
        with_f32_mut(&part, |out| out.copy_from_slice(values));
    } else {
        part.copy_(&Tensor::from_slice(values));
    }
}

/// The elements of a flat tensor as fp32 on the host.
pub fn read_f32(source: &Tensor) -> Vec<f32> {
    let plain = source
        .to_device(Device::Cpu)
        .to_kind(Kind::Float)
        .contiguous();
    let mut values = vec![0.0; plain.numel()];
    plain.copy_data(&mut values, plain.numel());
    values
}

/// Runs `kernel` over the elements of `t`.
///
/// # Panics
/// When `t` is not [`is_plain_f32`].
pub(crate) fn with_f32<R>(t: &Tensor, kernel: impl FnOnce(&[f32]) -> R) -> R {
    assert!(is_plain_f32(t));
    if t.numel() == 0 {
        return kernel(&[]);
    }
    // SAFETY: the tensor is contiguous fp32 in host memory, so its `numel` elements start at `data_ptr`; the borrow of
    // `t` keeps the storage alive while `kernel` runs.
    kernel(unsafe { std::slice::from_raw_parts(t.data_ptr() as *const f32, t.numel()) })
}

/// Runs `kernel` over the elements of `t`, which it may change.
///
/// # Panics
/// When `t` is not [`is_plain_f32`].
pub(crate) fn with_f32_mut<R>(t: &Tensor, kernel: impl FnOnce(&mut [f32]) -> R) -> R {
    assert!(is_plain_f32(t));
    if t.numel() == 0 {
        return kernel(&mut []);
    }
    // SAFETY: as in `with_f32`; the callers in this crate pass each storage to one kernel argument only, so nothing
    // else reads or writes these elements while `kernel` runs.
    kernel(unsafe { std::slice::from_raw_parts_mut(t.data_ptr() as *mut f32, t.numel()) })
}

/// Runs `kernel` over the bits of the bf16 elements of `t`, which it may change.
///
/// # Panics
/// When `t` is not contiguous bf16 in host memory.
pub(crate) fn with_bf16_mut<R>(t: &Tensor, kernel: impl FnOnce(&mut [u16]) -> R) -> R {
    assert!(t.device() == Device::Cpu && t.kind() == Kind::BFloat16 && t.is_contiguous());
    if t.numel() == 0 {
        return kernel(&mut []);
    }
    // SAFETY: as in `with_f32_mut`; bf16 elements are two bytes and every bit pattern is a valid u16.
    kernel(unsafe { std::slice::from_raw_parts_mut(t.data_ptr() as *mut u16, t.numel()) })
}

/// The bits of `value` rounded to bf16, to nearest even, as libtorch rounds. NaN stays NaN.
#[inline]
pub(crate) fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    if value.is_nan() {
        0x7fc0
    } else {
        rounded as u16
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! What the tests of this crate share.

    use tch::{Device, Kind, Tensor};

    /// Normal numbers that depend on `seed` only.
    pub fn randn(shape: &[i64], seed: u64) -> Tensor {
        let numel: i64 = shape.iter().product();
        let mut values = vec![0f32; numel as usize];
        crate::random::fill_normal(&mut values, seed, "test", 0, 1.0);
        Tensor::from_slice(&values)
            .view(shape)
            .to_device(Device::Cpu)
    }

    /// Fails when shapes differ or an element differs by more than `tolerance`, absolutely and relatively.
    pub fn assert_close(label: &str, actual: &Tensor, expected: &Tensor, tolerance: f64) {
        assert_eq!(actual.size(), expected.size(), "{label}: shapes differ");
        let (a, e) = (
            actual.to_kind(Kind::Double).contiguous(),
            expected.to_kind(Kind::Double).contiguous(),
        );
        if a.numel() == 0 {
            return;
        }
        let excess = ((&a - &e).abs() - e.abs() * tolerance)
            .max()
            .double_value(&[]);
        assert!(
            excess <= tolerance,
            "{label}: off by {excess:e} beyond {tolerance:e}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounding_is_libtorchs() {
        let values: Vec<f32> = (0..4096u32)
            .map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9)))
            .chain([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, 1.0, 3.4e38])
            .filter(|v| !v.is_nan())
            .collect();
        let expected = Tensor::from_slice(&values).to_kind(Kind::BFloat16);
        with_bf16_mut(&expected, |bits| {
            for (value, bits) in values.iter().zip(bits.iter()) {
                assert_eq!(bf16_bits(*value), *bits, "{value:e}");
            }
        });
        assert_eq!(bf16_bits(f32::NAN) & 0x7fff, 0x7fc0);
    }

    #[test]
    fn flat_tensors_round_trip() {
        let t = Tensor::zeros([5], (Kind::Float, Device::Cpu));
        write_f32(&t, 2, &[1.0, 2.0]);
        assert_eq!(read_f32(&t), [0.0, 0.0, 1.0, 2.0, 0.0]);
    }
}
