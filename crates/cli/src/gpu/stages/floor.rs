//! What the device can do at best: large products of matrices, and passes over memory.

use tandem_plan::Device;
use tandem_run::failure::Outcome;
use tandem_tensor::{Kind, gemm_rate};
use tandem_trainer::memory_floor;

use crate::gpu::finding::Finding;
use crate::gpu::stage::Context;

/// The number that other stages ask for: operations per second of bf16 products, in units of 10^12.
pub(super) const RATE: &str = "bf16 products";

pub(super) fn run(context: &Context) -> Outcome<Finding> {
    // A processor needs no larger ones to reach its best.
    let side = match context.is_gpu() {
        true => context.sized(4096, 8192),
        false => context.sized(256, 1024),
    };
    let device = context.device;
    let rate = |kind| gemm_rate::measure(side, side, side, kind, device, 10) / 1e12;
    let bf16 = rate(Kind::BFloat16);
    let alone = || Ok::<_, std::convert::Infallible>(());
    let Ok(a_byte) = memory_floor::seconds_per_byte(device, 10, alone);
    let bandwidth = 1e-9 / a_byte.wall;
    let name = tandem_tensor::device::name(device);
    let mut finding = Finding::ok()
        .number(RATE, bf16, "TFLOP/s")
        .number("fp32 products", rate(Kind::Float), "TFLOP/s")
        .number("memory, a += b", bandwidth, "GB/s");
    if let Some(sheet) = name.as_deref().and_then(Device::of_driver) {
        let of_peak = 100.0 * bf16 * 1e12 / sheet.peak(Kind::BFloat16);
        finding = finding.number("bf16 products, of the data sheet's", of_peak, "%");
    }
    Ok(match name {
        Some(name) => finding.noting(name),
        None => finding,
    })
}
