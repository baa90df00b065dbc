//! The judgement on small cases made by hand.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView, serialize};

use super::super::comparison::Sources;
use super::super::tensors::Tensors;
use super::*;

/// Tensors in a file of its own; of `f64` where `double`.
fn tensors(folder: &Path, list: &[(&str, &[f64])], double: bool) -> Tensors {
    let bytes = |values: &[f64]| -> Vec<u8> {
        let bytes = values.iter().map(|&value| match double {
            true => value.to_le_bytes().to_vec(),
            false => (value as f32).to_le_bytes().to_vec(),
        });
        bytes.flatten().collect()
    };
    let all: Vec<_> = list.iter().map(|(_, values)| bytes(values)).collect();
    let dtype = if double { Dtype::F64 } else { Dtype::F32 };
    let views = list.iter().zip(&all).map(|((name, values), bytes)| {
        let view = TensorView::new(dtype, vec![values.len()], bytes).unwrap();
        (*name, view)
    });
    let file = serialize(views.collect::<Vec<_>>(), None).unwrap();
    let (_, path) = tempfile::NamedTempFile::new_in(folder)
        .unwrap()
        .keep()
        .unwrap();
    std::fs::write(&path, file).unwrap();
    Tensors::of_file(&path, "").unwrap()
}

/// A case without float64.
fn against<'a>(candidate: &'a Tensors, recorded: &'a Tensors) -> Sources<'a> {
    Sources {
        candidate,
        recorded,
        float64: None,
    }
}

fn all_pass(verdicts: &[Verdict]) -> bool {
    verdicts.iter().all(Verdict::passes)
}

#[test]
fn deviations_missing_tensors_and_nan_all_fail() {
    let folder = tempfile::tempdir().unwrap();
    let of = |list: &[(&str, &[f64])]| tensors(folder.path(), list, false);
    let t = Tolerances {
        final_update_rel: Some(1e-3),
        final_tensor_rel: Some(1e-2),
        final_max_abs: Some(1e-3),
        grad_global_rel: Some(1e-6),
        logits_abs: Some(1e-3),
        ..Tolerances::default()
    };
    let (initial, recorded) = (of(&[("w", &[0.0, 0.0])]), of(&[("w", &[1.0, 1.0])]));
    let finals = |candidate: &Tensors| {
        let compared = against(candidate, &recorded)
            .compare(Some(&initial))
            .unwrap();
        judge_final(&compared, &t)
    };
    assert!(all_pass(&finals(&recorded)));
    for (what, list) in [
        ("a deviation", &[("w", &[1.0, 1.1][..])][..]),
        ("NaN first", &[("w", &[f64::NAN, 1.0])]),
        ("NaN last", &[("w", &[1.0, f64::NAN])]),
        ("too short", &[("w", &[1.0])]),
        ("missing", &[("v", &[1.0, 1.0])]),
    ] {
        let candidate = of(list);
        let verdicts = finals(&candidate);
        assert!(
            !verdicts.iter().any(Verdict::passes),
            "{what}: {verdicts:?}"
        );
        let rows = against(&candidate, &recorded)
            .rows("w", &[true, true])
            .unwrap();
        assert!(!judge_logits(&rows, &t).passes(), "{what}");
    }
    let other = of(&[("w", &[1.0, 1.01])]);
    let gradients = against(&other, &recorded).compare(None).unwrap();
    assert!(!judge_gradients(&gradients, &t)[0].passes());
    let text = table(&finals(&of(&[("w", &[1.0, 1.1])])));
    assert!(
        text.contains("MISSED") && text.contains("final_max_abs") && !text.contains("float64"),
        "{text}"
    );
    // Padding has logits that nobody compares.
    let rows = against(&other, &recorded)
        .rows("w", &[true, false])
        .unwrap();
    assert!(judge_logits(&rows, &t).passes());
}

/// The truth is 1. PyTorch is off by its own rounding, and that decides how far the replay may be off.
#[test]
fn pytorchs_distance_from_float64_is_the_measure_where_it_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let t = Tolerances {
        grad_global_rel: Some(1e-6),
        grad_tensor_rel: Some(1e-6),
        ..Tolerances::default()
    };
    let both = |replay: f64, pytorch: f64, has_float64: bool| {
        let of = |value: f64, double| tensors(folder.path(), &[("w", &[value])], double);
        let float64 = has_float64.then(|| of(1.0, true));
        let sources = Sources {
            candidate: &of(replay, false),
            recorded: &of(pytorch, false),
            float64: float64.as_ref(),
        };
        let compared = sources.compare(None).unwrap();
        <[Verdict; 2]>::try_from(judge_gradients(&compared, &t)).unwrap()
    };
    let judged = |replay, pytorch, has_float64| both(replay, pytorch, has_float64)[0].clone();
    // PyTorch misses the truth by 10 tolerances, on the other side: without the truth, the replay is at fault.
    let alone = judged(1.0 - 1e-5, 1.0 + 1e-5, false);
    assert!(!alone.passes() && alone.pytorch.is_none());
    let nearer = judged(1.0 - 1e-5, 1.0 + 1e-5, true);
    assert!(nearer.passes(), "{nearer:?}");
    assert!(judged(1.0 - 1.9e-5, 1.0 + 1e-5, true).passes());
    let further = judged(1.0 - 2.2e-5, 1.0 + 1e-5, true);
    assert!(!further.passes(), "{further:?}");
    let text = table(&[further]);
    let line = text.lines().last().unwrap();
    let words: Vec<&str> = line.split_whitespace().take(5).collect();
    assert_eq!(
        words,
        ["grad_global_rel", "2.2e-5", "1.0e-5", "2.0e-5", "MISSED"]
    );
    assert!(
        text.contains("PyTorch's") && text.contains("float64"),
        "{text}"
    );

    // Within the tolerance of the truth it does not matter how near PyTorch comes.
    assert!(judged(1.0 + 5e-7, 1.0, true).passes());
    assert!(!judged(1.0 + 5e-6, 1.0, true).passes());
    // What PyTorch misses by far is no rounding, and excuses nothing; unless it is in a single tensor.
    for pytorch in [1.001, f64::NAN, f64::INFINITY] {
        let [of_all, of_one] = both(1.0001, pytorch, true);
        assert_eq!((of_all.passes(), of_all.allowed()), (false, Some(1e-6)));
        assert_eq!(of_one.passes(), pytorch.is_finite(), "{of_one:?}");
    }
}

#[test]
fn a_float64_recording_that_lacks_a_tensor_is_no_excuse() {
    let folder = tempfile::tempdir().unwrap();
    let of = |list: &[(&str, &[f64])], double| tensors(folder.path(), list, double);
    let recorded = of(&[("v", &[1.0]), ("w", &[1.0])], false);
    let float64 = of(&[("v", &[1.0])], true);
    let sources = Sources {
        candidate: &recorded,
        recorded: &recorded,
        float64: Some(&float64),
    };
    let t = Tolerances {
        grad_global_rel: Some(1e-6),
        ..Tolerances::default()
    };
    let verdict = judge_gradients(&sources.compare(None).unwrap(), &t).remove(0);
    assert!(
        !verdict.passes() && verdict.worst.contains("w is missing in float64"),
        "{verdict:?}"
    );
}

#[test]
fn losses_are_judged_by_float64_too_and_a_shorter_trajectory_fails() {
    let case = |more: serde_json::Value| -> Trajectory {
        let mut json = serde_json::json!({
            "format": 1, "n_steps": 2, "global_batch": 1, "seq": 4, "lr": 0.1, "betas": [0.9, 0.99], "eps": 1e-8,
            "weight_decay": 0.0, "max_grad_norm": 1.0, "loss": [1.0, 2.0], "grad_norm": [1.0, 1.0],
            "tolerances": {"loss_abs": 0.1, "grad_norm_rel": 0.1},
        });
        let map = json.as_object_mut().unwrap();
        map.extend(more.as_object().unwrap().clone());
        serde_json::from_value(json).unwrap()
    };
    let passes = |loss: &[f64], case: &Trajectory| {
        let candidate = Candidate {
            grad_norm: vec![1.0; loss.len()],
            loss: loss.to_vec(),
            n_tokens: Vec::new(),
        };
        all_pass(&judge_trajectory(&candidate, case))
    };
    let plain = case(serde_json::json!({}));
    assert!(passes(&[1.0, 2.05], &plain));
    assert!(!passes(&[1.0], &plain));
    assert!(!passes(&[1.0, 2.2], &plain));
    assert!(!passes(&[1.0, f64::NAN], &plain));
    // PyTorch is 0.5 below the truth: as far above it is as good, and twice as far.
    let known = case(serde_json::json!({"loss_fp64": [1.0, 2.5], "grad_norm_fp64": [1.0, 1.0]}));
    assert!(passes(&[1.0, 2.5], &known) && passes(&[1.0, 3.4], &known));
    assert!(!passes(&[1.0, 3.6], &known));
}
