//! Recorded training against PyTorch's numbers: on one device, and cut over two ranks each way.

use tandem_run::failure::Outcome;

use crate::gpu::finding::Finding;
use crate::gpu::golden::CASES;
use crate::gpu::program;
use crate::gpu::stage::{Context, transport_name};

/// Strategy, ranks in a row, rows.
const RUNS: [(&str, usize, usize); 4] = [
    ("fsdp", 1, 1),
    ("fsdp", 2, 1),
    ("fsdp", 1, 2),
    ("deepspeed", 1, 2),
];

pub(super) fn run(context: &Context) -> Outcome<Finding> {
    let (mut problems, mut rows) = (Vec::new(), Vec::new());
    for case in &CASES {
        let folder = case.unpack(&context.scratch)?;
        for (strategy, tp, dp) in RUNS.into_iter().take(context.sized(3, RUNS.len())) {
            let transport = transport_name(context.transport(tp * dp));
            let mut row = [case.name, strategy, &format!("{tp}x{dp}"), &transport]
                .map(str::to_owned)
                .to_vec();
            let output = context
                .scratch
                .join(format!("{}-{strategy}-{tp}x{dp}", case.name));
            let (tp, dp) = (tp.to_string(), dp.to_string());
            let args = [
                "replay",
                "--check",
                "--device",
                context.device_name,
                "--transport",
                &transport,
                "--strategy",
                strategy,
                "--tp_size",
                &tp,
                "--dp_size",
                &dp,
            ];
            let mut command = program::own(args)?;
            command
                .arg("--case")
                .arg(&folder)
                .arg("--output")
                .arg(&output);
            let result = program::output(&mut command);
            row.push(match &result {
                Ok(_) => "within tolerance".to_owned(),
                Err(failure) => failure.message.clone(),
            });
            if let Err(failure) = result {
                problems.push(format!(
                    "{} {strategy} {tp}x{dp}: {}",
                    case.name, failure.message
                ));
            }
            rows.push(row);
        }
    }
    let columns = [
        "case",
        "strategy",
        "tp x dp",
        "transport",
        "loss, gradients, parameters",
    ];
    Ok(Finding::without(&problems).table("fp32, against transformers", &columns, rows))
}
