//! A hash of a tensor's bits, for finding replicas that have drifted apart.

use tandem_torch::{Device, Kind, Tensor};
use xxhash_rust::xxh3::xxh3_64;

/// A 64-bit hash of the exact bits of `t` (as i64, which collectives can carry). Equal tensors give equal numbers on
/// any device; different ones differ with overwhelming probability.
pub fn of(t: &Tensor) -> i64 {
    let bytes = t
        .to_device(Device::Cpu)
        .contiguous()
        .flatten(0, -1)
        .view_dtype(Kind::Uint8);
    if bytes.numel() == 0 {
        return 0;
    }
    // SAFETY: a contiguous byte tensor in host memory holds `numel` bytes at `host_ptr`, and `bytes` outlives the slice.
    let slice = unsafe { std::slice::from_raw_parts(bytes.host_ptr() as *const u8, bytes.numel()) };
    xxh3_64(slice) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::randn;

    #[test]
    fn one_flipped_bit_changes_the_hash() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let a = randn(&[3, 100], 1).to_kind(kind);
            let b = a.copy();
            assert_eq!(of(&a), of(&b));
            let element = b.get(2).narrow(0, 57, 1);
            element.copy_(&(&element * 1.01));
            assert_ne!(of(&a), of(&b));
        }
        assert_eq!(of(&Tensor::zeros([0], (Kind::Float, Device::Cpu))), 0);
    }
}
