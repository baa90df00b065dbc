//! The tensor parallel plan: a table from modules to styles.

use std::collections::BTreeMap;
use std::fmt;

use tandem_model::config::Axis;
use tandem_model::{Cut, ModelConfig, Module, ModuleKind, ModuleTree, WholeBlocks};

/// How a module's parameters lie across a tensor parallel row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Output features are cut: the weight's dimension 0, and the bias.
    Colwise,
    /// Input features are cut: the weight's dimension 1; the bias is replicated and added after the sum.
    Rowwise,
    /// Every rank holds all of it.
    Replicate,
    /// Vocabulary entries are cut: dimension 0 of the embedding or the head.
    VocabParallel,
    /// One of so many neighbouring ranks of the mesh holds all of it: an expert that is spread with others of its layer.
    ExpertParallel(usize),
}

impl fmt::Display for Style {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Colwise => "colwise",
            Self::Rowwise => "rowwise",
            Self::Replicate => "replicate",
            Self::VocabParallel => "vocab-parallel",
            Self::ExpertParallel(_) => "expert-parallel",
        })
    }
}

/// A style for every module of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// By module path.
    pub styles: BTreeMap<String, Style>,
}

/// A plan that the engine has no computation for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A module without a style.
    #[error("the plan says nothing about {module}")]
    Unplanned {
        /// The module's path.
        module: String,
    },
    /// A style that the module cannot have.
    #[error(
        "the plan makes {module} {style}, but the decoder computes it {expected}; correct the pattern that matches it"
    )]
    Unsupported {
        /// The module's path.
        module: String,
        /// What the plan says.
        style: Style,
        /// What the decoder's modules do.
        expected: Style,
    },
    /// Fewer experts than ranks to spread them over.
    #[error(
        "--expert_parallel_size {size} is more than the {experts} experts of a layer; every rank needs at least one: use \
         {experts} or less"
    )]
    Experts {
        /// Ranks over which they are to be spread.
        size: usize,
        /// Experts of a layer.
        experts: usize,
    },
    /// A model without experts.
    #[error(
        "--expert_parallel_size {size} spreads the experts of a mixture, and this model has none; leave it out"
    )]
    NoExperts {
        /// Ranks over which they are to be spread.
        size: usize,
    },
    /// A block of which a part is cut.
    #[error(
        "the plan replicates {module}, but cuts other parts of {block}: a block is cut, or every rank computes it whole; replicate \
         all that is in it, or nothing"
    )]
    Partly {
        /// The block's path.
        block: String,
        /// The path of the module that is not.
        module: String,
    },
}

/// The plan as one would declare it for PyTorch's `parallelize_module`, by how a module may be cut, which stands in the
/// model's tree: whoever describes a family says there what its modules' features run over.
fn declared(cut: Cut) -> Style {
    match cut {
        Cut::Outputs([Axis::Vocab]) => Style::VocabParallel,
        Cut::Outputs(_) => Style::Colwise,
        Cut::Inputs(_) => Style::Rowwise,
        // Norms of heads are whole on every rank, but see the heads of their rank only.
        Cut::Whole | Cut::OfParts(_) => Style::Replicate,
    }
}

impl Plan {
    /// The declared plan, for the modules that `tree` has.
    pub fn declared(tree: &ModuleTree) -> Self {
        let planned = |module: &Module| (module.path.clone(), declared(module.cut));
        Self {
            styles: tree.modules().map(planned).collect(),
        }
    }

    /// The same with experts that are not cut, but each as a whole on one of `size` ranks; 1 changes nothing.
    ///
    /// # Errors
    /// When the model, which `config` describes and `tree` lists, has no experts, or fewer than `size` in a layer.
    pub fn with_spread_experts(
        mut self,
        config: &ModelConfig,
        tree: &ModuleTree,
        size: usize,
    ) -> Result<Self, PlanError> {
        if size == 1 {
            return Ok(self);
        }
        let mut layers = 0..config.num_layers;
        let Some(mixture) = layers.find_map(|layer| config.experts_of(layer)) else {
            return Err(PlanError::NoExperts { size });
        };
        let experts = mixture.rule.experts;
        if size == 0 || size > experts {
            return Err(PlanError::Experts { size, experts });
        }
        for module in tree.modules().filter(|module| module.cut.is_of_expert()) {
            let style = Style::ExpertParallel(size);
            self.styles.insert(module.path.clone(), style);
        }
        Ok(self)
    }

    /// The ranks over which experts are spread; 1 where they are not.
    pub fn expert_ranks(&self) -> usize {
        let of_style = |style: &Style| match style {
            Style::ExpertParallel(size) => Some(*size),
            _ => None,
        };
        self.styles.values().find_map(of_style).unwrap_or(1)
    }

    /// Whether every rank of a row computes the block `path`, an attention or an MLP, whole: then nothing in it is cut.
    pub fn is_whole(&self, block: &str) -> bool {
        // However deep: experts are in a block of their own.
        let is_inside = |path: &str| {
            path.strip_prefix(block)
                .is_some_and(|rest| rest.starts_with('.'))
        };
        let mut inside = self.styles.iter().filter(|(path, _)| is_inside(path));
        inside.all(|(_, style)| *style == Style::Replicate)
    }

    /// The blocks of a layer that every rank of a row computes whole.
    pub fn whole_blocks(&self, config: &ModelConfig, layer: usize) -> WholeBlocks {
        WholeBlocks {
            attention: self.is_whole(&format!("model.layers.{layer}.self_attn")),
            mlp: config.experts_of(layer).is_none()
                && self.is_whole(&format!("model.layers.{layer}.mlp")),
        }
    }

    /// # Errors
    /// When a module has no style, or one that the decoder's modules do not compute.
    pub fn check(&self, tree: &ModuleTree) -> Result<(), PlanError> {
        let supported = Self::declared(tree);
        for module in tree.modules() {
            let (Some(&style), Some(&expected)) = (
                self.styles.get(&module.path),
                supported.styles.get(&module.path),
            ) else {
                return Err(PlanError::Unplanned {
                    module: module.path.clone(),
                });
            };
            let block = module.parent();
            let is_of_expert = module.cut.is_of_expert();
            if is_of_expert && matches!(style, Style::ExpertParallel(_)) {
                continue;
            }
            // Experts are never whole on every rank: routers reckon with that.
            let is_in_block = matches!(expected, Style::Colwise | Style::Rowwise) && !is_of_expert;
            if is_in_block && style == Style::Replicate {
                if self.is_whole(block) {
                    continue;
                }
                return Err(PlanError::Partly {
                    block: block.to_owned(),
                    module: module.path.clone(),
                });
            }
            if style != expected {
                return Err(PlanError::Unsupported {
                    module: module.path.clone(),
                    style,
                    expected,
                });
            }
        }
        Ok(())
    }

    /// The table with all layers folded into one (`layers.*`), and so all experts, for showing to people: path, kind, style. Where
    /// layers are not alike, it has what is in any of them.
    pub fn rows(&self, tree: &ModuleTree) -> Vec<(String, String, Style)> {
        let mut rows: Vec<(String, String, Style)> = Vec::new();
        for module in tree.modules() {
            let Some(&style) = self.styles.get(&module.path) else {
                continue;
            };
            let path = folded(&module.path);
            let mut shown = rows.iter();
            if shown.any(|(its, _, as_)| *its == path && *as_ == style) {
                continue;
            }
            let kind = match module.kind {
                ModuleKind::Embedding { rows, features } => {
                    format!("embedding {rows} x {features}")
                }
                ModuleKind::Norm { features } => format!("norm {features}"),
                ModuleKind::HeadNorm { features } => format!("norm {features} per head"),
                ModuleKind::Linear { inputs, outputs } => format!("linear {inputs} -> {outputs}"),
            };
            rows.push((path, kind, style));
        }
        rows
    }
}

/// A module's path with a star for every number.
fn folded(path: &str) -> String {
    let star = |part: &str| match part.bytes().all(|byte| byte.is_ascii_digit()) {
        true => "*".to_owned(),
        false => part.to_owned(),
    };
    path.split('.').map(star).collect::<Vec<_>>().join(".")
}
