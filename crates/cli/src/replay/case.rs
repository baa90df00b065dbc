//! A recorded case: batches, hyper-parameters and what PyTorch computed from them (format: docs/parity.md).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tandem_run::adapter::{AdapterFolder, WEIGHTS_FILE};
use tandem_run::failure::{Failure, Outcome};
use tandem_trainer::UpdateRule;

/// The folder with the adapters that a case begins with, as PEFT writes it.
pub const ADAPTER_INIT: &str = "adapter_init";

/// `trajectory.json` of a case.
#[derive(Debug, Clone, Deserialize)]
pub struct Trajectory {
    /// Format version.
    pub format: u32,
    /// Optimizer steps.
    pub n_steps: usize,
    /// Rows of a global batch.
    pub global_batch: usize,
    /// Tokens of a row.
    pub seq: usize,
    /// Learning rate, constant.
    pub lr: f64,
    /// AdamW's decays.
    pub betas: [f64; 2],
    /// AdamW's eps.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Clip threshold.
    pub max_grad_norm: f64,
    /// Loss of every step, before the update.
    pub loss: Vec<f64>,
    /// Gradient norm of every step, before clipping.
    pub grad_norm: Vec<f64>,
    /// The losses of the same training in float64, where it was recorded.
    #[serde(default)]
    pub loss_fp64: Option<Vec<f64>>,
    /// Its gradient norms.
    #[serde(default)]
    pub grad_norm_fp64: Option<Vec<f64>>,
    /// What deviation is tolerated, per metric.
    pub tolerances: Tolerances,
}

/// How far a run may be from the recording; a metric that is absent is not judged.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Tolerances {
    /// Largest absolute deviation of a loss.
    pub loss_abs: Option<f64>,
    /// Largest relative deviation of a gradient norm.
    pub grad_norm_rel: Option<f64>,
    /// Deviation of all final parameters relative to the whole update.
    pub final_update_rel: Option<f64>,
    /// The same, worst single tensor.
    pub final_tensor_rel: Option<f64>,
    /// Worst single element.
    pub final_max_abs: Option<f64>,
    /// Largest absolute deviation of a logit.
    pub logits_abs: Option<f64>,
    /// Worst gradient relative to the norm of all.
    pub grad_global_rel: Option<f64>,
    /// Worst gradient relative to its own norm.
    pub grad_tensor_rel: Option<f64>,
}

/// `trajectory.json` of a candidate.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Candidate {
    /// Loss of every step.
    pub loss: Vec<f64>,
    /// Gradient norm of every step.
    pub grad_norm: Vec<f64>,
    /// Valid targets of every step.
    pub n_tokens: Vec<u64>,
}

/// A case's folder.
#[derive(Debug, Clone)]
pub struct Case {
    /// The folder.
    pub dir: PathBuf,
    /// Its hyper-parameters and expectation.
    pub trajectory: Trajectory,
}

impl Case {
    /// # Errors
    /// When `trajectory.json` is missing or not of this format.
    pub fn open(dir: &Path) -> Outcome<Self> {
        let path = dir.join("trajectory.json");
        let text = std::fs::read_to_string(&path).map_err(|error| {
            Failure::usage(format!(
                "{}: {error}; a case is a folder as docs/parity.md describes",
                path.display()
            ))
        })?;
        let trajectory: Trajectory = serde_json::from_str(&text)
            .map_err(|error| Failure::other(format!("{}: {error}", path.display())))?;
        if trajectory.format != 1 {
            return Err(Failure::other(format!(
                "{}: format {} is not known; this program reads format 1",
                path.display(),
                trajectory.format
            )));
        }
        let t = &trajectory;
        for (key, numbers) in [
            ("loss", Some(&t.loss)),
            ("grad_norm", Some(&t.grad_norm)),
            ("loss_fp64", t.loss_fp64.as_ref()),
            ("grad_norm_fp64", t.grad_norm_fp64.as_ref()),
        ] {
            if let Some(numbers) = numbers.filter(|numbers| numbers.len() != t.n_steps) {
                return Err(Failure::other(format!(
                    "{}: {key} has {} numbers, but n_steps is {}",
                    path.display(),
                    numbers.len(),
                    t.n_steps
                )));
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            trajectory,
        })
    }

    /// The adapters that it trains in the place of the model, if it does.
    pub fn adapter(&self) -> Outcome<Option<AdapterFolder>> {
        let folder = self.dir.join(ADAPTER_INIT);
        folder
            .is_dir()
            .then(|| AdapterFolder::open(&folder))
            .transpose()
    }

    /// The file of the adapters in the folder `name`, where there is one.
    pub fn adapter_file(&self, name: &str) -> Option<PathBuf> {
        let file = self.dir.join(name).join(WEIGHTS_FILE);
        file.is_file().then_some(file)
    }

    /// How gradients become updates.
    pub fn rule(&self) -> UpdateRule {
        let t = &self.trajectory;
        UpdateRule {
            beta1: t.betas[0],
            beta2: t.betas[1],
            eps: t.eps,
            weight_decay: t.weight_decay,
            weight_decay_on: tandem_trainer::WeightDecayOn::All,
            max_grad_norm: t.max_grad_norm,
        }
    }
}
