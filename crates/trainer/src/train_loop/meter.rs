//! What a step's metrics need besides the step's own report: clocks, memory, and the rate of this mesh.

use std::time::{Duration, Instant};

use tandem_comm::all_gather_numbers;
use tandem_model::ModuleTree;
use tandem_plan::{Device, flops};
use tandem_tensor::{device, gemm_rate, memory};

use crate::engine::Engine;
use crate::error::TrainError;
use crate::events::StepMetrics;
use crate::journal::now;
use crate::peak::Peak;
use crate::progress::RunCounters;
use crate::train_step::StepReport;

/// Between two looks at the memory of all ranks.
const MEMORY_INTERVAL: u64 = 10;

/// Measures steps, on all ranks together.
pub(super) struct Meter {
    tree: ModuleTree,
    peak: Peak,
    ranks: usize,
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
    /// Finds the devices' peak, and starts the clock.
    ///
    /// # Errors
    /// When a peer fails.
    pub fn start(engine: &Engine) -> Result<Self, TrainError> {
        Ok(Self {
            peak: find_peak(engine)?,
            ranks: engine.world.size(),
            tree: ModuleTree::new(&engine.config),
            peak_memory_mb: Vec::new(),
            last_end: Instant::now(),
            saving: Duration::ZERO,
        })
    }

    /// What MFU is a fraction of.
    pub fn peak(&self) -> &Peak {
        &self.peak
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
        let adapters = engine.adapters.as_ref().map(|adapters| &adapters.tree);
        let seq = engine.seq as u64;
        let flops = flops::per_step(&engine.config, &self.tree, adapters, tokens, seq);
        let saving = std::mem::take(&mut self.saving) + report.waited_for_copy;
        Ok(StepMetrics {
            step,
            epoch: facts.epoch,
            loss: report.loss,
            lr: facts.learning_rate,
            grad_norm: report.grad_norm,
            tokens_per_s: tokens as f64 / seconds,
            tokens_per_s_per_device: tokens as f64 / seconds / self.ranks as f64,
            step_time_s: seconds,
            saving_s: saving.as_secs_f64(),
            tokens_seen: counters.tokens_seen,
            n_tokens: report.n_tokens,
            tflops_per_device: flops / seconds / self.ranks as f64 / 1e12,
            mfu: self.peak.utilisation(flops, seconds),
            peak_memory_mb: self.peak_memory_mb.clone(),
            experts: report.experts.clone(),
            time: now(),
        })
    }
}

/// The peak of all devices together. Where one of them is not known, all measure, at once: ranks that share cores share the
/// rate.
fn find_peak(engine: &Engine) -> Result<Peak, TrainError> {
    let (world, here) = (engine.world.as_ref(), engine.device);
    let gather = |own: f64| Ok::<_, TrainError>(all_gather_numbers(world, &[own], here)?.concat());
    let name = device::name(here);
    let known = name.as_deref().and_then(Device::of_driver);
    let peaks = gather(known.map_or(0.0, |device| device.bf16_flops))?;
    if peaks.iter().all(|peak| *peak > 0.0) {
        return Ok(Peak {
            flops: peaks.iter().sum(),
            device: name,
        });
    }
    world.barrier()?.wait()?;
    let kind = engine.strategy.precision.matmul;
    let rates = gather(gemm_rate::measure(256, 1024, 1024, kind, here, 5))?;
    Ok(Peak {
        flops: rates.iter().sum(),
        device: None,
    })
}

/// Every rank's largest resident set so far.
fn peak_memory_mb(engine: &Engine) -> Result<Vec<f64>, TrainError> {
    let own = memory::peak_resident_bytes().unwrap_or(0) as f64 / 1e6;
    Ok(all_gather_numbers(engine.world.as_ref(), &[own], engine.device)?.concat())
}
