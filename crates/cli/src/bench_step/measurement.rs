//! What is measured of a mesh, for programs and for people.

use serde::{Deserialize, Serialize};
use tandem_plan::Memory;

use crate::bench_step::operators::Operators;

/// What one mesh gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    pub tp: usize,
    pub dp: usize,
    /// Ranks over which experts are spread.
    pub ep: usize,
    /// Median.
    pub step_time_s: f64,
    pub step_time_min_s: f64,
    pub step_time_max_s: f64,
    /// Tokens of the global batch per second.
    pub tokens_per_s: f64,
    /// Useful floating point operations of a step, all ranks together.
    pub flops: f64,
    /// The part of the devices' peak that they are, where the device is known.
    pub mfu: Option<f64>,
    /// Processor time of all ranks in a step; median.
    pub cpu_s_per_step: f64,
    /// Page faults of all ranks in a step.
    pub page_faults_per_step: f64,
    /// Per rank, of the host's memory.
    pub peak_memory_mb: Vec<f64>,
    /// Per rank, what is taken of its GPU at the end, which is the most that was; none without a GPU.
    pub device_memory_mb: Vec<f64>,
    /// What `tandem plan` says of a rank's memory.
    pub planned_memory_mb: f64,
    /// The same by kind, in bytes.
    pub planned_memory: Memory,
    /// What it says of the step, where a device file is given.
    pub planned_step_s: Option<f64>,
    /// Sum over the step's matrix products, each at its measured rate; the slowest rank's.
    pub gemm_floor_s: f64,
    /// The bytes that the update must move, at this machine's rate; the slowest rank's.
    pub memory_floor_s: f64,
    /// The sum of the two.
    pub floor_s: f64,
    pub floor_ratio: f64,
    /// The floor in processor time of all ranks; none on a GPU.
    pub processor_floor_s: Option<f64>,
    /// Of the processor time, by which a step is judged on a busy machine.
    pub processor_floor_ratio: Option<f64>,
    pub loss_first: f64,
    pub loss_last: f64,
    /// Whose sizes.
    pub model: String,
    /// Rank of the adapters; 0 where the model is trained.
    pub lora_r: usize,
    /// Name, count, tokens, inputs, outputs, GFLOP/s, of rank 0.
    pub gemms: Vec<(String, usize, usize, usize, usize, f64)>,
    /// Of rank 0, with --operators.
    pub operators: Option<Operators>,
}

impl Measurement {
    /// For people.
    pub fn lines(&self) -> Vec<String> {
        let of_floor = self.processor_floor_ratio;
        let of_floor = of_floor.map_or_else(String::new, |it| format!(" ({it:.2} x the floor's)"));
        let mut lines = vec![
            format!(
                "step {:.3} s median ({:.3} to {:.3})   {:.0} tokens/s   {:.2} x the floor: {:.3} s of products, {:.3} s of memory",
                self.step_time_s,
                self.step_time_min_s,
                self.step_time_max_s,
                self.tokens_per_s,
                self.floor_ratio,
                self.gemm_floor_s,
                self.memory_floor_s
            ),
            format!(
                "{:.3} s of processor time{of_floor} and {:.0} page faults in a step, all ranks",
                self.cpu_s_per_step, self.page_faults_per_step
            ),
        ];
        if let Some(mfu) = self.mfu {
            let percent = 100.0 * mfu;
            lines.push(format!("{percent:.1} % of the devices' bf16 peak (MFU)"));
        }
        let peaks = self.peak_memory_mb.iter().map(|mb| format!("{mb:.0}"));
        lines.push(format!(
            "peak memory per rank, MB: {}, planned {:.0}   loss {:.4} -> {:.4}",
            peaks.collect::<Vec<_>>().join(" "),
            self.planned_memory_mb,
            self.loss_first,
            self.loss_last
        ));
        let gemms = self.gemms.iter();
        lines.extend(gemms.map(|(name, count, tokens, inputs, outputs, rate)| {
            format!(
                "{count:>3} x {name:<14} [{tokens}, {inputs}] -> {outputs:<6} {rate:>7.0} GFLOP/s"
            )
        }));
        lines.extend(self.operators.iter().flat_map(Operators::lines));
        lines
    }
}
