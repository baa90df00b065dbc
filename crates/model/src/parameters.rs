//! The module tree of a model and the order of its parameters.
//!
//! A *unit* is what is sharded, gathered and reduced as one: the embedding, each decoder layer, and (for untied
//! models) the output head. Inside a unit the order of the parameters is the order of its flat buffer, chosen so that
//! q|k|v and gate|up are adjacent and each is one matrix.

use crate::config::ModelConfig;

/// How a parameter starts when a model is made from nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// Normal with the config's `initializer_range`.
    Normal,
    /// Zero.
    Zeros,
    /// One.
    Ones,
}

/// What a module computes, as far as parallel plans care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModuleKind {
    /// A table of `rows` vectors.
    Embedding {
        /// Vocabulary entries.
        rows: usize,
        /// Width of a vector.
        features: usize,
    },
    /// RMSNorm.
    Norm {
        /// Width of what is normalised.
        features: usize,
    },
    /// A matrix product.
    Linear {
        /// Width of the input.
        inputs: usize,
        /// Width of the output.
        outputs: usize,
    },
}

/// A leaf of the module tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Hugging Face's dotted path, such as `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// What it computes.
    pub kind: ModuleKind,
}

impl Module {
    /// The path of the block that holds this module, such as `model.layers.0.self_attn`.
    pub fn parent(&self) -> &str {
        self.path.rsplit_once('.').map_or("", |(parent, _)| parent)
    }
}

/// One parameter of the whole, unsharded model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamSpec {
    /// Hugging Face's name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Shape of the whole tensor.
    pub shape: Vec<usize>,
    /// Its value in a new model.
    pub init: Init,
}

impl ParamSpec {
    /// Elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// The path of the module that owns it.
    pub fn module(&self) -> &str {
        self.name.rsplit_once('.').map_or("", |(module, _)| module)
    }
}

/// The modules and parameters of one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitTree {
    /// For messages and traces: `embed`, `layer 3`, `head`.
    pub name: String,
    /// Modules in the order of computation.
    pub modules: Vec<Module>,
    /// Parameters in the order of the flat buffer.
    pub parameters: Vec<ParamSpec>,
}

/// A whole model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleTree {
    /// The embedding (with the final norm where the head is tied), the layers, and the head where it is not tied.
    pub units: Vec<UnitTree>,
}

impl ModuleTree {
    /// The tree of the model that `config` describes.
    pub fn new(config: &ModelConfig) -> Self {
        let hidden = config.hidden_size;
        let table = |path: &str| Module {
            path: path.to_owned(),
            kind: ModuleKind::Embedding {
                rows: config.vocab_size,
                features: hidden,
            },
        };
        let final_norm = norm("model.norm", hidden);
        let mut embed = UnitBuilder::new("embed");
        embed.add(table("model.embed_tokens"));
        if config.tie_word_embeddings {
            embed.add(final_norm.clone());
        }
        let mut units = vec![embed.unit];
        units.extend((0..config.num_layers).map(|index| layer(config, index)));
        if !config.tie_word_embeddings {
            let mut head = UnitBuilder::new("head");
            head.add(final_norm);
            head.add(linear("lm_head", hidden, config.vocab_size));
            units.push(head.unit);
        }
        Self { units }
    }

    /// All parameters, unit by unit.
    pub fn parameters(&self) -> impl Iterator<Item = &ParamSpec> {
        self.units.iter().flat_map(|unit| &unit.parameters)
    }

    /// All modules, unit by unit.
    pub fn modules(&self) -> impl Iterator<Item = &Module> {
        self.units.iter().flat_map(|unit| &unit.modules)
    }

    /// Elements of all parameters.
    pub fn numel(&self) -> usize {
        self.parameters().map(ParamSpec::numel).sum()
    }
}

fn layer(config: &ModelConfig, index: usize) -> UnitTree {
    let root = format!("model.layers.{index}");
    let (hidden, dim) = (config.hidden_size, config.head_dim);
    let (q, kv) = (config.num_heads * dim, config.num_kv_heads * dim);
    let attention = |name: &str| format!("{root}.self_attn.{name}");
    let mlp = |name: &str| format!("{root}.mlp.{name}");

    let mut unit = UnitBuilder::new(&format!("layer {index}"));
    unit.add(norm(&format!("{root}.input_layernorm"), hidden));
    unit.add_fused(
        &[
            linear(&attention("q_proj"), hidden, q),
            linear(&attention("k_proj"), hidden, kv),
            linear(&attention("v_proj"), hidden, kv),
        ],
        config.qkv_bias,
    );
    if config.qk_norm {
        unit.add(norm(&attention("q_norm"), dim));
        unit.add(norm(&attention("k_norm"), dim));
    }
    unit.add_fused(&[linear(&attention("o_proj"), q, hidden)], config.o_bias);
    unit.add(norm(&format!("{root}.post_attention_layernorm"), hidden));
    unit.add_fused(
        &[
            linear(&mlp("gate_proj"), hidden, config.intermediate_size),
            linear(&mlp("up_proj"), hidden, config.intermediate_size),
        ],
        config.mlp_bias,
    );
    unit.add_fused(
        &[linear(&mlp("down_proj"), config.intermediate_size, hidden)],
        config.mlp_bias,
    );
    unit.unit
}

fn norm(path: &str, features: usize) -> Module {
    Module {
        path: path.to_owned(),
        kind: ModuleKind::Norm { features },
    }
}

fn linear(path: &str, inputs: usize, outputs: usize) -> Module {
    Module {
        path: path.to_owned(),
        kind: ModuleKind::Linear { inputs, outputs },
    }
}

struct UnitBuilder {
    unit: UnitTree,
}

impl UnitBuilder {
    fn new(name: &str) -> Self {
        Self {
            unit: UnitTree {
                name: name.to_owned(),
                modules: Vec::new(),
                parameters: Vec::new(),
            },
        }
    }

    fn add(&mut self, module: Module) {
        self.add_fused(&[module], false);
    }

    /// Modules whose weights lie side by side, then their biases side by side.
    fn add_fused(&mut self, modules: &[Module], bias: bool) {
        for module in modules {
            let (shape, init) = match module.kind {
                ModuleKind::Embedding { rows, features } => (vec![rows, features], Init::Normal),
                ModuleKind::Linear { inputs, outputs } => (vec![outputs, inputs], Init::Normal),
                ModuleKind::Norm { features } => (vec![features], Init::Ones),
            };
            self.parameter(module, "weight", shape, init);
        }
        for module in modules {
            if let (true, ModuleKind::Linear { outputs, .. }) = (bias, module.kind) {
                self.parameter(module, "bias", vec![outputs], Init::Zeros);
            }
        }
        self.unit.modules.extend_from_slice(modules);
    }

    fn parameter(&mut self, module: &Module, kind: &str, shape: Vec<usize>, init: Init) {
        self.unit.parameters.push(ParamSpec {
            name: format!("{}.{kind}", module.path),
            shape,
            init,
        });
    }
}
