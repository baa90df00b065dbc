//! The same step in PyTorch, as its documentation has it: FSDP2, eager and compiled.

use serde::Deserialize;
use tandem_run::failure::{Failure, Outcome};

use super::steps::{self, Work};
use crate::gpu::finding::Finding;
use crate::gpu::program;
use crate::gpu::stage::Context;

/// The programs, which the binary carries.
const PROGRAMS: [(&str, &str); 2] = [
    (
        "gpu.py",
        include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../benches/peers/gpu.py"
        )),
    ),
    (
        "model.py",
        include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../benches/peers/model.py"
        )),
    ),
];

/// What such a program prints.
#[derive(Deserialize)]
struct Peer {
    torch: String,
    step_time_s: f64,
    tokens_per_s: f64,
    memory_mb: f64,
    loss_first: f64,
    loss_last: f64,
}

pub(super) fn eager(context: &Context) -> Outcome<Finding> {
    run(context, &[])
}

pub(super) fn compiled(context: &Context) -> Outcome<Finding> {
    run(context, &["--compile"])
}

fn run(context: &Context, more: &[&str]) -> Outcome<Finding> {
    if let Err(why) = has_torch(context) {
        return Ok(Finding::not_possible(why));
    }
    for (name, text) in PROGRAMS {
        std::fs::write(context.scratch.join(name), text).map_err(Failure::other)?;
    }
    let mut finding = Finding::ok();
    let small = ("step-0.5b", Work::small(context));
    let large = context.is_gpu().then(|| ("step-7b", Work::large(context)));
    for (stage, work) in [Some(small), large].into_iter().flatten() {
        if work.layers == 0 {
            continue;
        }
        let mut command = program::dependent(&context.python);
        command
            .arg(context.scratch.join("gpu.py"))
            .args(more)
            .args(work.flags(context));
        let peer: Peer = program::json(&mut command)?;
        let model = work.model;
        finding = finding
            .noting(format!("torch {}: {}", peer.torch, steps::described(&work)))
            .number(format!("{model}: step"), peer.step_time_s * 1e3, "ms")
            .number(
                format!("{model}: throughput"),
                peer.tokens_per_s,
                "tokens/s",
            )
            .number(format!("{model}: memory"), peer.memory_mb, "MB")
            .number(format!("{model}: loss, first"), peer.loss_first, "")
            .number(format!("{model}: loss, last"), peer.loss_last, "");
        if let Some(own) = context.found(stage, steps::TOKENS) {
            let times = own / peer.tokens_per_s;
            finding = finding.number(format!("{model}: Tandem's throughput times"), times, "");
        }
    }
    Ok(finding)
}

/// Whether there is a Python with a torch for this device; else why not.
fn has_torch(context: &Context) -> Result<(), String> {
    let need = match context.is_gpu() {
        true => "import torch; assert torch.cuda.is_available(), 'its torch finds no GPU'",
        false => "import torch",
    };
    let found = program::output(program::dependent(&context.python).args(["-c", need]));
    let program = context.python.display();
    found.map(drop).map_err(|failure| {
        format!(
            "{program} has no torch for this device; --python names another ({})",
            failure.message
        )
    })
}
