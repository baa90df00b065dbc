//! The floor under a step's time: its matrix products, each at the rate that this machine reaches for exactly that
//! shape.

use std::time::Instant;

use tandem_model::LayerDims;
use tandem_tensor::linear::{self, Accumulate};
use tandem_tensor::{Device, Kind, Tensor};

use crate::engine::Engine;

/// One linear layer of the step.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearShape {
    /// For tables.
    pub name: &'static str,
    /// Rows of the activations.
    pub tokens: usize,
    /// Columns of the activations.
    pub inputs: usize,
    /// Columns of the result.
    pub outputs: usize,
    /// How often it runs in a micro-batch.
    pub count: usize,
}

/// Seconds of one linear layer's three products.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearTime {
    /// Which.
    pub shape: LinearShape,
    /// `x W^T`
    pub forward_s: f64,
    /// `d_y W`
    pub input_gradient_s: f64,
    /// `d_y^T x`, in the kind of the matrix products: without accumulating.
    pub weight_gradient_s: f64,
}

impl LinearTime {
    /// Seconds in one micro-batch.
    pub fn total_s(&self) -> f64 {
        self.shape.count as f64 * (self.forward_s + self.input_gradient_s + self.weight_gradient_s)
    }

    /// Floating point operations per second over the three products.
    pub fn rate(&self) -> f64 {
        let shape = &self.shape;
        let flops = 6.0 * (shape.tokens * shape.inputs * shape.outputs * shape.count) as f64;
        flops / self.total_s()
    }
}

/// The linear layers that this rank computes in a micro-batch of `tokens` tokens.
pub fn shapes(engine: &Engine, tokens: usize) -> Vec<LinearShape> {
    let layers = engine.layers.len();
    let Some(layer) = engine.layers.first() else {
        return Vec::new();
    };
    let LayerDims {
        hidden,
        head_dim,
        q_heads,
        intermediate,
        ..
    } = layer.dims;
    let vocab = (engine.head.vocab.end - engine.head.vocab.start) as usize;
    let rows = engine.head.chunk_rows.min(tokens);
    let shape = |name, tokens, inputs, outputs, count| LinearShape {
        name,
        tokens,
        inputs,
        outputs,
        count,
    };
    vec![
        shape("q|k|v", tokens, hidden, layer.dims.qkv_width(), layers),
        shape("attention out", tokens, q_heads * head_dim, hidden, layers),
        shape("gate|up", tokens, hidden, 2 * intermediate, layers),
        shape("down", tokens, intermediate, hidden, layers),
        shape("head", rows, hidden, vocab, tokens.div_ceil(rows)),
    ]
}

/// Measures each shape, the best of `repeats` runs. All ranks measure at the same time, as they compute at the same
/// time.
pub fn measure(
    shapes: &[LinearShape],
    kind: Kind,
    device: Device,
    repeats: usize,
) -> Vec<LinearTime> {
    shapes
        .iter()
        .map(|shape| {
            let (n, i, o) = (
                shape.tokens as i64,
                shape.inputs as i64,
                shape.outputs as i64,
            );
            let filled =
                |rows: i64, columns: i64| Tensor::full([rows, columns], 0.01, (kind, device));
            let (x, w, d_y, d_w) = (filled(n, i), filled(o, i), filled(n, o), filled(o, i));
            LinearTime {
                shape: shape.clone(),
                forward_s: best(repeats, &|| drop(linear::forward(&x, &w, None))),
                input_gradient_s: best(repeats, &|| drop(linear::backward_input(&d_y, &w))),
                weight_gradient_s: best(repeats, &|| {
                    linear::backward_weight(&d_w, &d_y, &x, Accumulate::First);
                }),
            }
        })
        .collect()
}

fn best(repeats: usize, run: &dyn Fn()) -> f64 {
    run();
    (0..repeats.max(1))
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}
