//! Every operation with a kernel of this crate's own gives the same bits on any number of threads.

use rayon::ThreadPoolBuilder;
use tandem_tensor::adamw::{self, AdamWState, AdamWStep};
use tandem_tensor::cross_entropy::{Bend, Objective};
use tandem_tensor::glu::Activation;
use tandem_tensor::rms_norm::NormSpec;
use tandem_tensor::{Accumulate, linear};
use tandem_tensor::{
    Device, Kind, Tensor, cross_entropy, embedding, fingerprint, glu, rms_norm, rope,
};

/// The hashes of what all operations compute, from the same inputs each time.
fn results(kind: Kind) -> Vec<(&'static str, i64)> {
    let mut results = Vec::new();
    let mut keep = |name, t: &Tensor| results.push((name, fingerprint::of(t)));
    let (tokens, hidden, vocab) = (203, 130, 5003i64);
    let x = numbers(&[tokens, hidden], 1, kind);
    let d = numbers(&[tokens, hidden], 2, kind);
    let weight = numbers(&[hidden], 3, kind);
    let spec = NormSpec {
        eps: 1e-6,
        adds_one: true,
        rounds_last: true,
    };

    let residual = rms_norm::forward_residual(&x, &d, 1.0, &weight, spec, kind);
    keep("sum", &residual.sum);
    keep("norm", &residual.y);
    let branch = rms_norm::forward_branch(&x, &d, &weight, Some(&weight), spec);
    keep("sum with a norm", &branch.sum);
    let rstd = &residual.rstd;
    let (d_x, d_weight) = rms_norm::backward_residual(&d, &x, &weight, rstd, spec, &x);
    keep("norm d_x", &d_x);
    keep("norm d_weight", &d_weight);

    let half = d.narrow(1, 0, hidden / 2).contiguous();
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
        let (product, d_gate_up) = glu::forward_and_backward(activation, &half, &x);
        keep("glu", &product);
        keep("glu d", &d_gate_up);
    }

    let heads = x.copy();
    let angles = numbers(&[tokens, 13], 4, Kind::Float);
    let view = heads.view([1, tokens, 5, 26]);
    let turned = |f: fn(f32) -> f32| {
        let values: Vec<f32> = angles.to_vec::<f32>().into_iter().map(f).collect();
        Tensor::from_slice(&values).view(angles.size())
    };
    rope::apply_(&view, &turned(f32::cos), &turned(f32::sin));
    keep("rope", &heads);

    let ids = Tensor::from_slice(&(0..tokens).map(|i| i * 37 % 50).collect::<Vec<_>>());
    let d_table = numbers(&[40, hidden], 5, Kind::Float);
    embedding::backward(&d_table, &d, &ids, 0..40, 2.0);
    keep("embedding d", &d_table);
    let table = numbers(&[40, hidden], 6, kind);
    let rows = embedding::forward(&table, &ids, 0..40, 2.0, kind);
    keep("embedding", &rows);

    let logits = numbers(&[tokens, vocab], 7, kind);
    let bend = Bend {
        scale: 0.5,
        soft_cap: Some(3.0),
    };
    let objective = Objective {
        scale: 0.1.into(),
        z_loss: 0.01,
    };
    let stats = cross_entropy::local_stats(&logits, &ids, 0..vocab, bend);
    keep("stats", &stats);
    let normaliser = cross_entropy::combine(&stats.unsqueeze(0), &ids);
    cross_entropy::logits_to_gradient_(&logits, &ids, 0..vocab, &normaliser, bend, objective);
    keep("d_logits", &logits);

    let d_bias = Tensor::zeros([vocab], (Kind::Float, Device::Cpu));
    linear::backward_bias(&d_bias, &logits, Accumulate::Add);
    keep("bias", &d_bias);
    let d_weight = numbers(&[vocab, hidden], 8, Kind::Float);
    linear::backward_weight(&d_weight, &logits, &x, Accumulate::Add);
    keep("weight", &d_weight);
    let matrix = numbers(&[307, hidden], 12, kind);
    let y = linear::forward(&x, &matrix, Some(&numbers(&[307], 13, kind)));
    keep("linear", &y);
    keep("linear d_x", &linear::backward_input(&y, &matrix));

    let [master, exp_avg, gradient] =
        [9, 10, 11].map(|seed| numbers(&[100_003], seed, Kind::Float));
    let exp_avg_sq = gradient.square();
    let compute = Tensor::zeros([100_003], (kind, Device::Cpu));
    let state = AdamWState {
        master: &master,
        exp_avg: &exp_avg,
        exp_avg_sq: &exp_avg_sq,
        gradient: &gradient,
        compute: Some(&compute),
    };
    let step = AdamWStep {
        learning_rate: 0.1,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.1,
        step: 2,
        gradient_scale: 1.0,
    };
    adamw::step(&state, &step);
    keep("adamw", &master);
    keep("adamw copy", &compute);
    let mut norm = tandem_tensor::sum_of_squares::SumOfSquares::default();
    norm.add(&gradient);
    let norm = norm.value();
    keep("sum of squares", &Tensor::from_slice(&[norm]));
    results
}

fn numbers(shape: &[i64], seed: u64, kind: Kind) -> Tensor {
    let count: i64 = shape.iter().product();
    let mut values = vec![0f32; count as usize];
    tandem_tensor::random::fill_normal(&mut values, seed, "threads", 0, 1.0);
    Tensor::from_slice(&values).view(shape).to_kind(kind)
}

#[test]
fn bits_do_not_depend_on_the_threads() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let on = |threads| {
            let pool = ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| results(kind))
        };
        let one = on(1);
        for threads in [2, 3, 7] {
            assert_eq!(on(threads), one, "{kind:?}, {threads} threads");
        }
        println!(
            "{kind:?}: {} results, the same on 1, 2, 3 and 7 threads",
            one.len()
        );
    }
}
