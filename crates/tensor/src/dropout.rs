//! Dropout of activations: on the host through a kernel that draws as it goes, elsewhere with a mask that the host has drawn.

use tandem_kernels::dropout;
pub use tandem_kernels::dropout::Mask;
use tandem_torch::Tensor;

use crate::cpu::element::{is_plain, slice, slice_mut, with_element};

/// `x [tokens, features]` less what is dropped; what stays is multiplied so that sums stay what they were on average.
pub fn forward(x: &Tensor, mask: Mask) -> Tensor {
    fused_forward(x, mask).unwrap_or_else(|| x * drawn(x, mask))
}

/// Adds `x [tokens, features]` less what is dropped to `sum`, in its shape.
pub fn add_(sum: &Tensor, x: &Tensor, mask: Mask) {
    if fused_add(sum, x, mask).is_none() {
        sum.add_(&(x * drawn(x, mask)));
    }
}

fn fused_forward(x: &Tensor, mask: Mask) -> Option<Tensor> {
    with_element!(x.kind(), T => {
        let columns = *x.size().get(1)? as usize;
        if !is_plain::<T>(x) {
            return None;
        }
        let y = x.empty_like();
        // SAFETY: `y` was made here.
        dropout::forward(slice::<T>(x), columns, mask, unsafe { slice_mut::<T>(&y) });
        Some(y)
    })
}

fn fused_add(sum: &Tensor, x: &Tensor, mask: Mask) -> Option<()> {
    with_element!(x.kind(), T => {
        let columns = *x.size().get(1)? as usize;
        if !is_plain::<T>(x) || !is_plain::<T>(sum) || sum.size() != x.size() {
            return None;
        }
        // SAFETY: a sum is never one of the tensors that are added to it.
        dropout::add(slice::<T>(x), columns, mask, unsafe { slice_mut::<T>(sum) });
        Some(())
    })
}

/// What the elements of `x` are multiplied with: 0, or what makes up for the zeros.
fn drawn(x: &Tensor, mask: Mask) -> Tensor {
    let (ones, mut kept) = (vec![1f32; x.numel()], vec![0f32; x.numel()]);
    dropout::forward(&ones, x.size()[1] as usize, mask, &mut kept);
    let kept = Tensor::from_slice(&kept).view(x.size());
    kept.to_device(x.device()).to_kind(x.kind())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{assert_close, randn};
    use tandem_kernels::random::Uniform;
    use tandem_torch::Kind;

    /// Half of a matrix's columns are no plain tensor, so they take the other way.
    #[test]
    fn the_kernel_drops_what_the_mask_does() {
        let mask = Mask {
            random: Uniform::new(3, "x"),
            probability: 0.4,
            start: 7,
            stride: 64,
        };
        for (kind, tolerance) in [
            (Kind::Float, 1e-6),
            (Kind::BFloat16, 8e-3),
            (Kind::Double, 1e-6),
        ] {
            let wide = randn(&[9, 40], 1).to_kind(kind);
            let x = wide.narrow(1, 0, 20);
            let plain = x.contiguous();
            let label = format!("{kind:?}");
            assert_close(
                &label,
                &forward(&plain, mask),
                &forward(&x, mask),
                tolerance,
            );
            let before = randn(&[9, 20], 2).to_kind(kind);
            let (fused, other) = (before.copy(), before.copy());
            add_(&fused, &plain, mask);
            add_(&other, &x, mask);
            assert_close(&label, &fused, &other, tolerance);
            let zeros = forward(&plain, mask).to_vec::<f64>();
            let zeros = zeros.iter().filter(|x| **x == 0.0).count();
            assert!((50..95).contains(&zeros), "{zeros} of 180, {label}");
        }
    }
}
