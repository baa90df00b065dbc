//! A norm over a row that is cut over ranks, as OLMo 2 has for q and k: over all heads together, of which a rank has some.
//!
//! `x` is `[tokens, heads, head_dim]`, the weight `[heads * head_dim]`, both this rank's. Between the two halves of a pass the
//! ranks add one number a token: of the squares in the forward pass, of the projections in the backward pass.

use tandem_torch::{Kind, Tensor};

use super::NormSpec;

/// The sum of the squares of each token, fp32 `[tokens]`.
pub fn squares(x: &Tensor) -> Tensor {
    let x = x.to_kind(Kind::Float);
    x.square().sum_dims(&[-2, -1], false, Kind::Float)
}

/// `rstd`, fp32 `[tokens]`, from the sum of the squares over `features` numbers.
pub fn rstd(squares: &Tensor, features: usize, spec: NormSpec) -> Tensor {
    (squares * (1.0 / features as f64) + spec.eps).rsqrt()
}

/// The normalised heads in kind `out`.
pub fn apply(x: &Tensor, weight: &Tensor, rstd: &Tensor, spec: NormSpec, out: Kind) -> Tensor {
    let x_hat = hat(x, rstd);
    let y = match spec.rounds_last {
        true => x_hat * factor(x, weight, spec),
        false => x_hat.to_kind(x.kind()) * factor(x, weight, spec),
    };
    y.to_kind(out)
}

/// The sum of `d_y * factor * x * rstd` of each token, fp32 `[tokens]`.
pub fn projections(
    d_y: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    rstd: &Tensor,
    spec: NormSpec,
) -> Tensor {
    let d_x_hat = d_y.to_kind(Kind::Float) * factor(x, weight, spec);
    (d_x_hat * hat(x, rstd)).sum_dims(&[-2, -1], false, Kind::Float)
}

/// The gradients of [`apply`]: `d_x` in the kind of `x`, and `d_weight` as fp32. `projections` are those of all ranks together,
/// over `features` numbers; `counted` (fp32 `[heads]`) is 0 for heads that another rank, which also has them, takes the
/// projection off: what the ranks add for such a head is then right.
#[expect(
    clippy::too_many_arguments,
    reason = "what went in, what came out, and what the ranks added"
)]
pub fn backward(
    d_y: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    rstd: &Tensor,
    spec: NormSpec,
    projections: &Tensor,
    features: usize,
    counted: Option<&Tensor>,
) -> (Tensor, Tensor) {
    let d_y = d_y.to_kind(Kind::Float);
    let x_hat = hat(x, rstd);
    let d_weight = (&d_y * &x_hat).sum_dims(&[0], false, Kind::Float);
    let mean = wide(&(projections * (1.0 / features as f64)));
    let projected = match counted {
        Some(counted) => &x_hat * (mean * counted.unsqueeze(1)),
        None => &x_hat * mean,
    };
    let d_x = (d_y * factor(x, weight, spec) - projected) * wide(rstd);
    (d_x.to_kind(x.kind()), d_weight.view([-1]))
}

fn hat(x: &Tensor, rstd: &Tensor) -> Tensor {
    x.to_kind(Kind::Float) * wide(rstd)
}

/// `[tokens]` as `[tokens, 1, 1]`.
fn wide(per_token: &Tensor) -> Tensor {
    per_token.unsqueeze(1).unsqueeze(2)
}

/// `[heads, head_dim]`.
fn factor(x: &Tensor, weight: &Tensor, spec: NormSpec) -> Tensor {
    spec.factor(weight).view(&x.size()[1..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{assert_close, dot, randn};
    use crate::rms_norm;

    /// Two ranks with three of four heads each: the second and third are on both, and counted by the first. Each has a part
    /// of the gradient of those.
    #[test]
    fn ranks_with_shared_heads_compute_the_norm_of_the_whole_row() {
        let (tokens, heads, dim) = (5i64, 4i64, 6i64);
        let features = (heads * dim) as usize;
        let x = randn(&[tokens, heads, dim], 1);
        let weight = randn(&[heads * dim], 2);
        let parts = [
            randn(&[tokens, heads, dim], 3),
            randn(&[tokens, heads, dim], 4),
        ];
        let held = [0..3i64, 1..4i64];
        let counted = [[1.0f32, 1.0, 1.0], [0.0, 0.0, 1.0]].map(|c| Tensor::from_slice(&c));
        for adds_one in [false, true] {
            let spec = NormSpec {
                eps: 1e-5,
                adds_one,
                rounds_last: true,
            };
            // A rank's gradient is 0 in heads that it does not have.
            let d_y: Vec<Tensor> = parts
                .iter()
                .zip(&held)
                .map(|(part, held)| {
                    let d = part.zeros_like();
                    let len = held.end - held.start;
                    d.narrow(1, held.start, len)
                        .copy_(&part.narrow(1, held.start, len));
                    d
                })
                .collect();
            let flat = |t: &Tensor| t.view([tokens, heads * dim]);
            let total = &d_y[0] + &d_y[1];
            let (y, whole_rstd) = rms_norm::forward(&flat(&x), &weight, spec, Kind::Float);
            let (d_x, d_w) =
                rms_norm::backward(&flat(&total), &flat(&x), &weight, &whole_rstd, spec);
            assert!(dot(&y, &y) > 0.0);

            let of = |t: &Tensor, rank: usize| {
                t.narrow(1, held[rank].start, held[rank].end - held[rank].start)
            };
            let weight_of = |rank: usize| {
                let held = &held[rank];
                weight.narrow(0, held.start * dim, (held.end - held.start) * dim)
            };
            // The first counts all of its heads, the second its last.
            let sums = squares(&of(&x, 0)) + squares(&x.narrow(1, 3, 1));
            let rstd = rstd(&sums, features, spec);
            let mut projected = Tensor::zeros([tokens], (Kind::Float, x.device()));
            for (rank, d_y) in d_y.iter().enumerate() {
                let here = of(&x, rank);
                let found = apply(&here, &weight_of(rank), &rstd, spec, Kind::Float);
                let expected = of(&y.view([tokens, heads, dim]), rank);
                assert_close("y", &found, &expected, 1e-6);
                projected += projections(&of(d_y, rank), &here, &weight_of(rank), &rstd, spec);
            }
            let (sum_d_x, sum_d_w) = (x.zeros_like(), weight.zeros_like());
            for (rank, d_y) in d_y.iter().enumerate() {
                let (d_x, d_w) = backward(
                    &of(d_y, rank),
                    &of(&x, rank),
                    &weight_of(rank),
                    &rstd,
                    spec,
                    &projected,
                    features,
                    Some(&counted[rank]),
                );
                of(&sum_d_x, rank).add_(&d_x);
                let held = &held[rank];
                sum_d_w
                    .narrow(0, held.start * dim, (held.end - held.start) * dim)
                    .add_(&d_w);
            }
            assert_close("d_x", &flat(&sum_d_x), &d_x, 1e-5);
            assert_close("d_weight", &sum_d_w, &d_w, 1e-5);
        }
    }
}
