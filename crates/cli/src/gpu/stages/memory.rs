//! The memory that a step takes, beside what `tandem plan` says of it.

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
    Ok(compared(measured, m.planned_memory_mb)
        .noting(steps::described(&work))
        .number("measured", measured, "MB"))
}

fn compared(measured: f64, planned: f64) -> Finding {
    let off = 100.0 * (planned / measured - 1.0);
    let problems = match off.abs() <= 10.0 {
        true => Vec::new(),
        false => vec![format!(
            "the plan is off by {off:+.0} %, and 10 % are allowed"
        )],
    };
    Finding::without(&problems).number("planned", planned, "MB")
}
