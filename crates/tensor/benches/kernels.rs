//! What the fused kernels reach: bytes that must move over time, against this machine's copy bandwidth and against
//! the same operation as libtorch calls.
//!
//!     cargo bench --package tandem-tensor --bench kernels
//!
//! One thread, at the sizes of one rank of Qwen2-0.5B under tensor parallelism of two. The two sides alternate, and the
//! time is the thread's own processor time, so that other work on the machine disturbs the ratio little.

use std::hint::black_box;

use rustix::time::{ClockId, clock_gettime};
use tandem_tensor::adamw::{self, AdamWState, AdamWStep};
use tandem_tensor::attention::{self, AttentionSpec};
use tandem_tensor::cross_entropy::{Bend, Objective};
use tandem_tensor::glu::Activation;
use tandem_tensor::rms_norm::NormSpec;
use tandem_tensor::{Accumulate, linear};
use tandem_tensor::{Device, Kind, Tensor, cross_entropy, device, embedding, glu, rms_norm, rope};

const TOKENS: i64 = 512;
const HIDDEN: i64 = 896;
const VOCAB: i64 = 75_968;
const CHUNK: i64 = 128;
const INTERMEDIATE: i64 = 2432;
const REPEATS: usize = 11;

fn main() {
    device::set_threads(1);
    let copy = copy_bandwidth();
    println!("copy: {:.1} GB/s (read and written bytes)", copy / 1e9);
    println!(
        "{:28} {:>9} {:>10} {:>8} {:>9} {:>8}",
        "kernel", "MB", "fused GB/s", "of copy", "ATen GB/s", "speed-up"
    );
    let bench = Bench { copy };
    for kind in [Kind::BFloat16, Kind::Float] {
        cross_entropy_chunk(&bench, kind);
        norms(&bench, kind);
        for activation in [Activation::Silu, Activation::GeluTanh] {
            glus(&bench, kind, activation);
        }
        ropes(&bench, kind);
        embeddings(&bench, kind);
        gradient_stores(&bench, kind);
    }
    optimizer(&bench);
    attentions();
}

/// What is computed, at the rate of what a query sees: half of all products, two forward and five backward. Sequences of one
/// query head group of Qwen2-0.5B.
fn attentions() {
    println!(
        "{:28} {:>9} {:>9} {:>8}",
        "attention", "forward", "backward", "GFLOP/s"
    );
    for kind in [Kind::BFloat16, Kind::Float] {
        for seq in [512, 1024, 2048] {
            let (heads, dim) = (7, 64);
            let qkv = random(&[1, seq, heads + 2, dim], kind);
            let (q, k, v) = (
                qkv.narrow(2, 0, heads),
                qkv.narrow(2, heads, 1),
                qkv.narrow(2, heads + 1, 1),
            );
            let spec = AttentionSpec {
                scale: 0.125,
                sliding_window: None,
                soft_cap: None,
            };
            let d_out = random(&[1, seq, heads, dim], kind);
            let saved = attention::forward(&q, &k, &v, spec, None);
            let best = |run: &dyn Fn()| {
                (0..REPEATS)
                    .map(|_| seconds(run))
                    .fold(f64::INFINITY, f64::min)
            };
            let forward = best(&|| drop(attention::forward(&q, &k, &v, spec, None)));
            let backward =
                best(&|| drop(attention::backward(&d_out, &q, &k, &v, &saved, spec, None)));
            let product = (heads * seq * seq * dim) as f64;
            println!(
                "{:28} {:>6.2} ms {:>6.2} ms {:>4.0}, {:>3.0}",
                format!("{kind:?}, {seq} tokens"),
                forward * 1e3,
                backward * 1e3,
                2.0 * product / forward / 1e9,
                5.0 * product / backward / 1e9,
            );
        }
    }
}

fn cross_entropy_chunk(bench: &Bench, kind: Kind) {
    let logits = random(&[CHUNK, VOCAB], kind);
    let targets = Tensor::from_slice(&(0..CHUNK).map(|i| i * 501).collect::<Vec<_>>());
    let bytes = size(&logits);
    bench.compare(
        &format!("loss stats {kind:?}"),
        bytes,
        || {
            drop(cross_entropy::local_stats(
                &logits,
                &targets,
                0..VOCAB,
                Bend::NONE,
            ))
        },
        || {
            drop(cross_entropy::aten::local_stats(
                &logits,
                &targets,
                0..VOCAB,
                Bend::NONE,
            ))
        },
    );
    let stats = cross_entropy::local_stats(&logits, &targets, 0..VOCAB, Bend::NONE);
    let normaliser = cross_entropy::combine(&stats.unsqueeze(0), &targets);
    let objective = Objective {
        scale: 0.01.into(),
        z_loss: 0.0,
    };
    bench.compare(
        &format!("loss gradient {kind:?}"),
        2.0 * bytes,
        || {
            cross_entropy::logits_to_gradient_(
                &logits,
                &targets,
                0..VOCAB,
                &normaliser,
                Bend::NONE,
                objective,
            )
        },
        || {
            cross_entropy::aten::logits_to_gradient_(
                &logits,
                &targets,
                0..VOCAB,
                &normaliser,
                Bend::NONE,
                objective,
            )
        },
    );
}

fn norms(bench: &Bench, kind: Kind) {
    let [x, delta, d_y] = [(); 3].map(|()| random(&[TOKENS, HIDDEN], kind));
    let weight = random(&[HIDDEN], kind);
    let spec = NormSpec::new(1e-6);
    let (_, rstd) = rms_norm::forward(&x, &weight, spec, kind);
    let bytes = size(&x);
    bench.compare(
        &format!("rms_norm {kind:?}"),
        2.0 * bytes,
        || drop(rms_norm::forward(&x, &weight, spec, kind)),
        || drop(rms_norm::aten::forward(&x, &weight, spec, kind)),
    );
    bench.compare(
        &format!("add + rms_norm {kind:?}"),
        4.0 * bytes,
        || {
            drop(rms_norm::forward_residual(
                &x, &delta, 1.0, &weight, spec, kind,
            ))
        },
        || drop(rms_norm::aten::forward(&(&x + &delta), &weight, spec, kind)),
    );
    bench.compare(
        &format!("rms_norm backward {kind:?}"),
        3.0 * bytes,
        || drop(rms_norm::backward(&d_y, &x, &weight, &rstd, spec)),
        || drop(rms_norm::aten::backward(&d_y, &x, &weight, &rstd, spec)),
    );
    bench.compare(
        &format!("rms_norm backward + add {kind:?}"),
        4.0 * bytes,
        || {
            drop(rms_norm::backward_residual(
                &d_y, &x, &weight, &rstd, spec, &delta,
            ))
        },
        || drop(&delta + rms_norm::aten::backward(&d_y, &x, &weight, &rstd, spec).0),
    );
    let gemma = NormSpec {
        adds_one: true,
        rounds_last: true,
        ..spec
    };
    let next = Some(&weight);
    bench.compare(
        &format!("add rms_norm + rms_norm {kind:?}"),
        4.0 * bytes,
        || drop(rms_norm::forward_branch(&x, &delta, &weight, next, gemma)),
        || {
            let sum = &x + rms_norm::aten::forward(&delta, &weight, gemma, kind).0;
            drop(rms_norm::aten::forward(&sum, &weight, gemma, kind));
        },
    );
}

fn glus(bench: &Bench, kind: Kind, activation: Activation) {
    let gate_up = random(&[TOKENS, 2 * INTERMEDIATE], kind);
    let d_y = random(&[TOKENS, INTERMEDIATE], kind);
    let bytes = size(&d_y);
    bench.compare(
        &format!("glu {activation:?} {kind:?}"),
        3.0 * bytes,
        || drop(glu::forward(activation, &gate_up)),
        || drop(glu::aten::forward(activation, &gate_up)),
    );
    bench.compare(
        &format!("glu {activation:?} backward {kind:?}"),
        5.0 * bytes,
        || drop(glu::backward(activation, &d_y, &gate_up)),
        || drop(glu::aten::backward(activation, &d_y, &gate_up)),
    );
    bench.compare(
        &format!("glu {activation:?} both {kind:?}"),
        6.0 * bytes,
        || drop(glu::forward_and_backward(activation, &d_y, &gate_up)),
        || {
            drop(glu::aten::forward(activation, &gate_up));
            drop(glu::aten::backward(activation, &d_y, &gate_up));
        },
    );
}

fn ropes(bench: &Bench, kind: Kind) {
    let qkv = random(&[TOKENS, 9 * 64], kind);
    let q = qkv.narrow(1, 0, 7 * 64).view([1, TOKENS, 7, 64]);
    let angles = random(&[TOKENS, 32], Kind::Float);
    let turned = |f: fn(f32) -> f32| {
        let values: Vec<f32> = angles.to_vec::<f32>().into_iter().map(f).collect();
        Tensor::from_slice(&values).view(angles.size())
    };
    let (cos, sin) = (turned(f32::cos), turned(f32::sin));
    bench.compare(
        &format!("rope {kind:?}"),
        2.0 * size(&q),
        || rope::apply_(&q, &cos, &sin),
        || rope::aten::rotate_(&q, &cos, &sin, 1.0),
    );
}

fn embeddings(bench: &Bench, kind: Kind) {
    let table = random(&[VOCAB, HIDDEN], kind);
    let d_table = Tensor::zeros([VOCAB, HIDDEN], (Kind::Float, Device::Cpu));
    let ids = Tensor::from_slice(
        &(0..TOKENS)
            .map(|i| i * 9973 % (2 * VOCAB))
            .collect::<Vec<_>>(),
    );
    let d_out = random(&[TOKENS, HIDDEN], kind);
    let bytes = size(&d_out);
    bench.compare(
        &format!("embedding {kind:?}"),
        1.5 * bytes,
        || drop(embedding::forward(&table, &ids, 0..VOCAB, 1.0, kind)),
        || drop(embedding::aten::forward(&table, &ids, 0..VOCAB, 1.0, kind)),
    );
    bench.compare(
        &format!("embedding backward {kind:?}"),
        0.5 * bytes + (TOKENS * HIDDEN * 4) as f64,
        || embedding::backward(&d_table, &d_out, &ids, 0..VOCAB, 1.0),
        || embedding::aten::backward(&d_table, &d_out, &ids, 0..VOCAB, 1.0),
    );
}

fn gradient_stores(bench: &Bench, kind: Kind) {
    let value = random(&[8192, HIDDEN], kind);
    let gradient = Tensor::zeros([8192, HIDDEN], (Kind::Float, Device::Cpu));
    for (accumulate, passes) in [(Accumulate::First, 1.0), (Accumulate::Add, 2.0)] {
        bench.compare(
            &format!("store {accumulate:?} {kind:?}"),
            size(&value) + passes * size(&gradient),
            || linear::store(&gradient, &value, accumulate),
            || linear::aten::store(&gradient, &value, accumulate),
        );
    }
    let d_y = random(&[TOKENS, 9 * 64], kind);
    let d_bias = Tensor::zeros([9 * 64], (Kind::Float, Device::Cpu));
    bench.compare(
        &format!("bias gradient {kind:?}"),
        size(&d_y),
        || linear::backward_bias(&d_bias, &d_y, Accumulate::First),
        || linear::aten::backward_bias(&d_bias, &d_y, Accumulate::First),
    );
}

fn optimizer(bench: &Bench) {
    let length = 16 << 20;
    let [master, exp_avg, gradient] = [(); 3].map(|()| random(&[length], Kind::Float));
    let exp_avg_sq = gradient.square();
    let compute = Tensor::zeros([length], (Kind::BFloat16, Device::Cpu));
    let state = AdamWState {
        master: &master,
        exp_avg: &exp_avg,
        exp_avg_sq: &exp_avg_sq,
        gradient: &gradient,
        compute: Some(&compute),
    };
    let step = AdamWStep {
        learning_rate: 1e-6,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        step: 100,
        gradient_scale: 0.5,
    };
    bench.compare(
        "adamw with bf16 copy",
        30.0 * length as f64,
        || adamw::step(&state, &step),
        || adamw::aten::step(&state, &step),
    );
    bench.compare(
        "sum of squares",
        size(&gradient),
        || {
            let mut sum = tandem_tensor::sum_of_squares::SumOfSquares::default();
            sum.add(&gradient);
            black_box(sum.value());
        },
        || drop(gradient.square().sum(Kind::Float)),
    );
}

struct Bench {
    /// Bytes per second that a copy reads and writes.
    copy: f64,
}

impl Bench {
    /// One line of the table: `bytes` must move, whoever computes.
    fn compare(&self, name: &str, bytes: f64, fused: impl Fn(), aten: impl Fn()) {
        fused();
        aten();
        let mut times: Vec<(f64, f64)> = (0..REPEATS)
            .map(|_| (seconds(&fused), seconds(&aten)))
            .collect();
        times.sort_by(|a, b| a.0.total_cmp(&b.0));
        let fused = times[REPEATS / 2].0;
        times.sort_by(|a, b| a.1.total_cmp(&b.1));
        let aten = times[REPEATS / 2].1;
        println!(
            "{name:28} {:>9.2} {:>10.1} {:>7.0}% {:>9.1} {:>7.1}x",
            bytes / 1e6,
            bytes / fused / 1e9,
            100.0 * bytes / fused / self.copy,
            bytes / aten / 1e9,
            aten / fused
        );
    }
}

/// Of blocks far larger than the caches.
fn copy_bandwidth() -> f64 {
    let source = vec![1u8; 128 << 20];
    let mut target = vec![0u8; source.len()];
    let best = (0..REPEATS)
        .map(|_| seconds(&mut || black_box(&mut target).copy_from_slice(black_box(&source))))
        .fold(f64::INFINITY, f64::min);
    2.0 * source.len() as f64 / best
}

/// Processor time of this thread in `run`.
fn seconds(mut run: impl FnMut()) -> f64 {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    };
    let start = now();
    run();
    now() - start
}

fn random(shape: &[i64], kind: Kind) -> Tensor {
    let numel: i64 = shape.iter().product();
    let mut values = vec![0f32; numel as usize];
    tandem_tensor::random::fill_normal(&mut values, 0, "bench", 0, 1.0);
    Tensor::from_slice(&values).view(shape).to_kind(kind)
}

fn size(t: &Tensor) -> f64 {
    (t.numel() * t.kind().elt_size_in_bytes()) as f64
}
