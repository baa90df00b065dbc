//! Judging a candidate run against a recorded case: each metric with its deviation and its tolerance.

use std::collections::BTreeMap;

use super::case::{Candidate, Tolerances, Trajectory};

/// Named flat tensors.
pub type Tensors = BTreeMap<String, Vec<f32>>;

/// One line of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The metric's name.
    pub metric: &'static str,
    /// How far the candidate is off.
    pub deviation: f64,
    /// How far it may be; `None` is not judged.
    pub tolerance: Option<f64>,
    /// Where it is worst.
    pub worst: String,
}

impl Verdict {
    /// True when the deviation is a number within the tolerance.
    pub fn passes(&self) -> bool {
        self.tolerance
            .is_none_or(|tolerance| self.deviation <= tolerance)
    }
}

/// Losses and gradient norms.
pub fn judge_trajectory(candidate: &Candidate, case: &Trajectory) -> Vec<Verdict> {
    let worst_step = |deviations: Vec<f64>| {
        worst(
            deviations
                .into_iter()
                .enumerate()
                .map(|(i, d)| (d, format!("step {}", i + 1))),
        )
    };
    let pairs = |a: &[f64], b: &[f64]| -> Vec<(f64, f64)> {
        // A missing step is an infinite deviation, not a shorter comparison.
        (0..b.len())
            .map(|i| (a.get(i).copied().unwrap_or(f64::INFINITY), b[i]))
            .collect()
    };
    let loss = pairs(&candidate.loss, &case.loss);
    let norm = pairs(&candidate.grad_norm, &case.grad_norm);
    let t = &case.tolerances;
    vec![
        verdict(
            "loss_abs",
            t.loss_abs,
            worst_step(loss.iter().map(|(a, b)| (a - b).abs()).collect()),
        ),
        verdict(
            "grad_norm_rel",
            t.grad_norm_rel,
            worst_step(norm.iter().map(|(a, b)| (a - b).abs() / b.abs()).collect()),
        ),
    ]
}

/// Final parameters against `reference`, measured by how far training moved them from `initial`.
pub fn judge_final(
    candidate: &Tensors,
    reference: &Tensors,
    initial: &Tensors,
    t: &Tolerances,
) -> Vec<Verdict> {
    let (mut error, mut moved) = (0.0, 0.0);
    let mut tensors = Vec::new();
    let mut elements = Vec::new();
    for (name, expected) in reference {
        let (Some(actual), Some(start)) = (candidate.get(name), initial.get(name)) else {
            tensors.push((f64::INFINITY, format!("{name} is missing")));
            continue;
        };
        let (e, m) = (distance(actual, expected), distance(expected, start));
        error += e * e;
        moved += m * m;
        tensors.push((e / m, name.clone()));
        elements.push((max_distance(actual, expected), name.clone()));
    }
    let all = ((error / moved).sqrt(), "all tensors together".to_owned());
    vec![
        verdict("final_update_rel", t.final_update_rel, all),
        verdict("final_tensor_rel", t.final_tensor_rel, worst(tensors)),
        verdict("final_max_abs", t.final_max_abs, worst(elements)),
    ]
}

/// Gradients of the first step.
pub fn judge_gradients(candidate: &Tensors, reference: &Tensors, t: &Tolerances) -> Vec<Verdict> {
    let global: f64 = reference
        .values()
        .map(|g| norm(g).powi(2))
        .sum::<f64>()
        .sqrt();
    let deviations: Vec<(f64, f64, String)> = reference
        .iter()
        .map(|(name, expected)| match candidate.get(name) {
            Some(actual) => (distance(actual, expected), norm(expected), name.clone()),
            None => (f64::INFINITY, 1.0, format!("{name} is missing")),
        })
        .collect();
    let relative_to = |own: bool| {
        worst(deviations.iter().map(|(d, n, name)| {
            let scale = if own { n.max(1e-3 * global) } else { global };
            (d / scale, name.clone())
        }))
    };
    vec![
        verdict("grad_global_rel", t.grad_global_rel, relative_to(false)),
        verdict("grad_tensor_rel", t.grad_tensor_rel, relative_to(true)),
    ]
}

/// Logits of the first row where `mask` is set; `[seq, vocabulary]`.
pub fn judge_logits(
    candidate: &[f32],
    reference: &[f32],
    mask: &[bool],
    t: &Tolerances,
) -> Verdict {
    let vocab = reference.len() / mask.len().max(1);
    let deviation = if candidate.len() == reference.len() {
        worst(
            mask.iter()
                .enumerate()
                .filter(|(_, real)| **real)
                .map(|(position, _)| {
                    let range = position * vocab..(position + 1) * vocab;
                    (
                        max_distance(&candidate[range.clone()], &reference[range]),
                        format!("position {position}"),
                    )
                }),
        )
    } else {
        (
            f64::INFINITY,
            format!("{} logits instead of {}", candidate.len(), reference.len()),
        )
    };
    verdict("logits_abs", t.logits_abs, deviation)
}

/// The table, a line per metric.
pub fn table(verdicts: &[Verdict]) -> String {
    let mut lines = vec![format!(
        "{:<18} {:>10} {:>10}  {:<6} worst at",
        "metric", "deviation", "tolerance", ""
    )];
    for v in verdicts {
        let tolerance = v.tolerance.map_or("-".to_owned(), |t| format!("{t:.1e}"));
        let word = match (v.passes(), v.tolerance) {
            (_, None) => "",
            (true, _) => "ok",
            (false, _) => "MISSED",
        };
        lines.push(format!(
            "{:<18} {:>10.1e} {:>10}  {:<6} {}",
            v.metric, v.deviation, tolerance, word, v.worst
        ));
    }
    lines.join("\n")
}

fn verdict(
    metric: &'static str,
    tolerance: Option<f64>,
    (deviation, worst): (f64, String),
) -> Verdict {
    Verdict {
        metric,
        deviation,
        tolerance,
        worst,
    }
}

/// The largest deviation; NaN counts as infinite, so that it can never pass.
fn worst(deviations: impl IntoIterator<Item = (f64, String)>) -> (f64, String) {
    deviations
        .into_iter()
        .map(|(d, name)| (if d.is_nan() { f64::INFINITY } else { d }, name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .unwrap_or((f64::INFINITY, "nothing to compare".to_owned()))
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    a.iter()
        .zip(b)
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
        .sum::<f64>()
        .sqrt()
}

fn max_distance(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    worst(
        a.iter()
            .zip(b)
            .map(|(a, b)| ((f64::from(*a) - f64::from(*b)).abs(), String::new())),
    )
    .0
}

fn norm(a: &[f32]) -> f64 {
    a.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(values: &[f32]) -> Tensors {
        BTreeMap::from([("w".to_owned(), values.to_vec())])
    }

    #[test]
    fn deviations_missing_tensors_and_nan_all_fail() {
        let t = Tolerances {
            final_update_rel: Some(1e-3),
            final_tensor_rel: Some(1e-2),
            final_max_abs: Some(1e-3),
            grad_global_rel: Some(1e-6),
            ..Tolerances::default()
        };
        let (initial, reference) = (tensors(&[0.0, 0.0]), tensors(&[1.0, 1.0]));
        let all_pass = |verdicts: Vec<Verdict>| verdicts.iter().all(Verdict::passes);
        assert!(all_pass(judge_final(&reference, &reference, &initial, &t)));
        assert!(!all_pass(judge_final(
            &tensors(&[1.0, 1.1]),
            &reference,
            &initial,
            &t
        )));
        assert!(!all_pass(judge_final(
            &tensors(&[1.0, f32::NAN]),
            &reference,
            &initial,
            &t
        )));
        assert!(!all_pass(judge_final(
            &tensors(&[1.0]),
            &reference,
            &initial,
            &t
        )));
        assert!(!all_pass(judge_final(
            &Tensors::new(),
            &reference,
            &initial,
            &t
        )));
        assert!(!all_pass(judge_gradients(
            &tensors(&[1.0, 1.01]),
            &reference,
            &t
        )));
        let text = table(&judge_final(
            &tensors(&[1.0, 1.1]),
            &reference,
            &initial,
            &t,
        ));
        assert!(
            text.contains("MISSED") && text.contains("final_max_abs"),
            "{text}"
        );
    }

    #[test]
    fn a_shorter_trajectory_fails() {
        let case: Trajectory = serde_json::from_value(serde_json::json!({
            "format": 1, "n_steps": 2, "global_batch": 1, "seq": 4, "lr": 0.1, "betas": [0.9, 0.99], "eps": 1e-8,
            "weight_decay": 0.0, "max_grad_norm": 1.0, "loss": [1.0, 2.0], "grad_norm": [1.0, 1.0],
            "tolerances": {"loss_abs": 0.1, "grad_norm_rel": 0.1},
        }))
        .unwrap();
        let candidate = |loss: Vec<f64>| Candidate {
            grad_norm: vec![1.0; loss.len()],
            loss,
            n_tokens: Vec::new(),
        };
        assert!(
            judge_trajectory(&candidate(vec![1.0, 2.05]), &case)
                .iter()
                .all(Verdict::passes)
        );
        assert!(
            !judge_trajectory(&candidate(vec![1.0]), &case)
                .iter()
                .all(Verdict::passes)
        );
        assert!(
            !judge_trajectory(&candidate(vec![1.0, 2.2]), &case)
                .iter()
                .all(Verdict::passes)
        );
    }
}
