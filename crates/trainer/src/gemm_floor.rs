//! The floor under a step's time: its matrix products, each at the rate that this machine reaches for exactly that
//! shape.

use std::time::Instant;

use tandem_model::{ExpertsDims, LayerDims};
use tandem_tensor::device::synchronize;
use tandem_tensor::{Accumulate, Device, Kind, Tensor, linear};

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

/// What the sizes of a rank's matrix products follow from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dimensions {
    /// The slices of layers that it computes, and how many layers are alike.
    pub layers: Vec<(LayerDims, usize)>,
    /// Rows of the head's matrix: its part of the vocabulary.
    pub vocab: usize,
    /// Rows of activations that the head multiplies at a time.
    pub head_chunk_rows: usize,
    /// Ranks of the row that route a part of its tokens each; 1 where each routes all.
    pub routers: usize,
}

/// The linear layers that a rank computes in a micro-batch of `tokens` tokens.
pub fn shapes(dimensions: &Dimensions, tokens: usize) -> Vec<LinearShape> {
    let shape = |name, tokens, inputs, outputs, count| LinearShape {
        name,
        tokens,
        inputs,
        outputs,
        count,
    };
    let mut all = Vec::new();
    for (layer, count) in &dimensions.layers {
        let (hidden, heads) = (layer.hidden, layer.q_heads * layer.head_dim);
        all.push(shape("q|k|v", tokens, hidden, layer.qkv_width(), *count));
        all.push(shape("attention out", tokens, heads, hidden, *count));
        // Experts in balance: each multiplies the same number of rows.
        let (rows, inner, count) = match &layer.experts {
            None => (tokens, layer.intermediate, *count),
            Some(ExpertsDims {
                rule,
                here,
                intermediate,
            }) => {
                let rows = (tokens * rule.top_k).div_ceil(here * dimensions.routers);
                (rows, *intermediate, count * here)
            }
        };
        all.push(shape("gate|up", rows, hidden, 2 * inner, count));
        all.push(shape("down", rows, inner, hidden, count));
    }
    let rows = dimensions.head_chunk_rows.min(tokens).max(1);
    if let Some((layer, _)) = dimensions.layers.first() {
        let chunks = tokens.div_ceil(rows);
        all.push(shape("head", rows, layer.hidden, dimensions.vocab, chunks));
    }
    all
}

/// Measures each shape, the best of `repeats` runs. All ranks measure at the same time, as they compute at the same
/// time.
pub fn measure(
    shapes: &[LinearShape],
    kind: Kind,
    device: Device,
    repeats: usize,
) -> Vec<LinearTime> {
    let wait = || synchronize(device);
    let best = |run: &dyn Fn()| best(repeats, &wait, run);
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
                forward_s: best(&|| drop(linear::forward(&x, &w, None))),
                input_gradient_s: best(&|| drop(linear::backward_input(&d_y, &w))),
                weight_gradient_s: best(&|| {
                    linear::backward_weight(&d_w, &d_y, &x, Accumulate::First);
                }),
            }
        })
        .collect()
}

/// Seconds of the best of `repeats` runs, after one that warms up. `wait` returns when the device has done what `run` has
/// given it to do.
fn best(repeats: usize, wait: &dyn Fn(), run: &dyn Fn()) -> f64 {
    run();
    wait();
    (0..repeats.max(1))
        .map(|_| {
            let start = Instant::now();
            run();
            wait();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// Else, the time of a launch would be taken for that of the work.
    #[test]
    fn the_device_is_waited_for_before_the_clock_is_read() {
        let log = RefCell::new(String::new());
        let seconds = best(
            2,
            &|| {
                std::thread::sleep(std::time::Duration::from_millis(5));
                log.borrow_mut().push_str("wait ");
            },
            &|| log.borrow_mut().push_str("run "),
        );
        assert_eq!(log.take(), "run wait run wait run wait ");
        assert!(seconds >= 5e-3, "{seconds}");
    }
}
