//! A mixture of experts: the router's choice, and rows of tokens on their way to the experts and back.
//!
//! The choice is made on the host, also for tensors on another device: how many rows an expert gets is the size of its
//! matrix product, so the host must know it anyway.

pub mod aten;
mod fused;

use std::ops::Range;

use tandem_kernels::experts::{self, Dispatch};
use tandem_kernels::router;
pub use tandem_kernels::router::Rule;
use tandem_torch::{Device, Tensor};

/// What the router chose for every token, and where the tokens' rows go.
#[derive(Debug)]
pub struct Routing {
    rule: Rule,
    /// `[tokens, experts]`
    probabilities: Vec<f32>,
    /// `[tokens, top_k]`
    chosen: Vec<u32>,
    /// `[tokens, top_k]`
    weights: Vec<f32>,
    dispatch: Dispatch,
    /// [`Dispatch::tokens`] on the device.
    pub(crate) tokens: Tensor,
    /// [`Dispatch::rows`] on the device.
    pub(crate) rows: Tensor,
    factors: Tensor,
}

/// A loss that is the same function of every token's probabilities; it keeps experts in balance.
#[derive(Debug, Clone, Copy)]
pub struct Balance<'a> {
    /// Its derivative for each expert's probability.
    pub d_probabilities: &'a [f32],
    /// The tokens that count; all where it is empty.
    pub counted: &'a [bool],
}

impl Routing {
    /// Chooses by fp32 `logits [tokens, experts]`.
    pub fn new(logits: &Tensor, rule: Rule) -> Self {
        let device = logits.device();
        let logits = logits.to_device(Device::Cpu).to_vec::<f32>();
        let choices = logits.len() / rule.experts * rule.top_k;
        let mut probabilities = vec![0.0; logits.len()];
        let mut chosen = vec![0; choices];
        let mut weights = vec![0.0; choices];
        router::forward(&logits, rule, &mut probabilities, &mut chosen, &mut weights);
        let dispatch = Dispatch::new(&chosen, rule.experts, rule.top_k);
        let mut factors = vec![0.0; choices];
        for (weight, &row) in weights.iter().zip(&dispatch.rows) {
            factors[row as usize] = *weight;
        }
        Self {
            rule,
            probabilities,
            chosen,
            weights,
            tokens: Tensor::from_slice(&dispatch.tokens).to_device(device),
            rows: Tensor::from_slice(&dispatch.rows).to_device(device),
            factors: Tensor::from_slice(&factors).to_device(device),
            dispatch,
        }
    }

    /// The rows of each expert.
    pub fn experts(&self) -> impl Iterator<Item = Range<usize>> {
        self.dispatch.experts()
    }

    /// The weight of each row, fp32 `[rows]`, in the order of the experts.
    pub fn factors(&self) -> &Tensor {
        &self.factors
    }

    /// How many experts a token goes to.
    pub(crate) fn top_k(&self) -> i64 {
        self.rule.top_k as i64
    }

    /// For each expert, the tokens that chose it and the sum of its probabilities, over those that are `counted [tokens]`, or all
    /// where that is empty.
    pub fn load(&self, counted: &[bool]) -> (Vec<u64>, Vec<f64>) {
        let Rule { experts, top_k, .. } = self.rule;
        let (mut chosen, mut sums) = (vec![0; experts], vec![0.0; experts]);
        let rows = self.probabilities.chunks_exact(experts);
        for (token, (of_token, choices)) in rows.zip(self.chosen.chunks_exact(top_k)).enumerate() {
            if counted.get(token) == Some(&false) {
                continue;
            }
            for &expert in choices {
                chosen[expert as usize] += 1;
            }
            for (sum, &p) in sums.iter_mut().zip(of_token) {
                *sum += f64::from(p);
            }
        }
        (chosen, sums)
    }

    /// The gradient of the logits, fp32 `[tokens, experts]`, from that of each row's weight, fp32 `[rows]`, and of the balance.
    pub fn backward(&self, d_factors: &Tensor, balance: Option<Balance<'_>>) -> Tensor {
        let device = d_factors.device();
        let of_rows = d_factors.to_device(Device::Cpu).to_vec::<f32>();
        let rows = self.dispatch.rows.iter();
        let d_weights: Vec<f32> = rows.map(|&row| of_rows[row as usize]).collect();
        let (d_probabilities, counted) = balance.map_or((&[][..], &[][..]), |balance| {
            (balance.d_probabilities, balance.counted)
        });
        let mut d_logits = vec![0.0; self.probabilities.len()];
        router::backward(
            &d_weights,
            self.rule,
            &self.probabilities,
            &self.chosen,
            &self.weights,
            d_probabilities,
            counted,
            &mut d_logits,
        );
        let experts = self.rule.experts as i64;
        Tensor::from_slice(&d_logits)
            .view([-1, experts])
            .to_device(device)
    }
}

/// Rows that other ranks have sent for some experts, each rank's sorted by expert, and their way to being sorted by expert all
/// together, and back.
#[derive(Debug)]
pub struct Arrivals {
    arrivals: experts::Arrivals,
    /// [`experts::Arrivals::sorted`] on the device.
    sorted: Tensor,
    /// [`experts::Arrivals::came`] on the device.
    came: Tensor,
}

impl Arrivals {
    /// Of each sender the rows for each expert; for rows on `device`.
    pub fn new(counts: &[&[usize]], device: Device) -> Self {
        let arrivals = experts::Arrivals::new(counts);
        Self {
            sorted: Tensor::from_slice(&arrivals.sorted).to_device(device),
            came: Tensor::from_slice(&arrivals.came).to_device(device),
            arrivals,
        }
    }

    /// The sorted rows of each expert.
    pub fn experts(&self) -> impl Iterator<Item = Range<usize>> {
        self.arrivals.experts()
    }

    /// The rows `x [rows, features]`, which are as they came, sorted.
    pub fn sorted(&self, x: &Tensor) -> Tensor {
        lookup(x, &self.sorted)
    }

    /// The sorted rows `x [rows, features]` as they came.
    pub fn as_they_came(&self, x: &Tensor) -> Tensor {
        lookup(x, &self.came)
    }
}

/// The tokens' rows of `x [tokens, hidden]`, sorted by expert: `[rows, hidden]`.
pub fn gather(x: &Tensor, routing: &Routing) -> Tensor {
    lookup(x, &routing.tokens)
}

/// The rows `rows` of `x`.
fn lookup(x: &Tensor, rows: &Tensor) -> Tensor {
    let entries = x.size()[0];
    if entries == 0 {
        return x.shallow_clone();
    }
    // As in a table whose entries are the rows.
    crate::embedding::forward(x, rows, 0..entries, 1.0, x.kind())
}

/// `x [rows, features]` with each row times its factor, of fp32 `factors [rows]`.
pub fn scale(x: &Tensor, factors: &Tensor) -> Tensor {
    fused::scale(x, factors).unwrap_or_else(|| aten::scale(x, factors))
}

/// Each token's sum over its rows of `x [rows, hidden]`, and over its row of the fp32 `plus [tokens, hidden]`: `[tokens, hidden]`.
///
/// It is the transpose of [`gather`].
pub fn combine(x: &Tensor, plus: Option<&Tensor>, routing: &Routing) -> Tensor {
    fused::combine(x, plus, routing).unwrap_or_else(|| aten::combine(x, plus, routing))
}

/// The sum of the products of each row of `a` and `b`, both `[rows, features]`: fp32 `[rows]`.
pub fn row_dots(a: &Tensor, b: &Tensor) -> Tensor {
    fused::row_dots(a, b).unwrap_or_else(|| aten::row_dots(a, b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_torch::Kind;

    use crate::cpu::testing::{assert_close, dot, numeric_gradient, randn};

    const RULE: Rule = Rule {
        experts: 4,
        top_k: 2,
        normalise: true,
    };

    #[test]
    fn gather_and_combine_are_transposes() {
        let routing = Routing::new(&randn(&[7, 4], 1), RULE);
        let (x, y) = (randn(&[7, 6], 2), randn(&[14, 6], 3));
        let there = dot(&gather(&x, &routing), &y);
        let back = dot(&x, &combine(&y, None, &routing));
        assert!((there - back).abs() < 1e-4, "{there} {back}");
        let plus = randn(&[7, 6], 4);
        let with = combine(&y, Some(&plus), &routing);
        assert_close("plus", &with, &(combine(&y, None, &routing) + plus), 1e-6);
    }

    #[test]
    fn fused_kernels_match_tensor_operations() {
        let routing = Routing::new(&randn(&[9, 4], 1), RULE);
        for (kind, tolerance) in [(Kind::Float, 1e-6), (Kind::BFloat16, 8e-3)] {
            for features in [1i64, 37, 64] {
                let (a, b) = (randn(&[18, features], 2), randn(&[18, features], 3));
                let (a, b) = (a.to_kind(kind), b.to_kind(kind));
                let plus = randn(&[9, features], 4);
                let label = format!("{kind:?}, {features} features");
                assert_close(
                    &format!("scale, {label}"),
                    &scale(&a, routing.factors()),
                    &aten::scale(&a, routing.factors()),
                    tolerance,
                );
                for plus in [None, Some(&plus)] {
                    assert_close(
                        &format!("combine, {label}"),
                        &combine(&a, plus, &routing),
                        &aten::combine(&a, plus, &routing),
                        tolerance,
                    );
                }
                let dots = aten::row_dots(&a, &b);
                assert_close(&format!("dots, {label}"), &row_dots(&a, &b), &dots, 1e-5);
            }
        }
    }

    #[test]
    fn rows_of_several_senders_are_sorted_and_go_back() {
        let x = randn(&[6, 5], 1);
        let arrivals = Arrivals::new(&[&[1, 2], &[1, 2]], Device::Cpu);
        let sorted = arrivals.sorted(&x);
        for (row, came) in [0, 3, 1, 2, 4, 5].into_iter().enumerate() {
            assert_close("a row", &sorted.get(row as i64), &x.get(came), 0.0);
        }
        assert_close("back", &arrivals.as_they_came(&sorted), &x, 0.0);
    }

    /// A rank may have no token, and an expert of it no row.
    #[test]
    fn no_tokens_are_no_rows() {
        let none = |features: i64| randn(&[4, features], 1).narrow(0, 0, 0);
        for kind in [Kind::Float, Kind::BFloat16] {
            let routing = Routing::new(&none(4), RULE);
            let rows = gather(&none(6).to_kind(kind), &routing);
            assert_eq!(rows.size(), [0, 6]);
            let arrivals = Arrivals::new(&[&[0, 0], &[0, 0]], Device::Cpu);
            let scaled = scale(&arrivals.sorted(&rows), routing.factors());
            assert_eq!(row_dots(&scaled, &rows).size(), [0]);
            let activation = crate::glu::Activation::Silu;
            let product = crate::glu::forward(activation, &scaled);
            assert_eq!(product.size(), [0, 3]);
            let d_rows = crate::glu::backward(activation, &product, &scaled);
            let back = arrivals.as_they_came(&d_rows);
            let plus = none(6);
            assert_eq!(combine(&back, Some(&plus), &routing).size(), [0, 6]);
            assert_eq!(routing.backward(routing.factors(), None).size(), [0, 4]);
            assert_eq!(routing.load(&[]).0, [0; 4]);
        }
    }

    /// The whole of a mixture whose experts are the identity: its output's gradient through the weights of the rows.
    #[test]
    fn the_weights_gradient_is_a_central_difference() {
        let (x, logits, d_y) = (randn(&[5, 3], 1), randn(&[5, 4], 2), randn(&[5, 3], 3));
        // Without dividing by their sum, so that a token's weights make a difference at all.
        let rule = Rule {
            normalise: false,
            ..RULE
        };
        let output = |logits: &Tensor| {
            let routing = Routing::new(&logits.to_kind(Kind::Float), rule);
            let rows = scale(&gather(&x, &routing), routing.factors());
            combine(&rows, None, &routing)
        };
        let truth = numeric_gradient_coarse(&logits, |logits| dot(&output(logits), &d_y));
        let routing = Routing::new(&logits, rule);
        let d_factors = row_dots(&gather(&d_y, &routing), &gather(&x, &routing));
        let d_logits = routing.backward(&d_factors, None);
        assert_close("d_logits", &d_logits, &truth, 2e-3);
        let (chosen, sums) = routing.load(&[true, false, true, true, true]);
        assert_eq!(chosen.iter().sum::<u64>(), 8);
        assert!((sums.iter().sum::<f64>() - 4.0).abs() < 1e-5);
    }

    /// As [`numeric_gradient`], of a function that computes in fp32: with its steps a hundred times as long.
    fn numeric_gradient_coarse(x: &Tensor, f: impl Fn(&Tensor) -> f64) -> Tensor {
        let scaled = x.to_kind(Kind::Double) * 0.01;
        numeric_gradient(&scaled, |x| f(&(x * 100.0))) * 0.01
    }
}
