//! Whether a replay agrees with its case.

use std::path::Path;

use tandem_launch::say;
use tandem_model::ModelConfig;
use tandem_run::failure::{Failure, Outcome};
use tandem_run::weights::Pretrained;

use super::case::{ADAPTER_INIT, Candidate, Case};
use super::comparison::Sources;
use super::tensors::Tensors;
use super::{FINAL, GRADIENT, LOGITS, ReplayArgs, STEP0, TRAJECTORY};
use super::{read_batches, row, verdict};

/// What PyTorch computed in the case's own kind of numbers, and in float64, where that was recorded.
const EXPECTED: &str = "expected.safetensors";
const EXPECTED_FLOAT64: &str = "expected_fp64.safetensors";

/// What names of parameters after the last step begin with in both.
const LAST: &str = "final.";

/// Compares what the workers wrote with the case; prints the table.
///
/// # Errors
/// A file cannot be read, or a deviation is larger than allowed.
pub fn check(args: &ReplayArgs, case: &Case) -> Outcome<()> {
    let tolerances = &case.trajectory.tolerances;
    let candidate = read_candidate(&args.output.join(TRAJECTORY))?;
    let mut verdicts = verdict::judge_trajectory(&candidate, &case.trajectory);

    let recorded = match case.adapter_file("adapter_final") {
        Some(file) => Tensors::of_file(&file, "")?,
        None => Tensors::of_file(&case.dir.join(EXPECTED), LAST)?,
    };
    let last = Sources {
        candidate: &Tensors::of_file(&args.output.join(FINAL), "")?,
        recorded: &recorded,
        float64: float64(case, LAST)?.as_ref(),
    }
    .compare(Some(&initial(case)?))?;
    verdicts.extend(verdict::judge_final(&last, tolerances));

    let gradients = Sources {
        candidate: &Tensors::of_file(&args.output.join(STEP0), GRADIENT)?,
        recorded: &Tensors::of_file(&case.dir.join(EXPECTED), GRADIENT)?,
        float64: float64(case, GRADIENT)?.as_ref(),
    }
    .compare(None)?;
    verdicts.extend(verdict::judge_gradients(&gradients, tolerances));

    let batches = read_batches(case)?;
    let mask = row(&batches.mask, 0, 0);
    let is_real: Vec<bool> = mask.iter().map(|&real| real == 1).collect();
    let logits = Sources {
        candidate: &Tensors::of_file(&args.output.join(STEP0), "")?,
        recorded: &Tensors::of_file(&case.dir.join(EXPECTED), "")?,
        float64: float64(case, "")?.as_ref(),
    }
    .rows(LOGITS, &is_real)?;
    verdicts.push(verdict::judge_logits(&logits, tolerances));

    say!("{}", verdict::table(&verdicts))?;
    let missed: Vec<_> = verdicts
        .iter()
        .filter(|v| !v.passes())
        .map(|v| v.metric)
        .collect();
    if missed.is_empty() {
        say!("all within tolerance")?;
        Ok(())
    } else {
        Err(Failure::other(format!(
            "out of tolerance: {}",
            missed.join(", ")
        )))
    }
}

/// What was recorded in float64 under names with this prefix; `None` of a case without it.
fn float64(case: &Case, prefix: &'static str) -> Outcome<Option<Tensors>> {
    let file = case.dir.join(EXPECTED_FLOAT64);
    if !file.exists() {
        return Ok(None);
    }
    let tensors = Tensors::of_file(&file, prefix)?;
    Ok((!tensors.names().is_empty()).then_some(tensors))
}

/// The weights that the case begins with, by the model's names.
fn initial(case: &Case) -> Outcome<Tensors> {
    if let Some(file) = case.adapter_file(ADAPTER_INIT) {
        return Tensors::of_file(&file, "");
    }
    let config = ModelConfig::from_dir(&case.dir).map_err(Failure::other)?;
    Ok(Tensors::of_model(
        Pretrained::open(&case.dir, config)?.weights,
    ))
}

fn read_candidate(path: &Path) -> Outcome<Candidate> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::other(format!("cannot read {}: {error}", path.display())))?;
    serde_json::from_str(&text)
        .map_err(|error| Failure::other(format!("{}: {error}", path.display())))
}
