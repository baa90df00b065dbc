//! What a decoder layer moves that PyTorch compiles (TorchInductor; Ansel et al., ASPLOS 2024): a count from sizes, kernel by kernel, to
//! hold a recorded step against. Nothing here was measured.
//!
//! The rules. A product is a kernel of its own. What lies between two products is one kernel where it is pointwise or reduces over a
//! token's features: a residual addition with the norm behind it, the rotation of q and k, the gated unit, a norm's gradient with the
//! additions before and behind it. A reduction over tokens, as for the gradient of a norm's weight or of a bias, is another. Attention is
//! one kernel forward and one backward. Every kernel reads each of its inputs once and writes each of its outputs once. q, k and v, and gate
//! and up, are products of their own, as transformers and torchtitan have them. Gradients of weights are in the kind of the products. Rows
//! of sines and cosines, and what a kernel keeps for itself, are left out.

use tandem_model::{ModelConfig, Recompute};

/// A kernel, or several that are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// What it computes.
    pub name: &'static str,
    /// How many there are in a layer.
    pub launches: usize,
    /// Bytes that all of them read and write for each token.
    pub bytes_per_token: u64,
    /// Bytes that all of them read and write whatever the tokens: of weights and their gradients.
    pub fixed_bytes: u64,
}

/// The kernels of one layer, forward and backward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompiledLayer {
    /// In the order of the layer.
    pub kernels: Vec<Kernel>,
}

/// Bytes of an fp32 number that a norm or an attention keeps of a token.
const KEPT: u64 = 4;

impl CompiledLayer {
    /// That of a model's first layer, of elements of `element_bytes`. `None` where the rules do not say enough: for a mixture of experts, for
    /// norms elsewhere than before attention and MLP, and for soft caps.
    pub fn of(config: &ModelConfig, recompute: Recompute, element_bytes: u64) -> Option<Self> {
        let mixture = config.experts.as_ref();
        let is_mixture = mixture.is_some_and(|it| it.sparse.first() == Some(&true));
        let norms = &config.layer_norms;
        let is_plain = norms.before_attention.is_some()
            && norms.before_mlp.is_some()
            && norms.after_attention.is_none()
            && norms.after_mlp.is_none()
            && config.qk_norm.is_none()
            && config.attention_soft_cap.is_none();
        (is_plain && !is_mixture).then(|| {
            let sizes = Sizes::of(config, element_bytes);
            Self {
                kernels: sizes.kernels(recompute, config.qkv_bias),
            }
        })
    }

    /// Kernels in all.
    pub fn launches(&self) -> usize {
        self.kernels.iter().map(|kernel| kernel.launches).sum()
    }

    /// What all of them read and write for so many tokens.
    pub fn bytes(&self, tokens: u64) -> u64 {
        self.kernels.iter().map(|kernel| kernel.bytes(tokens)).sum()
    }
}

impl Kernel {
    /// What it reads and writes for so many tokens.
    pub fn bytes(&self, tokens: u64) -> u64 {
        self.fixed_bytes + tokens * self.bytes_per_token
    }
}

/// Widths of a layer.
struct Sizes {
    hidden: u64,
    q: u64,
    kv: u64,
    heads: u64,
    intermediate: u64,
    element: u64,
}

impl Sizes {
    fn of(config: &ModelConfig, element: u64) -> Self {
        let wide = |number: usize| number as u64;
        Self {
            hidden: wide(config.hidden_size),
            q: wide(config.num_heads * config.head_dim),
            kv: wide(config.num_kv_heads * config.head_dim),
            heads: wide(config.num_heads),
            intermediate: wide(config.intermediate_size),
            element,
        }
    }

    /// A pass over so many elements of a token, and numbers in fp32.
    fn pass(&self, name: &'static str, elements: u64, kept: u64) -> Kernel {
        Kernel {
            name,
            launches: 1,
            bytes_per_token: elements * self.element + kept * KEPT,
            fixed_bytes: 0,
        }
    }

    /// The product, the gradient of its input, or that of its weight: each touches all three.
    fn product(&self, name: &'static str, inputs: u64, outputs: u64, launches: usize) -> Kernel {
        let times = launches as u64 * self.element;
        Kernel {
            name,
            launches,
            bytes_per_token: times * (inputs + outputs),
            fixed_bytes: times * inputs * outputs,
        }
    }

    fn kernels(&self, recompute: Recompute, has_bias: bool) -> Vec<Kernel> {
        let mut kernels = self.to_product_of_mlp();
        kernels.extend([
            self.product("down", self.intermediate, self.hidden, 1),
            self.pass("residual addition", 3 * self.hidden, 0),
        ]);
        match recompute {
            Recompute::None => {}
            Recompute::Light => {
                let norm = self.pass("norm, again", 2 * self.hidden, 1);
                kernels.extend([norm, norm]);
            }
            // What nobody needs is not computed again: the last product and the addition.
            Recompute::Full => kernels.extend(self.to_product_of_mlp()),
        }
        kernels.extend(self.backward(recompute, has_bias));
        kernels
    }

    fn to_product_of_mlp(&self) -> Vec<Kernel> {
        let &Self {
            hidden,
            q,
            kv,
            heads,
            intermediate,
            ..
        } = self;
        vec![
            self.pass("norm", 2 * hidden, 1),
            self.product("q", hidden, q, 1),
            self.product("k and v", hidden, kv, 2),
            self.pass("rotation", 2 * (q + kv), 0),
            self.pass("attention", 2 * (q + kv), heads),
            self.product("output", q, hidden, 1),
            self.pass("residual addition and norm", 4 * hidden, 1),
            self.product("gate and up", hidden, intermediate, 2),
            self.pass("gated unit", 3 * intermediate, 0),
        ]
    }

    fn backward(&self, recompute: Recompute, has_bias: bool) -> Vec<Kernel> {
        let &Self {
            hidden,
            q,
            kv,
            heads,
            intermediate,
            ..
        } = self;
        // Reads the product's gradient and both branches, writes the gradients of both; and the product, where it was not kept.
        let of_unit = match recompute {
            Recompute::Light => 6,
            Recompute::None | Recompute::Full => 5,
        };
        let mut kernels = vec![
            self.product("down, gradients", intermediate, hidden, 2),
            self.pass("gated unit, gradient", of_unit * intermediate, 0),
            self.product("gate and up, gradients", hidden, intermediate, 4),
            // The gradients by way of gate and of up, the norm's input, the gradient past the norm; writes one.
            self.pass("norm before MLP, gradient", 5 * hidden, 1),
            self.pass("norm before MLP, gradient of weight", 3 * hidden, 1),
            self.product("output, gradients", q, hidden, 2),
            // Reads q, k, v, the output and its gradient, writes three gradients.
            self.pass("attention, gradient", 4 * (q + kv), heads),
            self.pass("rotation, gradient", 2 * (q + kv), 0),
            self.product("q, gradients", hidden, q, 2),
            self.product("k and v, gradients", hidden, kv, 4),
            // By way of q, k and v.
            self.pass("norm before attention, gradient", 6 * hidden, 1),
            self.pass("norm before attention, gradient of weight", 4 * hidden, 1),
        ];
        if has_bias {
            kernels.push(Kernel {
                launches: 3,
                ..self.pass("biases, gradients", q + 2 * kv, 0)
            });
        }
        kernels
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn config(more: Value) -> ModelConfig {
        let mut json = json!({
            "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 4,
            "num_key_value_heads": 1, "intermediate_size": 20, "vocab_size": 64, "max_position_embeddings": 64,
        });
        let (Value::Object(json), Value::Object(more)) = (&mut json, more) else {
            unreachable!("objects");
        };
        json.extend(more);
        ModelConfig::from_json(json).unwrap()
    }

    #[test]
    fn a_layers_kernels_are_counted_by_hand() {
        let config = config(json!({}));
        let of = |recompute| CompiledLayer::of(&config, recompute, 2).unwrap();
        let none = of(Recompute::None);
        // Forward: 4 + 3 products, 2 norms, rotation, attention, unit, addition. Backward: 14 products, two kernels for each norm,
        // rotation, attention, unit.
        assert_eq!(none.launches(), 13 + 21);
        // Weights, each read twice, and written as a gradient: q, k, v, output, and three of the MLP.
        let weights = 8 * 8 + 2 * 8 * 2 + 8 * 8 + 3 * 8 * 20;
        assert_eq!(none.bytes(0), 2 * 3 * weights);
        let products = 3 * (16 + 2 * 10 + 16 + 3 * 28);
        let passes = (2 + 4 + 3 + 5 + 3 + 6 + 4) * 8 + (2 + 2 + 4 + 2) * 10 + (3 + 5) * 20;
        let kept = 4 * (2 + 4 + 4 + 4);
        assert_eq!(
            none.bytes(1) - none.bytes(0),
            2 * (products + passes) + kept
        );

        let light = of(Recompute::Light);
        assert_eq!(light.launches(), none.launches() + 2);
        assert_eq!(
            light.bytes(10) - none.bytes(10),
            10 * (2 * (2 * 16 + 20) + 8)
        );
        let full = of(Recompute::Full);
        assert_eq!(full.launches(), none.launches() + 11);
    }

    #[test]
    fn layers_that_the_rules_do_not_know_have_no_count() {
        let bias = config(json!({"architectures": ["Qwen2ForCausalLM"]}));
        let plain = config(json!({}));
        let launches = |config: &ModelConfig| {
            CompiledLayer::of(config, Recompute::None, 2).map(|it| it.launches())
        };
        assert_eq!(launches(&bias), launches(&plain).map(|plain| plain + 3));
        for family in [
            "Gemma2ForCausalLM",
            "Olmo2ForCausalLM",
            "Qwen3ForCausalLM",
            "MixtralForCausalLM",
        ] {
            let other = config(json!({"architectures": [family], "head_dim": 2}));
            assert_eq!(launches(&other), None, "{family}");
        }
    }
}
