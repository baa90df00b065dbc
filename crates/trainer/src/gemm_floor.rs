//! The floor under a step's time: its matrix products, each at the rate that this machine reaches for exactly that
//! shape, with its operands where they are in a step.

use tandem_model::{ExpertsDims, LayerDims};
use tandem_tensor::device::synchronize;
use tandem_tensor::{Accumulate, Device, Kind, Tensor, linear};

use crate::stopwatch::Seconds;

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
    /// Whether its weights are the model's. All others are read between one use of them and the next, so that no cache has them.
    pub from_memory: bool,
}

/// Bytes of weights that no cache of a core holds, and that are read from memory when they have been passed.
const BEYOND_CACHES: usize = 64 << 20;

impl LinearShape {
    /// Different matrices of weights that are multiplied in turn when it is measured.
    fn matrices(&self, kind: Kind) -> usize {
        let bytes = self.inputs * self.outputs * kind.elt_size_in_bytes();
        match self.from_memory {
            true => BEYOND_CACHES.div_ceil(bytes.max(1)).min(self.count).max(1),
            false => 1,
        }
    }
}

/// How long one linear layer's products take; 0 of one that is not needed.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearTime {
    /// Which.
    pub shape: LinearShape,
    /// `x W^T`
    pub forward: Seconds,
    /// `d_y W`
    pub input_gradient: Seconds,
    /// `d_y^T x`, in the kind of the matrix products: without accumulating.
    pub weight_gradient: Seconds,
}

impl LinearTime {
    /// In one micro-batch.
    pub fn total(&self) -> Seconds {
        (self.forward + self.input_gradient + self.weight_gradient) * self.shape.count as f64
    }

    /// Seconds in one micro-batch.
    pub fn total_s(&self) -> f64 {
        self.total().wall
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
    /// The products of its attention, where they are counted: not on a GPU, where one kernel computes all heads and there is no
    /// product of a head alone whose rate would say anything.
    pub attention: Option<AttentionSizes>,
}

/// What the sizes of an attention's products follow from, besides the heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionSizes {
    /// Tokens of a row, each of which sees those before it.
    pub seq: usize,
    /// At most this many, itself included.
    pub window: Option<usize>,
}

impl AttentionSizes {
    /// Keys that a query sees, on average over a row, rounded up.
    fn keys(self) -> usize {
        let window = self.window.map_or(self.seq, |window| window.min(self.seq));
        // The first queries see 1, 2, ... keys, the others as many as the window has.
        let all = window * (window + 1) / 2 + (self.seq - window) * window;
        all.div_ceil(self.seq)
    }
}

/// The linear layers that a rank computes in a micro-batch of `tokens` tokens.
///
/// What an adapter adds is summed with what its matrix makes (`linear::adapted_forward`): there it counts as so much more depth.
///
/// Of an attention, each head's products are those of two linear layers: keys are the weights that make scores of queries, and
/// values the weights that make its output of probabilities; both have a gradient, whatever is frozen. What the mask hides is none
/// of them.
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
        from_memory: true,
    };
    let mut all = Vec::new();
    for (
        LayerSizes {
            dims,
            adapters,
            rank,
            attention,
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
        if let Some(attention) = attention {
            let (seq, keys) = (attention.seq, attention.keys());
            let heads = count * dims.q_heads * tokens.div_ceil(seq);
            let of_heads = |name, inputs, outputs| LinearShape {
                products: Products::ALL,
                from_memory: false,
                ..shape(name, seq, inputs, outputs, heads)
            };
            all.push(of_heads("scores", dims.head_dim, keys));
            all.push(of_heads("values", keys, dims.head_dim));
        }
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
///
/// As many different weights are multiplied in turn as a micro-batch has, up to what no cache holds. Activations are there from the
/// operation before, and stay the same; so does the weight's gradient, whose bytes are those of an update
/// ([`crate::memory_floor`]).
pub fn measure(
    shapes: &[LinearShape],
    kind: Kind,
    device: Device,
    repeats: usize,
) -> Vec<LinearTime> {
    let wait = || synchronize(device);
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
            let (x, d_y, d_w) = (filled(n, i), filled(n, o), filled(o, i));
            let weights: Vec<Tensor> = (0..shape.matrices(kind)).map(|_| filled(o, i)).collect();
            let Products {
                forward,
                input_gradient,
                weight_gradient,
            } = shape.products;
            let best = |is_needed: bool, run: &dyn Fn()| match is_needed {
                true => Seconds::of_best(repeats, &wait, run),
                false => Seconds::default(),
            };
            let by_each = |is_needed: bool, run: &dyn Fn(&Tensor)| {
                best(is_needed, &|| weights.iter().for_each(run)) * (1.0 / weights.len() as f64)
            };
            LinearTime {
                shape: shape.clone(),
                forward: by_each(forward, &|w| drop(linear::forward(&x, w, None))),
                input_gradient: by_each(input_gradient, &|w| drop(linear::backward_input(&d_y, w))),
                weight_gradient: best(weight_gradient, &|| {
                    linear::backward_weight(&d_w, &d_y, &x, Accumulate::First);
                }),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
                    attention: None,
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

    #[test]
    fn weights_of_the_model_are_not_in_a_cache() {
        let shape = |inputs, count, from_memory| LinearShape {
            name: "",
            tokens: 1,
            inputs,
            outputs: 1 << 10,
            count,
            products: Products::ALL,
            from_memory,
        };
        let matrices = |inputs, count| shape(inputs, count, true).matrices(Kind::BFloat16);
        // Of 1 MiB each.
        assert_eq!((matrices(512, 256), matrices(512, 7)), (64, 7));
        assert_eq!(matrices(512 * 100, 7), 1);
        // Keys have just been computed.
        assert_eq!(shape(512, 256, false).matrices(Kind::BFloat16), 1);
        let times = measure(&[shape(8, 3, true)], Kind::Float, Device::Cpu, 1);
        assert!(times[0].total_s() > 0.0 && times[0].rate().is_finite());
    }

    /// Two products forward and four backward of each query head, over the pairs of tokens of which one sees the other.
    #[test]
    fn an_attention_multiplies_what_its_mask_leaves() {
        let keys = |seq, window| AttentionSizes { seq, window }.keys();
        assert_eq!(keys(1, None), 1);
        // (1 + 2 + ... + 8) / 8, and (1 + 2 + 3 * 6) / 8.
        assert_eq!(keys(8, None), 5);
        assert_eq!(keys(8, Some(100)), 5);
        assert_eq!(keys(8, Some(3)), 3);

        let json = json!({"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 4,
            "num_key_value_heads": 2, "num_hidden_layers": 3, "intermediate_size": 96, "vocab_size": 100,
            "max_position_embeddings": 64});
        let config = ModelConfig::from_json(json.as_object().unwrap()).unwrap();
        let sizes = LayerSizes {
            dims: LayerDims::whole(&config, 0),
            adapters: [0; 4],
            rank: 0,
            attention: Some(AttentionSizes {
                seq: 8,
                window: None,
            }),
        };
        let dimensions = Dimensions {
            layers: vec![(sizes, 3)],
            vocab: 100,
            head_chunk_rows: 32,
            routers: 1,
            is_frozen: true,
        };
        // Two rows of 8 tokens.
        let shapes = shapes(&dimensions, 16);
        let of_attention = shapes
            .iter()
            .filter(|it| ["scores", "values"].contains(&it.name));
        let found: Vec<_> = of_attention
            .map(|it| (it.tokens, it.inputs, it.outputs, it.count, it.products))
            .collect();
        let heads = 3 * 4 * 2;
        let all = Products::ALL;
        assert_eq!(found, [(8, 16, 5, heads, all), (8, 5, 16, heads, all)]);
    }
}
