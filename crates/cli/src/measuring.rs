//! Workers that measure something: how they are started, what they train with, and how what they found comes back.

use std::ffi::OsString;
use std::path::Path;

use tandem_comm::Transport;
use tandem_mesh::DeviceMesh;
use tandem_run::environment::Environment;
use tandem_run::failure::{Failure, Outcome};
use tandem_run::libtorch::{Libtorch, workers};
use tandem_run::spec::{Dtype, EngineSpec, HEAD_CHUNK_ROWS};
use tandem_run::start::local::{self, Supervision};
use tandem_run::storage::write_whole;
use tandem_tensor::DeviceChoice;

use crate::replay::StrategyChoice;

/// Where a worker leaves what it found, in the workers' folder.
const RESULT: &str = "result.json";

/// FSDP with nothing that one would have to ask for, over a row of so many ranks.
pub fn spec(ranks: usize, device: DeviceChoice, dtype: Dtype) -> Outcome<EngineSpec> {
    Ok(EngineSpec {
        mesh: DeviceMesh::new(ranks, 1).map_err(|error| Failure::usage(error.to_string()))?,
        expert_parallel_size: 1,
        strategy: StrategyChoice::Fsdp.spec(1, true),
        device,
        dtype,
        sequence_parallel: false,
        activation_checkpointing: false,
        recompute: None,
        comm_timeout_s: 120,
        head_chunk_rows: HEAD_CHUNK_ROWS,
    })
}

/// Starts so many workers with this command line, for the folder `run_dir`, and waits for them. Returns what one of them has left
/// there ([`leave`]), or the exit code of those that failed.
pub fn run_workers(
    ranks: usize,
    device: DeviceChoice,
    transport: Transport,
    line: &[OsString],
    run_dir: &Path,
) -> Outcome<Result<String, i32>> {
    let libtorch = Libtorch::ready(device, workers(ranks, transport))?;
    let none = Supervision::NONE;
    let code = local::run_workers(libtorch, line, ranks, run_dir, &[], none, &mut |_| {})?;
    if code != 0 {
        return Ok(Err(code));
    }
    let text = std::fs::read_to_string(run_dir.join(RESULT)).map_err(Failure::other)?;
    Ok(Ok(text))
}

/// Leaves what a worker found, as JSON, for the process that started it.
pub fn leave(environment: &Environment, found: &str) -> Outcome<()> {
    let run_dir = environment.run_dir.as_deref().unwrap_or(".");
    write_whole(&Path::new(run_dir).join(RESULT), found)
}
