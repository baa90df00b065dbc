//! A mixture of experts: the router's choice, rows of tokens on their way to the experts and back, and the experts' products.
//!
//! How many rows an expert gets is the size of its matrix product. Where each expert is a product of its own, the host must know that,
//! so it chooses: on the CPU, and for devices without products by groups, whose results it waits for then. Where one operator computes
//! all experts' products by offsets that are on the device ([`products::stay_on_device`]), the choice stays there, too.

pub mod aten;
mod fused;
mod on_device;
mod on_host;
pub mod products;

use tandem_kernels::experts;
pub use tandem_kernels::router::Rule;
use tandem_torch::{Device, Tensor};

pub use products::Groups;

/// What the router chose for every token, and where the tokens' rows go.
#[derive(Debug)]
pub struct Routing {
    top_k: i64,
    choice: Choice,
    /// The token of each row.
    pub(crate) tokens: Tensor,
    /// The row of each token's choices, `[tokens * top_k]`.
    pub(crate) rows: Tensor,
    factors: Tensor,
}

#[derive(Debug)]
enum Choice {
    OnHost(on_host::Choice),
    OnDevice(on_device::Choice),
}

/// Which of the tokens that a router sees are worth counting.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counted<'a> {
    /// For each token, whether it counts; empty where all do.
    pub tokens: &'a [bool],
    /// The same on the device that computes, fp32 `[tokens]`, 1 or 0, where it is there already.
    pub on_device: Option<&'a Tensor>,
}

impl Counted<'_> {
    /// Fp32 `[tokens]` on `device`; `None` where all count.
    fn factors(&self, device: Device) -> Option<Tensor> {
        if self.tokens.is_empty() {
            return None;
        }
        Some(match self.on_device {
            Some(there) => there.shallow_clone(),
            None => counted_factors(self.tokens, device),
        })
    }
}

/// For [`Counted::on_device`].
pub fn counted_factors(tokens: &[bool], device: Device) -> Tensor {
    let factors: Vec<f32> = tokens.iter().map(|&counts| f32::from(counts)).collect();
    Tensor::from_slice(&factors).to_device(device)
}

/// A loss that is the same function of every token's probabilities; it keeps experts in balance.
#[derive(Debug, Clone, Copy)]
pub struct Balance<'a> {
    /// Its derivative for each expert's probability, fp32 `[experts]`, on the logits' device.
    pub d_probabilities: &'a Tensor,
    /// The tokens that it is a function of.
    pub counted: Counted<'a>,
}

impl Routing {
    /// Chooses by fp32 `logits [tokens, experts]`, on the host. CUDA: it waits for them.
    pub fn new(logits: &Tensor, rule: Rule) -> Self {
        let device = logits.device();
        let logits = logits.to_device(Device::Cpu).to_vec::<f32>();
        let choice = on_host::Choice::new(&logits, rule);
        let dispatch = choice.dispatch();
        Self {
            top_k: rule.top_k as i64,
            tokens: Tensor::from_slice(&dispatch.tokens).to_device(device),
            rows: Tensor::from_slice(&dispatch.rows).to_device(device),
            factors: Tensor::from_slice(&choice.factors()).to_device(device),
            choice: Choice::OnHost(choice),
        }
    }

    /// The same choice by operators of the logits' device, for which nobody waits.
    pub fn on_device(logits: &Tensor, rule: Rule) -> Self {
        let (choice, places) = on_device::Choice::new(logits, rule);
        Self {
            top_k: rule.top_k as i64,
            choice: Choice::OnDevice(choice),
            tokens: places.tokens,
            rows: places.rows,
            factors: places.factors,
        }
    }

    /// The rows of each expert.
    pub fn groups(&self) -> Groups {
        match &self.choice {
            Choice::OnHost(choice) => Groups::Known(choice.dispatch().experts().collect()),
            Choice::OnDevice(choice) => Groups::OnDevice(choice.ends().shallow_clone()),
        }
    }

    /// The weight of each row, fp32 `[rows]`, in the order of the experts.
    pub fn factors(&self) -> &Tensor {
        &self.factors
    }

    /// How many experts a token goes to.
    pub(crate) fn top_k(&self) -> i64 {
        self.top_k
    }

    /// Fp64 `[2, experts]`: for each expert, the tokens that chose it, and the sum of its probabilities, over those that are `counted`.
    pub fn load(&self, counted: Counted<'_>) -> Tensor {
        let device = self.factors.device();
        match &self.choice {
            Choice::OnHost(choice) => choice.load(counted.tokens).to_device(device),
            Choice::OnDevice(choice) => choice.load(counted.factors(device).as_ref()),
        }
    }

    /// The gradient of the logits, fp32 `[tokens, experts]`, from that of each row's weight, fp32 `[rows]`, and of the balance.
    pub fn backward(&self, d_factors: &Tensor, balance: Option<Balance<'_>>) -> Tensor {
        let device = d_factors.device();
        match &self.choice {
            Choice::OnHost(choice) => {
                let of_rows = d_factors.to_device(Device::Cpu).to_vec::<f32>();
                let of_balance = balance.map(|it| it.d_probabilities.to_vec::<f32>());
                let counted = balance.map_or(&[][..], |it| it.counted.tokens);
                let of_balance = of_balance.unwrap_or_default();
                let d_logits = choice.backward(&of_rows, &of_balance, counted);
                d_logits.to_device(device)
            }
            Choice::OnDevice(choice) => {
                let d_weights = d_factors.index_select(0, &self.rows);
                let d_weights = d_weights.view([-1, self.top_k]);
                let of_balance = balance.map(|it| (it.d_probabilities, it.counted.factors(device)));
                choice.backward(&d_weights, of_balance)
            }
        }
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
    pub fn groups(&self) -> Groups {
        Groups::Known(self.arrivals.experts().collect())
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
    if x.device().is_cuda() {
        return x.index_select(0, rows);
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
    use tandem_torch::recorder::{Action, Detail, record};
    use tandem_torch::{Kind, pretend};

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
            assert_eq!(routing.load(Counted::default()).to_vec::<f64>(), [0.0; 8]);
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
        let counted = Counted {
            tokens: &[true, false, true, true, true],
            on_device: None,
        };
        let load = routing.load(counted).to_vec::<f64>();
        let (chosen, sums) = load.split_at(4);
        assert_eq!(chosen.iter().sum::<f64>(), 8.0);
        assert!((sums.iter().sum::<f64>() - 4.0).abs() < 1e-5);
    }

    /// On a device the same tokens go to the same rows, also where probabilities are equal; and nothing is read or copied there.
    #[test]
    fn the_device_chooses_as_the_host_does() {
        let equal = Tensor::from_slice(&[0f32, 2., 1., 2., 7., 7., 7., 7., -1., 0., 0., 3.]);
        for logits in [randn(&[9, 4], 1), equal.view([3, 4]), randn(&[1, 4], 2)] {
            for (top_k, normalise) in [(1, false), (2, true), (4, false)] {
                let rule = Rule {
                    experts: 4,
                    top_k,
                    normalise,
                };
                let host = Routing::new(&logits, rule);
                let (tokens, rows, factors, sizes, calls) = {
                    let _pretended = pretend::cuda();
                    let logits = logits.to_device(Device::Cuda(0));
                    let (routing, calls) =
                        record(Detail::Counts, || Routing::on_device(&logits, rule));
                    let [tokens, rows, factors] =
                        [&routing.tokens, &routing.rows, &routing.factors]
                            .map(|tensor| tensor.to_device(Device::Cpu));
                    (tokens, rows, factors, routing.groups().sizes(), calls)
                };
                assert!(tokens.equal(&host.tokens) && rows.equal(&host.rows));
                assert_close("factors", &factors, host.factors(), 1e-6);
                assert_eq!(sizes, host.groups().sizes());
                assert!(calls.iter().all(|call| call.action == Action::Compute));
            }
        }
    }

    /// As [`numeric_gradient`], of a function that computes in fp32: with its steps a hundred times as long.
    fn numeric_gradient_coarse(x: &Tensor, f: impl Fn(&Tensor) -> f64) -> Tensor {
        let scaled = x.to_kind(Kind::Double) * 0.01;
        numeric_gradient(&scaled, |x| f(&(x * 100.0))) * 0.01
    }
}
