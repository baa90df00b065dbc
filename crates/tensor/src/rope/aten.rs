//! The rotation as tensor operations: for any device, kind and layout, and the yardstick of the fused kernel.

use tandem_torch::Tensor;

/// As [`super::apply_`] with `direction` 1; with -1 its gradient.
pub fn rotate_(x: &Tensor, cos: &Tensor, sin: &Tensor, direction: f64) {
    rotate_halves(x, x, cos, sin, direction);
}

/// The same from `x` to `out`, which has its shape and none of its storage.
pub fn rotate_into(out: &Tensor, x: &Tensor, cos: &Tensor, sin: &Tensor, direction: f64) {
    rotate_halves(out, x, cos, sin, direction);
    let rotated = 2 * cos.size()[1];
    let passing = x.size()[3] - rotated;
    if passing > 0 {
        let rest = |t: &Tensor| t.narrow(-1, rotated, passing);
        rest(out).copy_(&rest(x));
    }
}

/// Leaves alone what is not rotated.
fn rotate_halves(out: &Tensor, x: &Tensor, cos: &Tensor, sin: &Tensor, direction: f64) {
    let half = cos.size()[1];
    let (cos, sin) = (cos.unsqueeze(1), sin.unsqueeze(1));
    let halves = |t: &Tensor| (t.narrow(-1, 0, half), t.narrow(-1, half, half));
    let (a, b) = halves(x);
    // Products with the fp32 table are fp32 without a copy of `x` in fp32. Both results exist before either is written.
    let (new_first, new_second) = (&a * &cos, &b * &cos);
    new_first.add_product_(&b, &sin, -direction);
    new_second.add_product_(&a, &sin, direction);
    let (first, second) = halves(out);
    first.copy_(&new_first);
    second.copy_(&new_second);
}
