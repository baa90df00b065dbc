//! The floor under a step's time: its matrix products, each at the rate that this machine reaches for exactly that
//! shape.

use std::time::Instant;

use tandem_model::{ExpertsDims, LayerDims};
use tandem_tensor::device::synchronize;
use tandem_tensor::{Accumulate, Device, Kind, Tensor, linear};

/// Which products of a linear layer a step needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Products {
    /// `x W^T`
    pub forward: bool,
    /// `d_y W`
    pub input_gradient: bool,
    /// `d_y^T x`
    pub weight_gradient: bool,
}

impl Products {
    /// Of a layer that is trained.
    pub const ALL: Self = Self {
        forward: true,
        input_gradient: true,
        weight_gradient: true,
    };
    /// Of one that gradients only pass.
    pub const FROZEN: Self = Self {
        weight_gradient: false,
        ..Self::ALL
    };
    /// Of an adapter's `A`; its input's gradient is in the sums of the adapted matrix's.
    const OF_A: Self = Self {
        input_gradient: false,
        ..Self::ALL
    };
    /// Of an adapter's `B`; what it makes is in the sums of what the adapted matrix makes.
    const OF_B: Self = Self {
        forward: false,
        ..Self::ALL
    };

    fn count(self) -> usize {
        let Self {
            forward,
            input_gradient,
            weight_gradient,
        } = self;
        [forward, input_gradient, weight_gradient]
            .into_iter()
            .filter(|is_needed| *is_needed)
            .count()
    }
}

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
    /// What is computed of it.
    pub products: Products,
}

/// Seconds of one linear layer's products; 0 of one that is not needed.
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

    /// Floating point operations per second over the products.
    pub fn rate(&self) -> f64 {
        let shape = &self.shape;
        let each = 2.0 * shape.products.count() as f64;
        let flops = each * (shape.tokens * shape.inputs * shape.outputs * shape.count) as f64;
        flops / self.total_s()
    }
}

/// What the sizes of a rank's matrix products follow from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dimensions {
    /// The slices of layers that it computes, and how many layers are alike.
    pub layers: Vec<(LayerSizes, usize)>,
    /// Rows of the head's matrix: its part of the vocabulary.
    pub vocab: usize,
    /// Rows of activations that the head multiplies at a time.
    pub head_chunk_rows: usize,
    /// Ranks of the row that route a part of its tokens each; 1 where each routes all.
    pub routers: usize,
    /// Whether the model is frozen below adapters.
    pub is_frozen: bool,
}

/// The slice of a layer, with its adapters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSizes {
    /// The slice.
    pub dims: LayerDims,
    /// The adapters of q|k|v, of what returns from the attention, of gate|up, and of what returns from the MLP.
    pub adapters: [usize; 4],
    /// Their rank.
    pub rank: usize,
}

/// The linear layers that a rank computes in a micro-batch of `tokens` tokens.
///
/// What an adapter adds is summed with what its matrix makes (`linear::adapted_forward`): there it counts as so much more depth.
pub fn shapes(dimensions: &Dimensions, tokens: usize) -> Vec<LinearShape> {
    let products = match dimensions.is_frozen {
        true => Products::FROZEN,
        false => Products::ALL,
    };
    let shape = |name, tokens, inputs, outputs, count| LinearShape {
        name,
        tokens,
        inputs,
        outputs,
        count,
        products,
    };
    let mut all = Vec::new();
    for (
        LayerSizes {
            dims,
            adapters,
            rank,
        },
        count,
    ) in &dimensions.layers
    {
        let (hidden, heads) = (dims.hidden, dims.q_heads * dims.head_dim);
        // Experts in balance: each multiplies the same number of rows.
        let (rows, inner, mlps) = match &dims.experts {
            None => (tokens, dims.intermediate, *count),
            Some(ExpertsDims {
                rule,
                here,
                intermediate,
            }) => {
                let rows = (tokens * rule.top_k).div_ceil(here * dimensions.routers);
                (rows, *intermediate, count * here)
            }
        };
        let matrices = [
            shape("q|k|v", tokens, hidden, dims.qkv_width(), *count),
            shape("attention out", tokens, heads, hidden, *count),
            shape("gate|up", rows, hidden, 2 * inner, mlps),
            shape("down", rows, inner, hidden, mlps),
        ];
        let names = [
            ("q|k|v A", "q|k|v B"),
            ("attention A", "attention B"),
            ("gate|up A", "gate|up B"),
            ("down A", "down B"),
        ];
        for ((matrix, adapters), (a, b)) in matrices.into_iter().zip(adapters).zip(names) {
            if *adapters == 0 {
                all.push(matrix);
                continue;
            }
            let (inputs, outputs) = (matrix.inputs, matrix.outputs);
            all.push(LinearShape {
                inputs: inputs + rank,
                ..matrix
            });
            all.push(LinearShape {
                products: Products::OF_A,
                ..shape(a, tokens, inputs, adapters * rank, *count)
            });
            all.push(LinearShape {
                products: Products::OF_B,
                ..shape(b, tokens, *rank, outputs, *count)
            });
        }
    }
    let rows = dimensions.head_chunk_rows.min(tokens).max(1);
    if let Some((layer, _)) = dimensions.layers.first() {
        let chunks = tokens.div_ceil(rows);
        let (hidden, vocab) = (layer.dims.hidden, dimensions.vocab);
        all.push(shape("head", rows, hidden, vocab, chunks));
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
            let Products {
                forward,
                input_gradient,
                weight_gradient,
            } = shape.products;
            let best = |is_needed: bool, run: &dyn Fn()| if is_needed { best(run) } else { 0.0 };
            LinearTime {
                shape: shape.clone(),
                forward_s: best(forward, &|| drop(linear::forward(&x, &w, None))),
                input_gradient_s: best(input_gradient, &|| drop(linear::backward_input(&d_y, &w))),
                weight_gradient_s: best(weight_gradient, &|| {
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

    use serde_json::json;
    use tandem_model::ModelConfig;

    /// A frozen model has no gradients of its weights; what its adapters add counts once.
    #[test]
    fn adapters_take_the_place_of_weight_gradients() {
        let json = json!({"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 4,
            "num_key_value_heads": 2, "num_hidden_layers": 3, "intermediate_size": 96, "vocab_size": 100,
            "max_position_embeddings": 64});
        let config = ModelConfig::from_json(json.as_object().unwrap()).unwrap();
        let of = |is_frozen: bool, adapters: [usize; 4]| Dimensions {
            layers: vec![(
                LayerSizes {
                    dims: LayerDims::whole(&config, 0),
                    adapters,
                    rank: 8,
                },
                3,
            )],
            vocab: 100,
            head_chunk_rows: 32,
            routers: 1,
            is_frozen,
        };
        let flops = |dimensions: &Dimensions| -> usize {
            let shapes = shapes(dimensions, 64);
            let each = shapes
                .iter()
                .map(|it| 2 * it.products.count() * it.count * it.tokens * it.inputs * it.outputs);
            each.sum()
        };
        let weights = 3 * (64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 96) + 64 * 100;
        assert_eq!(flops(&of(false, [0; 4])), 64 * 6 * weights);
        assert_eq!(flops(&of(true, [0; 4])), 64 * 4 * weights);
        // Those of the output and the down projection; their B is multiplied forward, and by and for a gradient, their A too.
        let adapters = 3 * 8 * ((64 + 64) + (96 + 64));
        let found = flops(&of(true, [0, 1, 0, 1]));
        // In the sums of a matrix, B's width stands for A's as well; they differ for the down projection.
        let off = 3 * 8 * 2 * 64 * (96 - 64);
        assert_eq!(found + off, 64 * (4 * weights + 6 * adapters));
    }

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
