//! What a step's metrics need besides the step's own report: clocks, memory, and the rate of this mesh.

use std::time::{Duration, Instant};

use tandem_comm::{ReduceOp, all_gather_numbers};
use tandem_model::ModuleTree;
use tandem_tensor::{Kind, Tensor, gemm_rate, memory};

use crate::engine::Engine;
use crate::error::TrainError;
use crate::events::StepMetrics;
use crate::flops;
use crate::progress::RunCounters;
use crate::train_step::StepReport;

/// Between two looks at the memory of all ranks.
const MEMORY_INTERVAL: u64 = 10;

/// Measures steps, on all ranks together.
pub(super) struct Meter {
    tree: ModuleTree,
    /// Floating point operations per second of all ranks.
    mesh_gemm_rate: f64,
    peak_memory_mb: Vec<f64>,
    /// When the last step ended.
    last_end: Instant,
    /// How long training has waited for a save since then.
    saving: Duration,
}

/// What a step was.
pub(super) struct StepFacts<'a> {
    pub report: &'a StepReport,
    pub epoch: u64,
    pub learning_rate: f64,
    /// Tokens of the global batch, padding included.
    pub tokens: u64,
    /// With this step.
    pub counters: RunCounters,
    pub is_last: bool,
}

impl Meter {
    /// Measures the rate, and starts the clock.
    ///
    /// # Errors
    /// When a peer fails.
    pub fn start(engine: &Engine) -> Result<Self, TrainError> {
        Ok(Self {
            mesh_gemm_rate: measure_gemm_rate(engine)?,
            tree: ModuleTree::new(&engine.config),
            peak_memory_mb: Vec::new(),
            last_end: Instant::now(),
            saving: Duration::ZERO,
        })
    }

    /// Starts the clock anew: what was done since the last step is no training.
    pub fn restart_clock(&mut self) {
        self.last_end = Instant::now();
    }

    /// Takes note that training has waited for a save.
    pub fn add_saving(&mut self, waited: Duration) {
        self.saving += waited;
    }

    /// The metrics of the step that ends now.
    ///
    /// # Errors
    /// When a peer fails.
    pub fn end_step(
        &mut self,
        engine: &Engine,
        facts: &StepFacts<'_>,
    ) -> Result<StepMetrics, TrainError> {
        let StepFacts {
            report,
            tokens,
            counters,
            ..
        } = *facts;
        let step = counters.step;
        if step == 1 || step.is_multiple_of(MEMORY_INTERVAL) || facts.is_last {
            self.peak_memory_mb = peak_memory_mb(engine)?;
        }
        let seconds = self.last_end.elapsed().as_secs_f64();
        self.restart_clock();
        let flops = flops::per_step(&engine.config, &self.tree, tokens, engine.seq as u64);
        let saving = std::mem::take(&mut self.saving) + report.waited_for_copy;
        Ok(StepMetrics {
            step,
            epoch: facts.epoch,
            loss: report.loss,
            lr: facts.learning_rate,
            grad_norm: report.grad_norm,
            tokens_per_s: tokens as f64 / seconds,
            step_time_s: seconds,
            saving_s: saving.as_secs_f64(),
            tokens_seen: counters.tokens_seen,
            n_tokens: report.n_tokens,
            gemm_fraction: flops / seconds / self.mesh_gemm_rate,
            peak_memory_mb: self.peak_memory_mb.clone(),
        })
    }
}

/// What the mesh's ranks can do together, all measuring at once: ranks that share cores share the rate.
fn measure_gemm_rate(engine: &Engine) -> Result<f64, TrainError> {
    engine.world.barrier()?.wait()?;
    let kind = engine.strategy.precision.matmul;
    let own = gemm_rate::measure(256, 1024, 1024, kind, engine.device, 5);
    let sum = Tensor::from_slice(&[own])
        .to_kind(Kind::Double)
        .to_device(engine.device);
    engine.world.all_reduce(&sum, ReduceOp::Sum)?.wait()?;
    Ok(sum.get(0).double_value())
}

/// Every rank's largest resident set so far.
fn peak_memory_mb(engine: &Engine) -> Result<Vec<f64>, TrainError> {
    let own = memory::peak_resident_bytes().unwrap_or(0) as f64 / 1e6;
    Ok(all_gather_numbers(engine.world.as_ref(), &[own], engine.device)?.concat())
}
