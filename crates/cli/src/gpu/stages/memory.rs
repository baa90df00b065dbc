//! The memory that a step takes, beside what was calculated for it.

use tandem_run::failure::Outcome;

use super::steps::{self, Work};
use crate::gpu::finding::Finding;
use crate::gpu::stage::Context;

pub(super) fn run(context: &Context) -> Outcome<Finding> {
    let work = Work {
        layers: context.sized(1, 2),
        steps: 1,
        ..Work::small(context)
    };
    let m = steps::bench(context, &work, &[])?;
    let measured = match context.is_gpu() {
        true => &m.device_memory_mb,
        false => &m.peak_memory_mb,
    };
    let measured = measured.iter().copied().fold(0.0, f64::max);
    let finding = match calculated_mb(&work) {
        None => Finding::not_possible("this build calculates no memory to compare with"),
        Some(calculated) => compared(measured, calculated),
    };
    Ok(finding
        .noting(steps::described(&work))
        .number("measured", measured, "MB"))
}

/// What one rank needs for this work by calculation.
fn calculated_mb(_work: &Work) -> Option<f64> {
    None
}

fn compared(measured: f64, calculated: f64) -> Finding {
    let off = 100.0 * (calculated / measured - 1.0);
    let problems = match off.abs() <= 10.0 {
        true => Vec::new(),
        false => vec![format!(
            "the calculation is off by {off:+.0} %, and 10 % are allowed"
        )],
    };
    Finding::without(&problems).number("calculated", calculated, "MB")
}
