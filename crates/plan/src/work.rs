//! What a rank computes in a step, operation by operation, as the modules of `tandem_model` do it. Sizes alone: what an operation
//! costs is the device's matter.

use tandem_model::{LayerDims, Recompute};
use tandem_tensor::Kind;

use crate::settings::Settings;
use crate::share::{Layer, Share};

/// One operation, or several that are alike.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Operation {
    /// `[rows, inner] . [inner, columns]`.
    Product {
        rows: u128,
        inner: u128,
        columns: u128,
        count: u128,
        kind: Kind,
    },
    /// Of this many operations, over the keys that are seen.
    Attention { flops: f64, is_backward: bool },
    /// A pass over memory that moves this many bytes where one kernel does all of it.
    Pass {
        bytes: f64,
        as_tensors: AsTensors,
        count: f64,
    },
}

/// What a pass costs as a row of tensor operations, each of which reads and writes all of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct AsTensors {
    /// Times the bytes.
    pub factor: f64,
    /// Operations that are launched.
    pub operations: f64,
}

// Counted in the `aten` modules of `tandem_tensor`, in bf16: bytes of all operations over those of the fused kernel. What libtorch's fused
// operators save there is not in it: these are the numbers of programs in eager mode, with which published ones are compared.
const ONCE: AsTensors = tensors(1.0, 1.0);
const NORM: AsTensors = tensors(4.0, 8.0);
const NORM_BACKWARD: AsTensors = tensors(9.0, 12.0);
const GLU: AsTensors = tensors(1.7, 2.0);
const GLU_BACKWARD: AsTensors = tensors(4.0, 10.0);
const ROTATION: AsTensors = tensors(2.0, 8.0);
const CROSS_ENTROPY: AsTensors = tensors(10.0, 18.0);
const UPDATE: AsTensors = tensors(3.5, 14.0);

const fn tensors(factor: f64, operations: f64) -> AsTensors {
    AsTensors { factor, operations }
}

/// Forward and backward of a part of the model, for one micro-batch.
#[derive(Debug, Clone, Default)]
pub(crate) struct Part {
    pub forward: Vec<Operation>,
    pub backward: Vec<Operation>,
    /// Of the backward pass, the gradients of weights that are computed while the attention's, and the MLP's, input's gradient is
    /// summed over the row; and those while rows are on their way back from experts.
    pub beside: [Vec<Operation>; 3],
}

/// Sizes of a micro-batch as numbers for sums of bytes.
struct Sizes<'a> {
    settings: &'a Settings,
    share: &'a Share,
    all: u128,
    stream: f64,
    /// The normed stream of this rank's tokens, in the kind of products.
    own_normed: f64,
    c: f64,
    r: f64,
    kind: Kind,
}

impl<'a> Sizes<'a> {
    fn of(share: &'a Share, settings: &'a Settings) -> Self {
        let (c, r) = (
            settings.product_bytes() as f64,
            settings.residual_bytes() as f64,
        );
        let hidden = share.hidden as f64;
        let own = settings.own_tokens() as f64;
        Self {
            settings,
            share,
            all: settings.tokens(),
            stream: own * hidden * r,
            own_normed: own * hidden * c,
            c,
            r,
            kind: settings.precision.matmul,
        }
    }

    fn product(&self, rows: u128, inner: usize, columns: usize) -> Operation {
        Operation::Product {
            rows,
            inner: inner as u128,
            columns: columns as u128,
            count: 1,
            kind: self.kind,
        }
    }

    /// The keys that a query of a full row sees, on average.
    fn keys(&self, window: Option<usize>) -> f64 {
        let seq = self.settings.seq_length as f64;
        match window.map(|window| window as f64).filter(|it| *it < seq) {
            // The first queries see fewer.
            Some(window) => window - window * (window - 1.0) / (2.0 * seq),
            None => (seq + 1.0) / 2.0,
        }
    }
}

fn pass(bytes: f64, as_tensors: AsTensors) -> Operation {
    Operation::Pass {
        bytes,
        as_tensors,
        count: 1.0,
    }
}

/// A product's two gradients: of its input, and of its weight.
fn gradients(product: Operation) -> [Operation; 2] {
    let Operation::Product {
        rows,
        inner,
        columns,
        count,
        kind,
    } = product
    else {
        return [product, product];
    };
    let with = |rows, inner, columns| Operation::Product {
        rows,
        inner,
        columns,
        count,
        kind,
    };
    [with(rows, columns, inner), with(columns, rows, inner)]
}

/// One layer.
pub(crate) fn layer(layer: &Layer, share: &Share, settings: &Settings) -> Part {
    let s = Sizes::of(share, settings);
    let mut part = Part::default();
    attention(layer, &s, &mut part);
    mlp(layer, &s, &mut part);
    if settings.recompute == Recompute::Full {
        part.backward.extend(part.forward.clone());
    }
    part
}

fn attention(layer: &Layer, s: &Sizes<'_>, part: &mut Part) {
    let LayerDims {
        hidden,
        head_dim,
        q_heads,
        kv_heads,
        ..
    } = layer.dims;
    let norms = &layer.dims.layer_norms;
    let (q_width, qkv) = (q_heads * head_dim, layer.dims.qkv_width());
    let rotated = s.all as f64 * ((q_heads + kv_heads) * head_dim) as f64 * s.c;
    let flops = 4.0 * s.all as f64 * s.keys(layer.window) * q_width as f64;
    let into = s.product(s.all, hidden, qkv);
    let out = s.product(s.all, q_width, hidden);
    let (forward, backward) = (&mut part.forward, &mut part.backward);
    forward.push(pass(s.stream + s.own_normed, NORM));
    forward.push(into);
    if layer.dims.qk_norm.is_some() {
        forward.push(pass(2.0 * rotated, NORM));
    }
    forward.push(pass(2.0 * rotated, ROTATION));
    let kernel = |times: f64, is_backward| Operation::Attention {
        flops: times * flops,
        is_backward,
    };
    forward.push(kernel(1.0, false));
    forward.push(out);
    // Back into the stream.
    forward.push(pass(2.0 * s.stream + s.own_normed, ONCE));
    if norms.after_attention.is_some() {
        forward.push(pass(2.0 * s.own_normed, NORM));
        backward.push(pass(3.0 * s.own_normed, NORM_BACKWARD));
    }
    let trains = !s.share.is_frozen();
    let [d_joined, d_out_weight] = gradients(out);
    let [d_input, d_qkv_weight] = gradients(into);
    backward.push(d_joined);
    // Five products in the place of two.
    backward.push(kernel(2.5, true));
    backward.push(pass(
        2.0 * s.all as f64 * qkv as f64 * s.c,
        tensors(1.0, 3.0),
    ));
    backward.push(pass(2.0 * rotated, ROTATION));
    if layer.dims.qk_norm.is_some() {
        backward.push(pass(2.0 * rotated, NORM));
        backward.push(pass(3.0 * rotated, NORM_BACKWARD));
    }
    backward.push(d_input);
    if trains {
        backward.extend([d_out_weight, d_qkv_weight]);
        part.beside[0].push(d_qkv_weight);
    }
    norm_backward(s, s.settings.recompute == Recompute::Light, backward);
    adapters(s, part, layer.adapted[0], hidden, qkv);
    adapters(s, part, layer.adapted[1], q_width, hidden);
}

fn mlp(layer: &Layer, s: &Sizes<'_>, part: &mut Part) {
    let hidden = layer.dims.hidden;
    let norms = &layer.dims.layer_norms;
    let light = s.settings.recompute == Recompute::Light;
    let trains = !s.share.is_frozen();
    let (forward, backward) = (&mut part.forward, &mut part.backward);
    if norms.before_mlp.is_some() {
        forward.push(pass(s.stream + s.own_normed, NORM));
    }
    let (rows, inner, experts) = match &layer.dims.experts {
        None => (s.all, layer.dims.intermediate, 1),
        Some(experts) => {
            let tokens = s.settings.routed_tokens(experts);
            let rows = tokens * experts.rule.top_k as u128;
            let router = Operation::Product {
                rows: tokens,
                inner: hidden as u128,
                columns: experts.rule.experts as u128,
                count: 1,
                kind: Kind::Float,
            };
            let (wide, narrow) = (
                rows as f64 * hidden as f64 * s.c,
                rows as f64 * experts.intermediate as f64 * s.c,
            );
            let normed = tokens as f64 * hidden as f64 * s.c;
            // To fp32 and the router; rows to the experts and back; each times its weight.
            forward.push(pass(normed * (1.0 + 4.0 / s.c), ONCE));
            forward.push(router);
            forward.push(pass(3.0 * wide + 2.0 * normed, tensors(1.0, 3.0)));
            forward.push(pass(2.0 * narrow, ONCE));
            backward.extend(gradients(router));
            backward.push(pass(5.0 * wide + 3.0 * normed, tensors(1.0, 4.0)));
            backward.push(pass(7.0 * narrow, tensors(1.5, 4.0)));
            if experts.is_spread() {
                // Rows that came are sorted, and put back as they came; backward has those of forward.
                forward.push(pass(4.0 * wide, tensors(1.0, 2.0)));
                backward.push(pass(2.0 * wide, ONCE));
                if trains {
                    let [_, d_router] = gradients(router);
                    part.beside[1].push(d_router);
                }
            }
            (rows, experts.intermediate, experts.here)
        }
    };
    // Experts in balance: each multiplies as many rows.
    let each = rows.div_ceil(experts as u128);
    let with_count = |operation| match operation {
        Operation::Product {
            rows,
            inner,
            columns,
            kind,
            ..
        } => Operation::Product {
            rows,
            inner,
            columns,
            count: experts as u128,
            kind,
        },
        other => other,
    };
    let gate_up = with_count(s.product(each, hidden, 2 * inner));
    let down = with_count(s.product(each, inner, hidden));
    let branch = rows as f64 * inner as f64 * s.c;
    forward.extend([gate_up, pass(3.0 * branch, GLU), down]);
    forward.push(pass(2.0 * s.stream + s.own_normed, ONCE));
    if norms.after_mlp.is_some() {
        forward.push(pass(2.0 * s.own_normed, NORM));
        backward.push(pass(3.0 * s.own_normed, NORM_BACKWARD));
    }
    let [d_product, d_down] = gradients(down);
    let [d_input, d_gate_up] = gradients(gate_up);
    let product = if light { branch } else { 0.0 };
    backward.extend([
        d_product,
        pass(5.0 * branch + product, GLU_BACKWARD),
        d_input,
    ]);
    if trains {
        backward.extend([d_down, d_gate_up]);
        let is_spread = layer.dims.spreads_experts();
        part.beside[if is_spread { 2 } else { 1 }].extend([d_down, d_gate_up]);
    }
    norm_backward(s, light, backward);
    adapters(s, part, layer.adapted[2], hidden, 2 * inner);
    adapters(s, part, layer.adapted[3], inner, hidden);
}

/// The norm before a block, whose output may be computed once more for the gradients of weights.
fn norm_backward(s: &Sizes<'_>, again: bool, backward: &mut Vec<Operation>) {
    if again {
        backward.push(pass(s.stream + s.own_normed, NORM));
    }
    backward.push(pass(3.0 * s.stream + s.own_normed, NORM_BACKWARD));
}

/// `count` adapters of matrices that multiply `inputs` and produce `outputs` together.
fn adapters(s: &Sizes<'_>, part: &mut Part, count: usize, inputs: usize, outputs: usize) {
    let Some(lora) = s.share.lora.as_ref().filter(|_| count > 0) else {
        return;
    };
    let rank = lora.r;
    let a = s.product(s.all, inputs, count * rank);
    let b = s.product(s.all, rank, outputs);
    let all = s.all as f64 * s.c;
    part.forward.extend([a, b]);
    part.forward
        .push(pass(3.0 * all * outputs as f64, tensors(1.0, 2.0)));
    part.backward.extend(gradients(b));
    part.backward.extend(gradients(a));
    // The hidden vectors once more, and what is added to the gradient of the input.
    part.backward.push(a);
    part.backward
        .push(pass(3.0 * all * inputs as f64, tensors(1.0, 2.0)));
    if lora.dropout > 0.0 {
        let mask = pass(4.0 * all * inputs as f64 * count as f64, tensors(1.5, 3.0));
        part.forward.push(mask);
        part.backward.extend([mask, mask]);
    }
}

/// The embedding.
pub(crate) fn embedding(share: &Share, settings: &Settings) -> Part {
    let s = Sizes::of(share, settings);
    let rows = s.all as f64 * share.hidden as f64;
    let mut part = Part {
        forward: vec![pass(rows * (s.c + s.r), ONCE)],
        ..Part::default()
    };
    if !share.is_frozen() {
        // A table of its own begins with zeros.
        let zeros = match share.tied {
            true => 0.0,
            false => 4.0 * share.vocab as f64 * share.hidden as f64,
        };
        part.backward = vec![pass(rows * (s.r + 8.0) + zeros, tensors(1.0, 2.0))];
    }
    part
}

/// Final norm, head and loss, forward and backward in one.
pub(crate) fn head(share: &Share, settings: &Settings) -> Part {
    let s = Sizes::of(share, settings);
    let chunk = s.all.min(settings.head_chunk_rows.max(1) as u128);
    let chunks = s.all.div_ceil(chunk);
    let logits = chunk as f64 * share.vocab as f64 * s.c;
    let mut backward = vec![
        pass(s.stream + s.own_normed, NORM),
        pass(2.0 * s.stream + s.own_normed, NORM_BACKWARD),
    ];
    let product = Operation::Product {
        rows: chunk,
        inner: share.hidden as u128,
        columns: share.vocab as u128,
        count: chunks,
        kind: s.kind,
    };
    let [d_input, d_weight] = gradients(product);
    backward.extend([product, d_input]);
    if !share.is_frozen() {
        backward.push(d_weight);
    }
    // Read twice, and written once.
    backward.push(Operation::Pass {
        bytes: 3.0 * logits,
        as_tensors: CROSS_ENTROPY,
        count: chunks as f64,
    });
    Part {
        backward,
        ..Part::default()
    }
}

/// The norm of the gradient, and AdamW over what this rank owns.
pub(crate) fn update(share: &Share, settings: &Settings) -> Vec<Operation> {
    let (units, each) = match share.is_frozen() {
        true => (&share.adapters, settings.precision.param),
        false => (&share.units, settings.precision.param),
    };
    let compute = match each.elt_size_in_bytes() {
        // The master is what computes.
        4 => 0.0,
        bytes => bytes as f64,
    };
    let of_unit = |unit: &crate::share::Unit| {
        let level = unit.level(settings);
        let share = match level {
            tandem_parallel::ShardingLevel::Replicated => 1.0,
            _ => 1.0 / unit.replicas(settings) as f64,
        };
        // Read for the norm, by each of a column its part; then gradients read, master and moments read and written.
        let norm = 4.0 / unit.replicas(settings) as f64;
        let bytes = unit.numel as f64 * (norm + (4.0 + 24.0 + compute) * share);
        pass(bytes, UPDATE)
    };
    units.iter().map(of_unit).collect()
}
