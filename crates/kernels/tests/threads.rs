//! Every kernel gives the same bits on any number of threads.

use half::bf16;
use rayon::ThreadPoolBuilder;
use tandem_kernels::adamw::{self, AdamWStep};
use tandem_kernels::glu::Activation;
use tandem_kernels::{
    Accumulate, Element, cross_entropy, embedding, glu, linear, random, rms_norm, rope,
    sum_of_squares,
};

/// What all kernels compute, from the same inputs each time.
#[derive(Default)]
struct Results(Vec<(&'static str, Vec<u32>)>);

impl Results {
    fn keep<T: Element>(&mut self, name: &'static str, values: &[T]) {
        let bits = values.iter().map(|x| x.widen().to_bits()).collect();
        self.0.push((name, bits));
    }
}

fn numbers<T: Element>(len: usize, seed: u64) -> Vec<T> {
    let mut values = vec![0f32; len];
    random::fill_normal(&mut values, seed, "threads", 0, 1.0);
    values.into_iter().map(T::round).collect()
}

fn zeros<T: Element>(len: usize) -> Vec<T> {
    vec![T::round(0.0); len]
}

const TOKENS: usize = 203;
const HIDDEN: usize = 130;
const VOCAB: usize = 5003;

fn results<T: Element>() -> Results {
    let mut results = Results::default();
    norms::<T>(&mut results);
    features::<T>(&mut results);
    vocabulary::<T>(&mut results);
    optimizer::<T>(&mut results);
    results
}

fn norms<T: Element>(results: &mut Results) {
    let (x, delta) = (
        numbers::<T>(TOKENS * HIDDEN, 1),
        numbers::<T>(TOKENS * HIDDEN, 2),
    );
    let weight = numbers::<f32>(HIDDEN, 3);
    let (mut sum, mut y) = (zeros::<T>(x.len()), zeros::<T>(x.len()));
    let mut rstd = zeros::<f32>(TOKENS);
    let norm = rms_norm::Norm::new(&weight, 1e-6);
    rms_norm::forward(&x, norm, &mut y, &mut rstd);
    results.keep("norm", &y);
    let out = rms_norm::Residual {
        sum: &mut sum,
        y: &mut y,
        rstd: &mut rstd,
    };
    rms_norm::forward_residual(&x, &delta, 1.0, norm, out);
    results.keep("sum", &sum);
    results.keep("norm of the sum", &y);
    let mut branch_rstd = zeros::<f32>(TOKENS);
    let out = rms_norm::Branch {
        sum: &mut sum,
        branch_rstd: &mut branch_rstd,
        y: &mut y,
        rstd: &mut rstd,
    };
    rms_norm::forward_branch(&x, &delta, norm, Some(norm), out);
    results.keep("norm of a branch", &sum);
    let mut d_weight = zeros::<f32>(HIDDEN);
    let out = rms_norm::Gradients {
        d_x: &mut y,
        d_weight: &mut d_weight,
    };
    rms_norm::backward(&delta, &sum, &weight, &rstd, Some(&x), out);
    results.keep("norm d_x", &y);
    results.keep("norm d_weight", &d_weight);
}

fn features<T: Element>(results: &mut Results) {
    let gate_up = numbers::<T>(TOKENS * HIDDEN, 1);
    let d_y = numbers::<T>(gate_up.len() / 2, 2);
    let (mut product, mut d_gate_up) = (zeros::<T>(d_y.len()), zeros::<T>(gate_up.len()));
    let half = HIDDEN / 2;
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
        glu::forward(activation, &gate_up, half, &mut product);
        results.keep("glu", &product);
        let (product, d) = (&mut product, &mut d_gate_up);
        glu::forward_and_backward(activation, &d_y, &gate_up, half, product, d);
        results.keep("glu again", product);
        results.keep("glu d", d);
    }

    let mut heads = numbers::<T>(TOKENS * HIDDEN, 1);
    let angles = numbers::<f32>(TOKENS * 13, 4);
    let cos: Vec<f32> = angles.iter().map(|x| x.cos()).collect();
    let sin: Vec<f32> = angles.iter().map(|x| x.sin()).collect();
    let tokens = rope::TokensMut::new(&mut heads, TOKENS, HIDDEN, HIDDEN);
    rope::rotate(tokens, 26, rope::Table::new(&cos, &sin, 13), 1.0);
    results.keep("rope", &heads);
}

fn vocabulary<T: Element>(results: &mut Results) {
    let ids: Vec<i64> = (0..TOKENS as i64).map(|i| i * 37 % 50).collect();
    let d_out = numbers::<T>(TOKENS * HIDDEN, 2);
    let mut d_table = numbers::<f32>(40 * HIDDEN, 5);
    embedding::backward(&mut d_table, &d_out, &ids, &(0..40), 2.0);
    results.keep("embedding d", &d_table);
    let table = numbers::<T>(40 * HIDDEN, 6);
    let mut rows = zeros::<T>(TOKENS * HIDDEN);
    embedding::forward(&table, &ids, &(0..40), 2.0, &mut rows);
    results.keep("embedding", &rows);

    let (mut logits, vocab) = (numbers::<T>(TOKENS * VOCAB, 7), 0..VOCAB as i64);
    let mut stats = zeros::<f32>(3 * TOKENS);
    let bend = cross_entropy::Bend {
        scale: 0.5,
        soft_cap: Some(3.0),
    };
    cross_entropy::local_stats(&mut logits, &ids, &vocab, bend, &mut stats);
    results.keep("stats", &stats);
    let logsumexp: Vec<f32> = (0..TOKENS)
        .map(|row| stats[row] + stats[TOKENS + row].ln())
        .collect();
    let objective = cross_entropy::Objective {
        scale: 0.1,
        z_loss: 0.01,
    };
    cross_entropy::logits_to_gradient(&mut logits, &ids, &vocab, &logsumexp, bend, objective);
    results.keep("d_logits", &logits);

    let mut d_bias = zeros::<f32>(VOCAB);
    linear::backward_bias(&mut d_bias, &logits, Accumulate::Add);
    results.keep("bias", &d_bias);
    let mut gradient = numbers::<f32>(logits.len(), 8);
    linear::store(&mut gradient, &logits, Accumulate::Add);
    results.keep("store", &gradient);
}

fn optimizer<T: Element>(results: &mut Results) {
    let [mut master, mut exp_avg, gradient] = [9, 10, 11].map(|seed| numbers::<f32>(100_003, seed));
    let mut exp_avg_sq: Vec<f32> = gradient.iter().map(|g| g * g).collect();
    let mut compute = zeros::<T>(master.len());
    let state = adamw::State {
        master: &mut master,
        exp_avg: &mut exp_avg,
        exp_avg_sq: &mut exp_avg_sq,
        gradient: &gradient,
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
    adamw::step(state, Some(&mut compute), &step);
    results.keep("adamw", &master);
    results.keep("adamw copy", &compute);
    let norm = sum_of_squares::sum_of_squares(&gradient).to_bits();
    let halves = vec![(norm >> 32) as u32, norm as u32];
    results.0.push(("sum of squares", halves));
}

/// Products and attention, where the processor has their instructions.
#[cfg(target_arch = "x86_64")]
fn products() -> Results {
    use tandem_kernels::attention::{self, Gradients, Heads, Inputs, Saved, Spec};
    use tandem_kernels::avx512_bf16::Avx512Bf16;
    use tandem_kernels::matmul::{LowRank, MatrixMut, MatrixView, product, rounded_product};

    let mut results = Results::default();
    let Some(cpu) = Avx512Bf16::detect() else {
        return results;
    };
    let (m, k, n) = (203, 1400, 307);
    let (a, b) = (numbers::<bf16>(m * k, 12), numbers::<bf16>(n * k, 13));
    let bias = numbers::<f32>(n, 14);
    let a = MatrixView::new(&a, m, k, k, 1);
    let b = MatrixView::new(&b, n, k, k, 1).transposed();
    let mut sums = numbers::<f32>(m * n, 15);
    let out = MatrixMut::new(&mut sums, m, n, n);
    product(cpu, out, a, b, Some(&bias), Accumulate::Add);
    results.keep("product", &sums);
    let mut rounded = zeros::<bf16>(m * n);
    let out = MatrixMut::new(&mut rounded, m, n, n);
    let (low_a, low_b) = (numbers::<bf16>(m * 6, 26), numbers::<bf16>(200 * 6, 27));
    let plus = LowRank {
        a: MatrixView::new(&low_a, m, 6, 6, 1),
        b: MatrixView::new(&low_b, 6, 200, 200, 1),
        columns: 50..250,
    };
    rounded_product(cpu, out, a, b, Some(&bias), &[plus]);
    results.keep("rounded product", &rounded);

    let (size, kv_size) = ([2, 130, 6, 33], [2, 130, 2, 33]);
    let (len, kv_len) = (size.iter().product(), kv_size.iter().product());
    let [q, d_out] = [16, 17].map(|seed| numbers::<bf16>(len, seed));
    let [k, v] = [18, 19].map(|seed| numbers::<bf16>(kv_len, seed));
    let inputs = Inputs {
        q: Heads::plain(&q, size),
        k: Heads::plain(&k, kv_size),
        v: Heads::plain(&v, kv_size),
        documents: None,
    };
    let spec = Spec {
        scale: 0.2,
        window: Some(50),
        soft_cap: None,
    };
    let (mut out, mut logsumexp) = (zeros::<bf16>(len), zeros::<f32>(2 * 6 * 130));
    attention::forward(cpu, inputs, spec, &mut out, &mut logsumexp);
    results.keep("attention", &out);
    results.keep("attention's sums", &logsumexp);
    let mut d_q = zeros::<bf16>(len);
    let (mut d_k, mut d_v) = (zeros::<bf16>(kv_len), zeros::<bf16>(kv_len));
    let gradients = Gradients {
        d_q: &mut d_q,
        d_k: &mut d_k,
        d_v: &mut d_v,
    };
    let saved = Saved {
        out: Heads::plain(&out, size),
        logsumexp: &logsumexp,
    };
    let d_out = Heads::plain(&d_out, size);
    attention::backward(cpu, inputs, spec, saved, d_out, gradients);
    for (name, gradient) in [("d_q", &d_q), ("d_k", &d_k), ("d_v", &d_v)] {
        results.keep(name, gradient);
    }
    results
}

fn same_on_all_threads(kind: &str, results: impl Fn() -> Results + Send + Sync) {
    let on = |threads| {
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("threads can be started");
        pool.install(|| results().0)
    };
    let one = on(1);
    for threads in [2, 3, 7] {
        for ((name, expected), (_, found)) in one.iter().zip(on(threads)) {
            assert!(*expected == found, "{name}, {kind}, {threads} threads");
        }
    }
    println!(
        "{kind}: {} results, the same on 1, 2, 3 and 7 threads",
        one.len()
    );
}

#[test]
fn bits_do_not_depend_on_the_threads() {
    same_on_all_threads("fp32", results::<f32>);
    same_on_all_threads("bf16", results::<bf16>);
    #[cfg(target_arch = "x86_64")]
    same_on_all_threads("products", products);
}
