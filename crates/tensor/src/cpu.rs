//! Tensors on the CPU as plain slices, which is what kernels work on.

pub(crate) mod element;

use tandem_torch::{Device, Kind, Tensor};

pub use element::without_kernels;
use element::{on_host, slice_mut};

/// True when `t` is an fp32 tensor whose elements lie one after another in host memory.
pub fn is_plain_f32(t: &Tensor) -> bool {
    on_host(t) && t.kind() == Kind::Float && t.is_contiguous()
}

/// Copies `values` into the flat fp32 tensor `target`, starting at element `offset`; to any device.
///
/// # Panics
/// When `target` is not one-dimensional fp32 or is too short.
pub fn write_f32(target: &Tensor, offset: usize, values: &[f32]) {
    assert_eq!((target.dim(), target.kind()), (1, Kind::Float));
    let part = target.narrow(0, offset as i64, values.len() as i64);
    if is_plain_f32(&part) {
        // SAFETY: nothing else touches the tensor during the copy, and `values` is not part of it: a caller that holds
        // a slice of a tensor's storage is inside a kernel, and kernels do not call this.
        unsafe { slice_mut::<f32>(&part) }.copy_from_slice(values);
    } else {
        part.copy_(&Tensor::from_slice(values));
    }
}

/// Copies the elements of the flat fp32 tensor `source` to `out`, from any device.
///
/// # Panics
/// When `source` is not one-dimensional fp32 or has another number of elements than `out`.
pub fn copy_f32(source: &Tensor, out: &mut [f32]) {
    assert_eq!((source.dim(), source.kind()), (1, Kind::Float));
    assert_eq!(source.numel(), out.len());
    source.to_device(Device::Cpu).copy_data(out, out.len());
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

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_tensors_round_trip() {
        let t = Tensor::zeros([5], (Kind::Float, Device::Cpu));
        write_f32(&t, 2, &[1.0, 2.0]);
        assert_eq!(read_f32(&t), [0.0, 0.0, 1.0, 2.0, 0.0]);
        let mut part = [9.0; 2];
        copy_f32(&t.narrow(0, 2, 2), &mut part);
        assert_eq!(part, [1.0, 2.0]);
    }
}
