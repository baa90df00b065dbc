//! Every operation, with its gradient, against fp32 on the CPU.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tandem_run::failure::Outcome;
use tandem_tensor::Kind;
use tandem_tensor::check::{self, Difference};

use crate::gpu::finding::Finding;
use crate::gpu::page::shown;
use crate::gpu::stage::Context;

pub(super) fn run(context: &Context) -> Outcome<Finding> {
    let mut problems = Vec::new();
    let mut rows = Vec::new();
    for case in check::all() {
        for (kind, name) in [(Kind::Float, "fp32"), (Kind::BFloat16, "bf16")] {
            // What a device refuses is a panic with libtorch's words; the other operations are still of interest.
            let found = catch_unwind(AssertUnwindSafe(|| case.run(context.device, kind)));
            let label = format!("{} in {name}", case.name);
            let Ok(found) = found else {
                problems.push(format!("{label}: refused, see the log"));
                rows.push(row(case.name, name, None));
                continue;
            };
            for it in found.iter().filter(|it| !it.is_small()) {
                let (output, off) = (it.output, shown(it.relative));
                problems.push(format!("{label}: {output} is off by {off} of its norm"));
            }
            let worst = found
                .iter()
                .max_by(|a, b| a.relative.total_cmp(&b.relative));
            rows.push(row(case.name, name, worst));
        }
    }
    let columns = [
        "operation",
        "kind",
        "worst result",
        "off by, of its norm",
        "allowed",
    ];
    Ok(Finding::without(&problems)
        .number(
            "operations, each in fp32 and bf16",
            check::all().len() as f64,
            "",
        )
        .table("Against fp32 on the CPU", &columns, rows))
}

fn row(case: &str, kind: &str, worst: Option<&Difference>) -> Vec<String> {
    let mut row = vec![case.to_owned(), kind.to_owned()];
    match worst {
        Some(it) => row.extend([it.output.to_owned(), shown(it.relative), shown(it.allowed)]),
        None => row.extend(["refused".to_owned(), String::new(), String::new()]),
    }
    row
}
