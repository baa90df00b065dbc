//! The module tree of a model and the order of its parameters.
//!
//! A *unit* is what is sharded, gathered and reduced as one: the embedding, each decoder layer, and (for untied
//! models) the output head. Inside a unit the order of the parameters is the order of its flat buffer, chosen so that
//! q|k|v and gate|up are adjacent and each is one matrix.

use crate::config::{Axis, Experts, ModelConfig, Projection, QkNorm};

/// How a parameter starts when a model is made from nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// Normal with the config's `initializer_range`.
    Normal,
    /// Zero.
    Zeros,
    /// One.
    Ones,
    /// Uniform between minus and plus one over the root of the inputs' number: what PyTorch begins a linear layer with, and PEFT
    /// the `A` of an adapter.
    FanIn,
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
    /// RMSNorm over all that it is given of a token.
    Norm {
        /// Width of what is normalised.
        features: usize,
    },
    /// RMSNorm of each head for itself, all with one weight.
    HeadNorm {
        /// Width of a head.
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

/// How a module may be cut over ranks: along which of its dimensions, and what that runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Not at all.
    Whole,
    /// Not at all, but it may be given a part of this axis only.
    OfParts(Axis),
    /// Along its outputs, which run over these, side by side.
    Outputs(&'static [Axis]),
    /// Along its inputs.
    Inputs(Axis),
}

impl Cut {
    /// Whether it is a cut of an expert of a mixture, of which there are as many modules side by side as there are experts.
    pub fn is_of_expert(self) -> bool {
        matches!(
            self,
            Self::Outputs([Axis::ExpertIntermediate]) | Self::Inputs(Axis::ExpertIntermediate)
        )
    }
}

/// A leaf of the module tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Hugging Face's dotted path, such as `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// What it computes.
    pub kind: ModuleKind,
    /// How it may be cut.
    pub cut: Cut,
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
        let table = Module {
            path: "model.embed_tokens".to_owned(),
            kind: ModuleKind::Embedding {
                rows: config.vocab_size,
                features: hidden,
            },
            cut: Cut::Outputs(&[Axis::Vocab]),
        };
        let final_norm = norm("model.norm", hidden, Cut::Whole);
        let mut embed = UnitBuilder::new("embed", config);
        embed.add(table);
        if config.tie_word_embeddings {
            embed.add(final_norm.clone());
        }
        let mut units = vec![embed.unit];
        units.extend((0..config.num_layers).map(|index| layer(config, index)));
        if !config.tie_word_embeddings {
            let mut head = UnitBuilder::new("head", config);
            head.add(final_norm);
            let cut = Cut::Outputs(&[Axis::Vocab]);
            head.add(linear("lm_head", hidden, config.vocab_size, cut));
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
    let hidden = config.hidden_size;
    let width = |axis| config.width(axis);
    let attention = |name: &str| format!("{root}.self_attn.{name}");
    let mlp = |name: &str| format!("{root}.mlp.{name}");
    let norms = &config.layer_norms;

    let mut unit = UnitBuilder::new(&format!("layer {index}"), config);
    unit.add_norm(&root, norms.before_attention);
    unit.add_projections(config.qkv, attention, config.qkv_bias);
    for (name, axis, cut) in [
        ("q_norm", Axis::QHeads, Cut::Outputs(&[Axis::QHeads])),
        ("k_norm", Axis::KvHeads, Cut::Outputs(&[Axis::KvHeads])),
    ] {
        let path = attention(name);
        match config.qk_norm {
            None => {}
            Some(QkNorm::AcrossHeads) => unit.add(norm(&path, width(axis), cut)),
            Some(QkNorm::PerHead) => unit.add(Module {
                path,
                kind: ModuleKind::HeadNorm {
                    features: config.head_dim,
                },
                cut: Cut::OfParts(axis),
            }),
        }
    }
    let (path, cut) = (attention("o_proj"), Cut::Inputs(Axis::QHeads));
    let output = linear(&path, width(Axis::QHeads), hidden, cut);
    unit.add_fused(&[output], config.o_bias);
    unit.add_norm(&root, norms.after_attention);
    unit.add_norm(&root, norms.before_mlp);
    match config.experts_of(index) {
        Some(experts) => unit.add_experts(&root, experts),
        None => {
            unit.add_projections(config.gate_up, mlp, config.mlp_bias);
            let (path, cut) = (mlp("down_proj"), Cut::Inputs(Axis::Intermediate));
            let down = linear(&path, config.intermediate_size, hidden, cut);
            unit.add_fused(&[down], config.mlp_bias);
        }
    }
    unit.add_norm(&root, norms.after_mlp);
    unit.unit
}

fn norm(path: &str, features: usize, cut: Cut) -> Module {
    Module {
        path: path.to_owned(),
        kind: ModuleKind::Norm { features },
        cut,
    }
}

fn linear(path: &str, inputs: usize, outputs: usize, cut: Cut) -> Module {
    Module {
        path: path.to_owned(),
        kind: ModuleKind::Linear { inputs, outputs },
        cut,
    }
}

struct UnitBuilder<'a> {
    unit: UnitTree,
    config: &'a ModelConfig,
}

impl<'a> UnitBuilder<'a> {
    fn new(name: &str, config: &'a ModelConfig) -> Self {
        Self {
            unit: UnitTree {
                name: name.to_owned(),
                modules: Vec::new(),
                parameters: Vec::new(),
            },
            config,
        }
    }

    /// The norm of the layer `root` that is called `name`, where there is one.
    fn add_norm(&mut self, root: &str, name: Option<&str>) {
        if let Some(name) = name {
            let path = format!("{root}.{name}");
            self.add(norm(&path, self.config.hidden_size, Cut::Whole));
        }
    }

    /// Projections of the residual stream, side by side.
    fn add_projections(
        &mut self,
        projections: &[Projection],
        path: impl Fn(&str) -> String,
        bias: bool,
    ) {
        let module = |projection: &Projection| {
            let widths = projection
                .outputs
                .iter()
                .map(|axis| self.config.width(*axis));
            let (inputs, outputs) = (self.config.hidden_size, widths.sum());
            let cut = Cut::Outputs(projection.outputs);
            linear(&path(projection.name), inputs, outputs, cut)
        };
        let modules: Vec<Module> = projections.iter().map(module).collect();
        self.add_fused(&modules, bias);
    }

    /// The router, then all experts' gate and up branches, then all that return.
    fn add_experts(&mut self, root: &str, experts: &Experts) {
        let (names, hidden) = (experts.names, self.config.hidden_size);
        let block = format!("{root}.{}", names.block);
        let path = format!("{block}.{}", names.router);
        // Each rank has a part of the experts' columns, so a part of the router's gradient.
        let cut = Cut::OfParts(Axis::ExpertIntermediate);
        self.add(linear(&path, hidden, experts.rule.experts, cut));
        let path = |expert: usize, name: &str| format!("{block}.experts.{expert}.{name}");
        for expert in 0..experts.rule.experts {
            self.add_projections(names.gate_up, |name| path(expert, name), false);
        }
        for expert in 0..experts.rule.experts {
            let cut = Cut::Inputs(Axis::ExpertIntermediate);
            let path = path(expert, names.down);
            self.add(linear(&path, experts.intermediate_size, hidden, cut));
        }
    }

    fn add(&mut self, module: Module) {
        self.add_fused(&[module], false);
    }

    /// Modules whose weights lie side by side, then their biases side by side.
    fn add_fused(&mut self, modules: &[Module], bias: bool) {
        // A norm that does nothing.
        let ones = match self.config.norm.adds_one {
            true => Init::Zeros,
            false => Init::Ones,
        };
        for module in modules {
            let (shape, init) = match module.kind {
                ModuleKind::Embedding { rows, features } => (vec![rows, features], Init::Normal),
                ModuleKind::Linear { inputs, outputs } => (vec![outputs, inputs], Init::Normal),
                ModuleKind::Norm { features } | ModuleKind::HeadNorm { features } => {
                    (vec![features], ones)
                }
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
