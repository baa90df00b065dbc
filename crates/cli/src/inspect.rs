//! `tandem inspect`: what a checkpoint holds, and whether it still holds it.

use clap::{ArgAction, Args};
use tandem_checkpoint::{Reader, TrainState};
use tandem_launch::exit_code;
use tandem_launch::say;
use tandem_run::environment::Environment;
use tandem_run::failure::Outcome;

use crate::checkpoint_location::Located;

/// Show what a checkpoint holds, and read all of it to see that it is what was written.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct InspectArgs {
    /// The checkpoint's folder or URL; of an experiment, its newest checkpoint.
    #[arg(value_name = "DIR")]
    pub checkpoint: String,

    /// Read all files and compare them with their hashes.
    #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = ArgAction::Set)]
    pub verify: bool,

    /// List every tensor.
    #[arg(long)]
    pub tensors: bool,
}

/// Prints to standard output. Returns the exit code: 1 when something is damaged.
pub fn run(args: &InspectArgs, environment: &Environment) -> Outcome<i32> {
    let located = Located::open(&args.checkpoint, environment)?;
    if let Some(status) = located.run_status() {
        say!("run: {status}")?;
    }
    let reader = located.reader;
    say!("{}", reader.location())?;
    for line in state(reader.state()) {
        say!("  {line}")?;
    }
    let contents = reader.manifest().contents();
    say!(
        "  holds      {} tensors, {:.1} MB in {} files",
        contents.shapes.len(),
        contents.bytes as f64 / 1e6,
        contents.files.len()
    )?;
    for (role, elements) in &contents.elements {
        say!("             {elements} elements of {role}")?;
    }
    if args.tensors {
        for (name, shape) in &contents.shapes {
            say!("  {name}  {shape:?}")?;
        }
    }
    if !args.verify {
        return Ok(exit_code::OK);
    }
    Ok(if verify(&reader)? {
        exit_code::OK
    } else {
        exit_code::FAILURE
    })
}

fn state(state: &TrainState) -> Vec<String> {
    let zero = state
        .zero_stage
        .map_or(String::new(), |stage| format!(", ZeRO stage {stage}"));
    let mut lines = vec![
        format!(
            "written by {}{zero}, tp {} x dp {}",
            state.strategy, state.tp_size, state.dp_size
        ),
        format!(
            "progress   step {}, {} tokens; continues with sample {} of epoch {}",
            state.global_step,
            state.tokens_seen,
            state.next_sample,
            state.epoch.saturating_add(1)
        ),
        format!(
            "data       rows of {} tokens, seed {}",
            state.seq_length, state.seed
        ),
    ];
    let metrics: Vec<String> = state
        .metrics
        .iter()
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    if !metrics.is_empty() {
        lines.push(format!("metrics    {}", metrics.join(", ")));
    }
    lines
}

/// Whether all files are what was written; says which are not.
fn verify(reader: &Reader) -> Outcome<bool> {
    let mut good = true;
    for check in reader.verify(|_| {}) {
        if check.problems.is_empty() {
            say!("  {}  {} bytes, whole", check.file.name, check.file.bytes)?;
            continue;
        }
        good = false;
        say!("  {}  DAMAGED", check.file.name)?;
        for problem in check.problems {
            say!("    {problem}")?;
        }
    }
    Ok(good)
}
