//! Judging a candidate run against a recorded case: each metric with its deviation and what is allowed.
//!
//! Where the case has float64, that is the truth: deviations are from it, and PyTorch's own recording has one too. Rounding
//! grows with the depth of a model, in PyTorch as here, so no fixed tolerance serves for all. What PyTorch itself misses the truth by
//! says how much of it is rounding.

use super::case::{Candidate, Tolerances, Trajectory};
use super::comparison::{Compared, Distance};

/// Two computations that round differently and equally well: one of them is easily twice as far from the truth as the other.
const TIMES_PYTORCH: f64 = 2.0;

/// PyTorch's own deviation counts up to this many tolerances. What is further from the truth is not its rounding: one of the two
/// recordings is of something else.
const MOST_TOLERANCES: f64 = 100.0;

/// These are the worst of single tensors, of which PyTorch's deviation always counts: the gradient of one may be nothing but rounding,
/// such as that of the keys' bias in a layer without positions, to which the softmax is blind, and Adam makes steps of it.
const OF_SINGLE_TENSORS: [&str; 3] = ["final_tensor_rel", "final_max_abs", "grad_tensor_rel"];

/// One line of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The metric's name.
    pub metric: &'static str,
    /// How far the candidate is off.
    pub deviation: f64,
    /// How far PyTorch's recording is off, where the reference is float64.
    pub pytorch: Option<f64>,
    /// How far the candidate may be off in any case; `None` is not judged.
    pub tolerance: Option<f64>,
    /// Where it is worst.
    pub worst: String,
}

impl Verdict {
    /// How far the candidate may be off; `None` is not judged.
    pub fn allowed(&self) -> Option<f64> {
        let tolerance = self.tolerance?;
        let most = match OF_SINGLE_TENSORS.contains(&self.metric) {
            true => f64::MAX,
            false => MOST_TOLERANCES * tolerance,
        };
        let of_pytorch = self.pytorch.filter(|deviation| *deviation <= most);
        Some(of_pytorch.map_or(tolerance, |deviation| {
            tolerance.max(TIMES_PYTORCH * deviation)
        }))
    }

    /// True when the deviation is a number that is allowed.
    pub fn passes(&self) -> bool {
        self.allowed()
            .is_none_or(|allowed| self.deviation <= allowed)
    }
}

/// Losses and gradient norms.
pub fn judge_trajectory(candidate: &Candidate, case: &Trajectory) -> Vec<Verdict> {
    let t = &case.tolerances;
    let judge = |metric, tolerance, steps: [&[f64]; 2], float64: Option<&[f64]>, relative| {
        let [candidate, recorded] = steps;
        let reference = float64.unwrap_or(recorded);
        let worst_step = |found: &[f64]| {
            worst(reference.iter().enumerate().map(|(step, expected)| {
                // A missing step is an infinite deviation, not a shorter comparison.
                let found = found.get(step).copied().unwrap_or(f64::INFINITY);
                let scale = if relative { expected.abs() } else { 1.0 };
                (
                    (found - expected).abs() / scale,
                    format!("step {}", step + 1),
                )
            }))
        };
        let (deviation, worst) = worst_step(candidate);
        Verdict {
            metric,
            deviation,
            pytorch: float64.map(|_| worst_step(recorded).0),
            tolerance,
            worst,
        }
    };
    vec![
        judge(
            "loss_abs",
            t.loss_abs,
            [&candidate.loss, &case.loss],
            case.loss_fp64.as_deref(),
            false,
        ),
        judge(
            "grad_norm_rel",
            t.grad_norm_rel,
            [&candidate.grad_norm, &case.grad_norm],
            case.grad_norm_fp64.as_deref(),
            true,
        ),
    ]
}

/// Final parameters, measured by how far training moved them.
pub fn judge_final(parameters: &[Compared], t: &Tolerances) -> Vec<Verdict> {
    let sum = |of: &dyn Fn(&Compared) -> f64| parameters.iter().map(of).sum::<f64>();
    let moved = sum(&|tensor| tensor.squares);
    let together = |squares: f64| number((squares / moved).sqrt());
    let of_pytorch: Option<Vec<f64>> = parameters
        .iter()
        .map(|tensor| tensor.pytorch.map(|distance| distance.squares))
        .collect();
    let all = Verdict {
        metric: "final_update_rel",
        deviation: together(sum(&|tensor| tensor.replay.squares)),
        pytorch: of_pytorch.map(|squares| together(squares.iter().sum())),
        tolerance: t.final_update_rel,
        worst: "all tensors together".to_owned(),
    };
    let relative =
        |distance: Distance, tensor: &Compared| (distance.squares / tensor.squares).sqrt();
    vec![
        all,
        judge("final_tensor_rel", t.final_tensor_rel, parameters, relative),
        judge(
            "final_max_abs",
            t.final_max_abs,
            parameters,
            |distance, _| distance.largest,
        ),
    ]
}

/// Gradients of the first step.
pub fn judge_gradients(gradients: &[Compared], t: &Tolerances) -> Vec<Verdict> {
    let squares = gradients.iter().map(|tensor| tensor.squares);
    let global = squares.sum::<f64>().sqrt();
    let of_all = |distance: Distance, _: &Compared| distance.squares.sqrt() / global;
    let of_own = |distance: Distance, tensor: &Compared| {
        distance.squares.sqrt() / tensor.squares.sqrt().max(1e-3 * global)
    };
    vec![
        judge("grad_global_rel", t.grad_global_rel, gradients, of_all),
        judge("grad_tensor_rel", t.grad_tensor_rel, gradients, of_own),
    ]
}

/// Logits of the first row.
pub fn judge_logits(positions: &[Compared], t: &Tolerances) -> Verdict {
    judge("logits_abs", t.logits_abs, positions, |distance, _| {
        distance.largest
    })
}

/// The table, a line per metric.
pub fn table(verdicts: &[Verdict]) -> String {
    let has_float64 = verdicts.iter().any(|verdict| verdict.pytorch.is_some());
    let mut lines = Vec::new();
    if has_float64 {
        lines.push(
            "deviations are from float64; allowed is the tolerance, or twice what PyTorch's own fp32 is off by"
                .to_owned(),
        );
    }
    let line = |metric: &str, numbers: [&str; 3], word: &str, worst: &str| {
        let [deviation, pytorch, allowed] = numbers;
        let pytorch = match has_float64 {
            true => format!(" {pytorch:>10}"),
            false => String::new(),
        };
        format!("{metric:<18} {deviation:>10}{pytorch} {allowed:>10}  {word:<6} {worst}")
    };
    let limit = if has_float64 { "allowed" } else { "tolerance" };
    lines.push(line(
        "metric",
        ["deviation", "PyTorch's", limit],
        "",
        "worst at",
    ));
    let short = |number: Option<f64>| number.map_or("-".to_owned(), |n| format!("{n:.1e}"));
    for v in verdicts {
        let allowed = v.allowed();
        let word = match (v.passes(), allowed) {
            (_, None) => "",
            (true, _) => "ok",
            (false, _) => "MISSED",
        };
        let numbers = [short(Some(v.deviation)), short(v.pytorch), short(allowed)];
        let numbers = numbers.each_ref().map(String::as_str);
        lines.push(line(v.metric, numbers, word, &v.worst));
    }
    lines.join("\n")
}

/// The worst of `tensors` by `measure`, and the worst of PyTorch's recording by the same.
fn judge(
    metric: &'static str,
    tolerance: Option<f64>,
    tensors: &[Compared],
    measure: impl Fn(Distance, &Compared) -> f64,
) -> Verdict {
    let replay = tensors.iter();
    let (deviation, place) =
        worst(replay.map(|tensor| (measure(tensor.replay, tensor), tensor.name.clone())));
    let of_pytorch: Option<Vec<_>> = tensors
        .iter()
        .map(|tensor| {
            let distance = tensor.pytorch?;
            Some((measure(distance, tensor), String::new()))
        })
        .collect();
    Verdict {
        metric,
        deviation,
        pytorch: of_pytorch.map(|deviations| worst(deviations).0),
        tolerance,
        worst: place,
    }
}

/// The largest deviation; NaN counts as infinite, so that it can never pass.
fn worst(deviations: impl IntoIterator<Item = (f64, String)>) -> (f64, String) {
    deviations
        .into_iter()
        .map(|(deviation, name)| (number(deviation), name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .unwrap_or((f64::INFINITY, "nothing to compare".to_owned()))
}

/// What is no number is infinitely far off.
fn number(deviation: f64) -> f64 {
    if deviation.is_nan() {
        f64::INFINITY
    } else {
        deviation
    }
}

#[cfg(test)]
mod tests;
