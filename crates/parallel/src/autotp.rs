//! AutoTP: the plan inferred from the shape of the module tree, as DeepSpeed's automatic tensor parallelism does.
//!
//! In every block (the attention, the MLP) the last matrix product that returns to the residual stream is row-parallel
//! and its predecessors are column-parallel, so that one sum per block suffices (Megatron-LM, arXiv 1909.08053). A norm of all
//! that such a product gives is cut with it. A product that has blocks beside it, inside of its own, is a router and whole on
//! every rank. Tables and products over the vocabulary are cut over the vocabulary.

use std::collections::BTreeMap;

use regex::Regex;
use tandem_model::{Module, ModuleKind, ModuleTree};

use crate::plan::{Plan, Style};

/// Inference with optional corrections.
#[derive(Debug, Clone, Default)]
pub struct AutoTp {
    overrides: Vec<(Regex, Style)>,
}

/// A correction that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AutoTpError {
    /// Not `PATTERN=STYLE`.
    #[error("{text:?} is not PATTERN=STYLE with STYLE one of colwise, rowwise, replicate, vocab")]
    Form {
        /// What was given.
        text: String,
    },
    /// Not a regular expression.
    #[error("{pattern:?} is not a regular expression: {reason}")]
    Pattern {
        /// What was given.
        pattern: String,
        /// Why.
        reason: String,
    },
    /// A pattern that matches no module.
    #[error("no module matches {pattern:?}; modules are named as model.layers.0.self_attn.q_proj")]
    Unused {
        /// The pattern.
        pattern: String,
    },
}

impl AutoTp {
    /// Inference in which a module whose path matches `PATTERN` gets `STYLE`, for each `PATTERN=STYLE` of `overrides`.
    ///
    /// # Errors
    /// When one of them is not of that form.
    pub fn with_overrides(overrides: &[String]) -> Result<Self, AutoTpError> {
        let parse = |text: &String| {
            let form = || AutoTpError::Form { text: text.clone() };
            let (pattern, style) = text.rsplit_once('=').ok_or_else(form)?;
            let style = match style {
                "colwise" => Style::Colwise,
                "rowwise" => Style::Rowwise,
                "replicate" => Style::Replicate,
                "vocab" => Style::VocabParallel,
                _ => return Err(form()),
            };
            let regex = Regex::new(pattern).map_err(|error| AutoTpError::Pattern {
                pattern: pattern.to_owned(),
                reason: error.to_string(),
            })?;
            Ok((regex, style))
        };
        Ok(Self {
            overrides: overrides.iter().map(parse).collect::<Result<_, _>>()?,
        })
    }

    /// The plan for `tree`.
    ///
    /// # Errors
    /// When an override matches nothing: a flag is never quietly ignored.
    pub fn infer(&self, tree: &ModuleTree) -> Result<Plan, AutoTpError> {
        let mut styles: BTreeMap<String, Style> = tree
            .units
            .iter()
            .flat_map(|unit| infer_unit(&unit.modules))
            .collect();
        for (regex, style) in &self.overrides {
            let mut used = false;
            for (path, planned) in &mut styles {
                // DeepSpeed's patterns are about parameters.
                if regex.is_match(path) || regex.is_match(&format!("{path}.weight")) {
                    *planned = match (*style, *planned) {
                        // Their outputs are the vocabulary.
                        (Style::Colwise, Style::VocabParallel) => Style::VocabParallel,
                        (style, _) => style,
                    };
                    used = true;
                }
            }
            if !used {
                return Err(AutoTpError::Unused {
                    pattern: regex.as_str().to_owned(),
                });
            }
        }
        let mut plan = Plan { styles };
        // A norm of what a product gives goes with it.
        for module in tree.modules() {
            let is_product = |other: &&Module| {
                other.parent() == module.parent() && matches!(other.kind, ModuleKind::Linear { .. })
            };
            let mut products = tree.modules().filter(is_product);
            let is_norm = matches!(module.kind, ModuleKind::Norm { .. });
            if is_norm
                && plan.styles.get(&module.path) == Some(&Style::Colwise)
                && products.all(|it| plan.styles.get(&it.path) == Some(&Style::Replicate))
            {
                plan.styles.insert(module.path.clone(), Style::Replicate);
            }
        }
        Ok(plan)
    }
}

fn infer_unit(modules: &[Module]) -> Vec<(String, Style)> {
    modules
        .iter()
        .enumerate()
        .map(|(position, module)| {
            let style = match module.kind {
                ModuleKind::Norm { features } => {
                    let is_of_product = modules[..position].iter().any(|earlier| {
                        let is_as_wide = matches!(
                            earlier.kind, ModuleKind::Linear { outputs, .. } if outputs == features
                        );
                        is_as_wide && earlier.parent() == module.parent()
                    });
                    match is_of_product {
                        true => Style::Colwise,
                        false => Style::Replicate,
                    }
                }
                ModuleKind::HeadNorm { .. } => Style::Replicate,
                ModuleKind::Embedding { .. } => Style::VocabParallel,
                ModuleKind::Linear { .. } if module.parent().is_empty() => Style::VocabParallel,
                ModuleKind::Linear { .. } if has_inner_blocks(modules, module) => Style::Replicate,
                ModuleKind::Linear { .. } => {
                    let ends_block = !modules[position + 1..].iter().any(|later| {
                        later.parent() == module.parent()
                            && matches!(later.kind, ModuleKind::Linear { .. })
                    });
                    if ends_block {
                        Style::Rowwise
                    } else {
                        Style::Colwise
                    }
                }
            };
            (module.path.clone(), style)
        })
        .collect()
}

/// Whether there are blocks of products inside of the module's own: then it does not lead to the residual stream, but chooses
/// among them (the router of a mixture of experts).
fn has_inner_blocks(modules: &[Module], module: &Module) -> bool {
    modules.iter().any(|other| {
        let inside = other.parent().strip_prefix(module.parent());
        inside.is_some_and(|rest| rest.starts_with('.'))
    })
}
