//! The operations, each with inputs of a shape that has an edge: sizes that no block divides, several heads, several documents.

use tandem_kernels::Accumulate;
use tandem_kernels::glu::Activation;
use tandem_torch::{Kind, Tensor};

use super::{Case, Inputs, Output};
use crate::adamw::{self, AdamWState, AdamWStep};
use crate::attention::{self, AttentionSpec, Documents};
use crate::cross_entropy::{self, Bend, IGNORE, Objective};
use crate::experts::{self, Balance, Counted, Routing, Rule, products};
use crate::rms_norm::{self, NormSpec};
use crate::sum_of_squares::SumOfSquares;
use crate::{embedding, fingerprint, glu, linear, rope};

const fn case(name: &'static str, run: fn(&Inputs) -> Vec<Output>) -> Case {
    Case { name, run }
}

pub(super) const ALL: &[Case] = &[
    case("linear", linear),
    case("linear, gradients added", gradients_added),
    case("RMSNorm", |inputs| norm(inputs, llama())),
    case("RMSNorm, weight plus one", |inputs| norm(inputs, gemma())),
    case("RMSNorm of a branch", branch),
    case("RMSNorm over a cut row", across),
    case("SwiGLU", |inputs| gated(inputs, Activation::Silu)),
    case("GeGLU", |inputs| gated(inputs, Activation::Gelu)),
    case("GeGLU by tanh", |inputs| {
        gated(inputs, Activation::GeluTanh)
    }),
    case("RoPE", rotation),
    case("attention", |inputs| attend(inputs, None, None, None)),
    case("attention, sliding window", |inputs| {
        attend(inputs, Some(9), None, None)
    }),
    case("attention, soft cap", |inputs| {
        attend(inputs, None, Some(2.0), None)
    }),
    case("attention, documents", |inputs| {
        let starts = vec![vec![0, 7, 8], vec![0, 30]];
        attend(inputs, None, None, Some(starts))
    }),
    case("cross entropy", |inputs| entropy(inputs, Bend::NONE, 0.0)),
    case("cross entropy, soft cap and z-loss", |inputs| {
        let bend = Bend {
            scale: 1.5,
            soft_cap: Some(4.0),
        };
        entropy(inputs, bend, 0.03)
    }),
    case("embedding", lookup),
    case("mixture of experts", mixture),
    case("mixture of experts on the device", mixture_on_device),
    case("AdamW", update),
    case("sum of squares", |inputs| {
        let x = inputs.wide(&[70_001], 1);
        let mut sum = SumOfSquares::default();
        sum.add(&x);
        vec![("sum", sum.into_tensor(inputs.device))]
    }),
    case("fingerprint", |inputs| {
        let x = inputs.wide(&[4097], 1);
        // Halves of 64 bits, which fp64 holds exactly.
        let hash = fingerprint::of(&x).cast_unsigned();
        let halves = [(hash >> 32) as f64, (hash & 0xffff_ffff) as f64];
        vec![("hash", Tensor::from_slice(&halves))]
    }),
];

fn linear(inputs: &Inputs) -> Vec<Output> {
    let (x, weight) = (
        inputs.randn(&[70, 129], 1),
        inputs.scaled(&[97, 129], 2, 0.1),
    );
    let (bias, d_y) = (inputs.randn(&[97], 3), inputs.randn(&[70, 97], 4));
    let y_into = Tensor::empty([70, 97], (x.kind(), x.device()));
    linear::forward_into(&y_into, &x, &weight);
    vec![
        ("y", linear::forward(&x, &weight, None)),
        ("y with bias", linear::forward(&x, &weight, Some(&bias))),
        ("y into", y_into),
        ("d_x", linear::backward_input(&d_y, &weight)),
    ]
}

fn gradients_added(inputs: &Inputs) -> Vec<Output> {
    let (x, d_y) = (inputs.randn(&[70, 129], 1), inputs.randn(&[70, 97], 2));
    let (d_weight, d_bias) = (inputs.wide(&[97, 129], 3), inputs.wide(&[97], 4));
    linear::backward_weight(&d_weight, &d_y, &x, Accumulate::First);
    let first = d_weight.copy();
    linear::backward_weight(&d_weight, &d_y, &x, Accumulate::Add);
    linear::backward_bias(&d_bias, &d_y, Accumulate::First);
    linear::backward_bias(&d_bias, &d_y, Accumulate::Add);
    vec![("first", first), ("d_weight", d_weight), ("d_bias", d_bias)]
}

fn llama() -> NormSpec {
    NormSpec::new(1e-5)
}

fn gemma() -> NormSpec {
    NormSpec {
        eps: 1e-6,
        adds_one: true,
        rounds_last: true,
    }
}

fn norm(inputs: &Inputs, spec: NormSpec) -> Vec<Output> {
    let (x, delta) = (inputs.randn(&[33, 100], 1), inputs.randn(&[33, 100], 2));
    let weight = inputs.randn(&[100], 3);
    let (d_y, d_residual) = (inputs.randn(&[33, 100], 4), inputs.randn(&[33, 100], 5));
    let (y, rstd) = rms_norm::forward(&x, &weight, spec, x.kind());
    let joined = rms_norm::forward_residual(&x, &delta, 0.5, &weight, spec, x.kind());
    let (d_x, d_weight) = rms_norm::backward(&d_y, &x, &weight, &rstd, spec);
    let (d_sum, _) = rms_norm::backward_residual(&d_y, &x, &weight, &rstd, spec, &d_residual);
    vec![
        ("y", y),
        ("rstd", rstd),
        ("sum", joined.sum),
        ("y of the sum", joined.y),
        ("d_x", d_x),
        ("d_weight", d_weight),
        ("d_x with the residual's", d_sum),
    ]
}

fn branch(inputs: &Inputs) -> Vec<Output> {
    let (x, branch) = (inputs.randn(&[9, 100], 1), inputs.randn(&[9, 100], 2));
    let (weight, next) = (inputs.randn(&[100], 3), inputs.randn(&[100], 4));
    let found = rms_norm::forward_branch(&x, &branch, &weight, Some(&next), gemma());
    let mut outputs = vec![("sum", found.sum), ("rstd", found.branch_rstd)];
    outputs.extend(found.next.map(|(y, _)| ("y of the sum", y)));
    outputs
}

fn across(inputs: &Inputs) -> Vec<Output> {
    use rms_norm::across::{apply, backward, projections, rstd, squares};
    let (x, d_y) = (inputs.randn(&[9, 4, 16], 1), inputs.randn(&[9, 4, 16], 2));
    let weight = inputs.randn(&[64], 3);
    let spec = llama();
    let rstd = rstd(&squares(&x), 64, spec);
    let y = apply(&x, &weight, &rstd, spec, x.kind());
    let projected = projections(&d_y, &x, &weight, &rstd, spec);
    let (d_x, d_weight) = backward(&d_y, &x, &weight, &rstd, spec, &projected, 64, None);
    vec![("y", y), ("d_x", d_x), ("d_weight", d_weight)]
}

fn gated(inputs: &Inputs, activation: Activation) -> Vec<Output> {
    let (x, d_y) = (inputs.randn(&[33, 202], 1), inputs.randn(&[33, 101], 2));
    vec![
        ("y", glu::forward(activation, &x)),
        ("d_gate_up", glu::backward(activation, &d_y, &x)),
    ]
}

fn rotation(inputs: &Inputs) -> Vec<Output> {
    let (x, d_y) = (
        inputs.randn(&[2, 5, 3, 16], 1),
        inputs.randn(&[2, 5, 3, 16], 2),
    );
    let angles = inputs.wide(&[5, 8], 3).to_vec::<f32>();
    let table = |of: fn(f32) -> f32| {
        let values: Vec<f32> = angles.iter().copied().map(of).collect();
        Tensor::from_slice(&values)
            .view([5, 8])
            .to_device(inputs.device)
    };
    let (cos, sin) = (table(f32::cos), table(f32::sin));
    rope::apply_(&x, &cos, &sin);
    let d_x = d_y.empty_like();
    rope::apply_backward_into(&d_x, &d_y, &cos, &sin);
    vec![("y", x), ("d_x", d_x)]
}

fn attend(
    inputs: &Inputs,
    sliding_window: Option<i64>,
    soft_cap: Option<f64>,
    starts: Option<Vec<Vec<u32>>>,
) -> Vec<Output> {
    let (batch, seq, heads, kv_heads, dim) = (2, 37, 4, 2, 64);
    let spec = AttentionSpec {
        scale: 0.125,
        sliding_window,
        soft_cap,
    };
    let documents = starts.and_then(|starts| Documents::new(starts, seq as usize, inputs.device));
    let documents = documents.as_ref();
    // As they lie in their common buffer.
    let qkv = inputs.randn(&[batch, seq, (heads + 2 * kv_heads) * dim], 1);
    let part = |start: i64, count: i64| {
        let part = qkv.narrow(2, start * dim, count * dim);
        part.view([batch, seq, count, dim])
    };
    let (q, k) = (part(0, heads), part(heads, kv_heads));
    let v = part(heads + kv_heads, kv_heads);
    let d_out = inputs.randn(&[batch, seq, heads, dim], 2);
    let saved = attention::forward(&q, &k, &v, spec, documents);
    let (d_q, d_k, d_v) = attention::backward(&d_out, &q, &k, &v, &saved, spec, documents);
    vec![("out", saved.out), ("d_q", d_q), ("d_k", d_k), ("d_v", d_v)]
}

fn entropy(inputs: &Inputs, bend: Bend, z_loss: f32) -> Vec<Output> {
    let logits = inputs.scaled(&[6, 1000], 1, 3.0);
    let targets = inputs.integers(&[50, 999, IGNORE, 49, 1050, 500]);
    let vocab = 50..1050;
    let stats = cross_entropy::local_stats(&logits, &targets, vocab.clone(), bend);
    let normaliser = cross_entropy::combine(&stats.unsqueeze(0), &targets);
    let scale = 0.3.into();
    let objective = Objective { scale, z_loss };
    cross_entropy::logits_to_gradient_(&logits, &targets, vocab, &normaliser, bend, objective);
    vec![
        ("logsumexp", normaliser.logsumexp),
        ("loss", normaliser.loss),
        ("d_logits", logits),
    ]
}

fn lookup(inputs: &Inputs) -> Vec<Output> {
    let table = inputs.randn(&[50, 37], 1);
    let ids: Vec<i64> = (0..300).map(|i| 90 + (i * i * 7) % 73).collect();
    let ids = inputs.integers(&ids);
    let d_out = inputs.randn(&[300, 37], 2);
    let d_table = inputs.wide(&[50, 37], 3);
    embedding::backward(&d_table, &d_out, &ids, 100..150, 2.0);
    vec![
        (
            "y",
            embedding::forward(&table, &ids, 100..150, 2.0, table.kind()),
        ),
        ("d_table", d_table),
    ]
}

fn mixture(inputs: &Inputs) -> Vec<Output> {
    let rule = Rule {
        experts: 5,
        top_k: 2,
        normalise: true,
    };
    let routing = Routing::new(&inputs.wide(&[21, 5], 1), rule);
    let (x, rows) = (inputs.randn(&[21, 32], 2), inputs.randn(&[42, 32], 3));
    let plus = inputs.wide(&[21, 32], 4);
    let d_factors = experts::row_dots(&experts::gather(&x, &routing), &rows);
    vec![
        ("gathered", experts::gather(&x, &routing)),
        ("scaled", experts::scale(&rows, routing.factors())),
        ("combined", experts::combine(&rows, Some(&plus), &routing)),
        ("d_logits", routing.backward(&d_factors, None)),
    ]
}

/// As a layer runs it in bf16, where the device has products by groups: choice, products and their gradients, for tokens that are spread,
/// that all choose the same experts, and of which some do not count. An expert has no token in each case.
fn mixture_on_device(inputs: &Inputs) -> Vec<Output> {
    let [all, same, counted] = [
        [
            "y, spread",
            "d_x, spread",
            "d_weights, spread",
            "d_logits, spread",
            "load, spread",
        ],
        [
            "y, same",
            "d_x, same",
            "d_weights, same",
            "d_logits, same",
            "load, same",
        ],
        [
            "y, counted",
            "d_x, counted",
            "d_weights, counted",
            "d_logits, counted",
            "load, counted",
        ],
    ];
    let mask: Vec<bool> = (0..21).map(|token| token % 4 != 0).collect();
    let mut outputs = routed(inputs, all, true, false, &[]);
    outputs.extend(routed(inputs, same, false, true, &[]));
    outputs.extend(routed(inputs, counted, true, false, &mask));
    outputs
}

fn routed(
    inputs: &Inputs,
    names: [&'static str; 5],
    normalise: bool,
    all_same: bool,
    mask: &[bool],
) -> Vec<Output> {
    let rule = Rule {
        experts: 5,
        top_k: 2,
        normalise,
    };
    // So that nobody chooses the third, and all the first and the last where they choose the same.
    let favours = match all_same {
        true => [20f32, 0.0, -20.0, 0.0, 20.0],
        false => [0.0, 0.0, -20.0, 0.0, 0.0],
    };
    let favours = Tensor::from_slice(&favours).to_device(inputs.device);
    let logits = inputs.wide(&[21, 5], 1) + favours;
    let (x, d_y) = (inputs.randn(&[21, 32], 2), inputs.randn(&[21, 24], 3));
    let weights = inputs.scaled(&[5, 24, 32], 4, 0.2);
    let routing = match products::stay_on_device(&x, &[&weights]) {
        true => Routing::on_device(&logits, rule),
        false => Routing::new(&logits, rule),
    };
    let groups = routing.groups();
    let rows = experts::gather(&x, &routing);
    let product = products::forward(&rows, &weights, &groups);
    let y = experts::combine(&experts::scale(&product, routing.factors()), None, &routing);

    let d_rows = experts::gather(&d_y, &routing);
    let d_factors = experts::row_dots(&d_rows, &product);
    let d_product = experts::scale(&d_rows, routing.factors());
    let d_x = products::backward_input(&d_product, &weights, &groups);
    let d_weights = inputs.wide(&[5, 24, 32], 5);
    products::backward_weight(&d_weights, &d_product, &rows, &groups, Accumulate::First);
    products::backward_weight(&d_weights, &d_product, &rows, &groups, Accumulate::Add);
    let counted = Counted {
        tokens: mask,
        on_device: None,
    };
    let balance = Balance {
        d_probabilities: &inputs.wide(&[5], 6),
        counted,
    };
    let results = [
        y,
        experts::combine(&d_x, None, &routing),
        d_weights,
        routing.backward(&d_factors, Some(balance)),
        routing.load(counted),
    ];
    names.into_iter().zip(results).collect()
}

fn update(inputs: &Inputs) -> Vec<Output> {
    let n = 10_001;
    let (master, exp_avg) = (inputs.wide(&[n], 1), inputs.wide(&[n], 2));
    let exp_avg_sq = inputs.wide(&[n], 3).square();
    let compute = Tensor::zeros([n], (inputs.kind, inputs.device));
    for step in 1..4 {
        let state = AdamWState {
            master: &master,
            exp_avg: &exp_avg,
            exp_avg_sq: &exp_avg_sq,
            gradient: &inputs.wide(&[n], 10 + step),
            compute: (inputs.kind != Kind::Float).then_some(&compute),
        };
        let settings = AdamWStep {
            learning_rate: 0.01,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            step,
            gradient_scale: 0.5,
        };
        adamw::step(&state, &settings);
    }
    vec![("master", master), ("m", exp_avg), ("v", exp_avg_sq)]
}
