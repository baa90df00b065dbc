//! The flags about adapters.

use std::path::PathBuf;

use clap::{ArgAction, Args};
use tandem_run::spec::Lora;

/// Adapters (LoRA) that are trained in the place of the model.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Adapters (LoRA)")]
pub struct LoraFlags {
    /// Freeze the model and train adapters of this rank in its place; 0 trains the model.
    #[arg(long, value_name = "R")]
    pub lora_r: Option<usize>,

    /// Adapters are scaled by this over the rank [default: 16].
    #[arg(long, value_name = "X")]
    pub lora_alpha: Option<f64>,

    /// Probability that an element of an adapter's input is dropped in training [default: 0].
    #[arg(long, value_name = "P")]
    pub lora_dropout: Option<f64>,

    /// The matrices with adapters: ends of their names with commas between them, such as q_proj,v_proj; or a regular expression
    /// for their whole paths; or all-linear: all but the head [default: all-linear].
    #[arg(long, value_name = "NAMES")]
    pub lora_target_modules: Option<String>,

    /// Scale by lora_alpha over the root of the rank (rsLoRA).
    #[arg(long, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub use_rslora: Option<bool>,

    /// Begin with the adapters in this folder, which PEFT has written; its adapter_config.json says rank, scale and matrices.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
}

impl LoraFlags {
    /// Their section of the spec.
    pub fn to_spec(&self) -> Lora {
        Lora {
            lora_r: self.lora_r,
            lora_alpha: self.lora_alpha,
            lora_dropout: self.lora_dropout,
            lora_target_modules: self.lora_target_modules.clone(),
            use_rslora: self.use_rslora,
            adapter: self.adapter.clone(),
        }
    }
}
