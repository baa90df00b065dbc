//! Weight decay on matrices alone, on every kind of mesh: what decays is bit for bit what it is when all decays, and the rest
//! what it is when nothing does. That the update itself is PyTorch's, the golden cases show.

use std::collections::BTreeMap;
use std::sync::Mutex;

use tandem_model::Recompute;
use tandem_parallel::{OptimizerState, Precision, ShardingLevel};
use tandem_trainer::{UpdateRule, WeightDecayOn};

use crate::as_ranks;
use crate::step::Case;

/// The master weights that a rank answers for, by rank, tensor and place; and whether the tensor is a matrix.
type Weights = BTreeMap<(usize, String, String), (bool, Vec<f32>)>;

/// What a step leaves.
fn after(case: &Case, rule: &UpdateRule) -> Weights {
    let weights = Mutex::new(Weights::new());
    as_ranks(case.tp * case.dp, |world| {
        let mut engine = case.engine(world);
        case.step_by(&mut engine, rule);
        for unit in &engine.units {
            for piece in unit.pieces(OptimizerState::Param) {
                let params = &unit.layout().params;
                let param = params.iter().find(|it| it.spec.name == piece.tensor);
                let is_matrix = param.unwrap().spec.shape.len() == 2;
                let key = (world.rank(), piece.tensor, format!("{:?}", piece.slice));
                let values = piece.values.to_vec::<f32>();
                weights.lock().unwrap().insert(key, (is_matrix, values));
            }
        }
    });
    weights.into_inner().unwrap()
}

#[test]
fn norms_and_biases_are_free_of_decay_on_every_mesh() {
    use ShardingLevel::{Gradients, Parameters, Replicated};
    for (tp, dp, level, precision) in [
        (1, 1, Replicated, Precision::fp32()),
        (2, 2, Gradients, Precision::bf16()),
        (1, 3, Parameters, Precision::bf16()),
    ] {
        let case = Case {
            model: "qwen2_tied",
            tp,
            dp,
            ep: 1,
            level,
            precision,
            sequence_parallel: false,
            recompute: Recompute::None,
            reshard_after_forward: true,
            micro_batches: 1,
            lora: false,
        };
        let rule = UpdateRule {
            weight_decay: 0.5,
            ..UpdateRule::USUAL
        };
        let all = after(&case, &rule);
        let none = after(
            &case,
            &UpdateRule {
                weight_decay: 0.0,
                ..rule
            },
        );
        let matrices = after(
            &case,
            &UpdateRule {
                weight_decay_on: WeightDecayOn::Matrices,
                ..rule
            },
        );
        let mut seen = [0, 0];
        for (key, (is_matrix, values)) in &matrices {
            let expected = if *is_matrix { &all[key] } else { &none[key] };
            assert_eq!(values, &expected.1, "{key:?} of {tp} x {dp}");
            // Biases begin at 0, which decay leaves as it is.
            seen[usize::from(*is_matrix)] += usize::from(all[key].1 != none[key].1);
        }
        assert!(seen[0] > 0 && seen[1] > 0, "decay was to be seen: {seen:?}");
        assert_eq!(matrices.len(), all.len());
    }
}
