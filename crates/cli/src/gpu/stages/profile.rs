//! What a step's time is spent on, operator by operator; and how many there are.

use tandem_run::failure::{Failure, Outcome};

use super::steps::{self, Work};
use crate::gpu::finding::Finding;
use crate::gpu::stage::Context;

pub(super) fn run(context: &Context) -> Outcome<Finding> {
    let work = Work {
        steps: 2,
        ..Work::small(context)
    };
    // On a processor, the operators that a GPU would run; their times are those of the processor.
    let m = match context.is_gpu() {
        true => steps::bench(context, &work, &["--operators"])?,
        false => steps::bench(context, &work, &["--operators", "--pretend_gpu"])?,
    };
    let found = m
        .operators
        .ok_or_else(|| Failure::other("bench step has told no operators"))?;
    let waits = found.host_waits.iter().map(|line| vec![line.clone()]);
    let waits = waits.collect();
    let columns = ["time", "of all", "calls", "operator", "bytes", "sizes"];
    Ok(Finding::ok()
        .noting(steps::described(&work))
        .number("operators of a step", found.launches as f64, "")
        .number("read and written", found.bytes as f64 / 1e9, "GB")
        .number("copies to the device", found.copies_to_device as f64, "")
        .number("waits of the host", found.host_waits.len() as f64, "")
        .number("step", m.step_time_s * 1e3, "ms")
        .number("sum, each waited for alone", found.time_ms, "ms")
        .table("The most expensive operators", &columns, found.cells())
        .table("Where the host waits for the device", &["line"], waits))
}
