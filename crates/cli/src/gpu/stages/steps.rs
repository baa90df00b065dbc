//! Whole training steps on one device: the time, the part of the peak that it is, and how far from the floor.

use tandem_run::failure::Outcome;
use tandem_tensor::Device;
use tandem_tensor::torch::cuda;

use super::floor;
use crate::bench_step::Measurement;
use crate::gpu::finding::Finding;
use crate::gpu::program;
use crate::gpu::stage::Context;

/// What is trained: the same in PyTorch.
pub(super) struct Work {
    /// As `tandem bench step` names it.
    pub model: &'static str,
    pub layers: usize,
    pub seq: usize,
    pub batch: usize,
    pub steps: usize,
}

/// Bytes of a parameter: bf16, a gradient, a master weight and two moments in fp32.
const PER_PARAMETER: u64 = 18;

impl Work {
    /// Qwen2-0.5B, whole.
    pub(super) fn small(context: &Context) -> Self {
        match context.is_gpu() {
            true => Self {
                model: "qwen2",
                layers: context.sized(4, 24),
                seq: context.sized(512, 2048),
                // What is kept of a token for backward is some 0.7 MB.
                batch: if free_bytes(context) > 22 << 30 { 4 } else { 1 },
                steps: 10,
            },
            false => Self {
                model: context.sized("smollm2", "qwen2"),
                layers: 1,
                seq: context.sized(32, 256),
                batch: 1,
                steps: context.sized(1, 3),
            },
        }
    }

    /// As many layers of a 7B model as fit.
    pub(super) fn large(context: &Context) -> Self {
        let (layer, rest) = (202_000_000, 262_000_000);
        let room = free_bytes(context) * 6 / 10 / PER_PARAMETER;
        let fitting = room.saturating_sub(rest) / layer;
        Self {
            model: "llama2-7b",
            layers: usize::try_from(fitting).unwrap_or(0).clamp(0, 8),
            seq: 2048,
            batch: 1,
            steps: 10,
        }
    }

    /// As `tandem bench step` is told, and PyTorch's program.
    pub(super) fn flags(&self, context: &Context) -> Vec<String> {
        let mut flags = ["--device", context.device_name, "--model", self.model]
            .map(str::to_owned)
            .to_vec();
        for (flag, number) in [
            ("--layers", self.layers),
            ("--seq", self.seq),
            ("--batch", self.batch),
            ("--steps", self.steps),
        ] {
            flags.extend([flag.to_owned(), number.to_string()]);
        }
        flags
    }
}

/// Free memory of the GPU; 0 on a processor.
fn free_bytes(context: &Context) -> u64 {
    match context.device {
        Device::Cpu => 0,
        Device::Cuda(index) => cuda::memory(index).map_or(0, |(free, _)| free),
    }
}

pub(super) fn small(context: &Context) -> Outcome<Finding> {
    measured(context, &Work::small(context))
}

pub(super) fn large(context: &Context) -> Outcome<Finding> {
    if !context.is_gpu() {
        return Ok(Finding::not_possible("a layer of 7B shape is for a GPU"));
    }
    let work = Work::large(context);
    match work.layers {
        0 => Ok(Finding::not_possible(
            "not even one layer of a 7B model fits into the free memory",
        )),
        _ => measured(context, &work),
    }
}

/// The measurement of `tandem bench step` with these flags besides.
pub(super) fn bench(context: &Context, work: &Work, more: &[&str]) -> Outcome<Measurement> {
    let mut command = program::own(["bench", "step", "--json", "--tp_size", "1"])?;
    program::json(command.args(work.flags(context)).args(more))
}

fn measured(context: &Context, work: &Work) -> Outcome<Finding> {
    let m = bench(context, work, &[])?;
    let mut finding = match m.loss_last < m.loss_first || work.steps == 1 {
        true => Finding::ok(),
        false => Finding::failed("the loss did not fall on tokens that are the same every step"),
    };
    finding = finding
        .noting(described(work))
        .number("step", m.step_time_s * 1e3, "ms")
        .number(TOKENS, m.tokens_per_s, "tokens/s")
        .number("the floor times", m.floor_ratio, "")
        .number("loss, first", m.loss_first, "")
        .number("loss, last", m.loss_last, "");
    if let Some(mfu) = m.mfu {
        finding = finding.number("MFU, of the data sheet's peak", 100.0 * mfu, "%");
    }
    if let Some(rate) = context.found("floor", floor::RATE) {
        let reached = m.flops / m.step_time_s / 1e12;
        finding = finding.number(
            "of the measured rate of products",
            100.0 * reached / rate,
            "%",
        );
    }
    for memory in m.device_memory_mb {
        finding = finding.number("memory of the GPU", memory, "MB");
    }
    Ok(finding)
}

/// What `peers` compares.
pub(super) const TOKENS: &str = "throughput";

/// In a sentence.
pub(super) fn described(work: &Work) -> String {
    let Work {
        model,
        layers,
        seq,
        batch,
        ..
    } = work;
    format!("{model}, {layers} layers, {batch} rows of {seq} tokens, bf16, fp32 master weights")
}
