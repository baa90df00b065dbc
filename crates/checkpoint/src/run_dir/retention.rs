//! Which checkpoints to keep.

use serde_json::{Map, Value};

/// How many checkpoints to keep, and which are better.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retention {
    /// How many; `None` keeps all. The latest is kept besides, if it is not among them.
    pub num_to_keep: Option<usize>,
    /// What makes one better; without it, the later is.
    pub score: Option<Score>,
}

/// A metric by which checkpoints are ranked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Score {
    /// The metric's name; `a/b` is `b` inside of `a`.
    pub attribute: String,
    /// What is better.
    pub order: ScoreOrder,
}

/// Whether much or little is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoreOrder {
    /// The larger, the better.
    Max,
    /// The smaller, the better.
    Min,
}

impl Retention {
    /// How good a checkpoint with these metrics is. One that lacks the metric, or has NaN, is worse than all that have it.
    pub(super) fn goodness(&self, metrics: &Map<String, Value>) -> f64 {
        let Some(score) = &self.score else {
            return f64::NEG_INFINITY;
        };
        match metric(metrics, &score.attribute) {
            Some(value) if !value.is_nan() => match score.order {
                ScoreOrder::Max => value,
                ScoreOrder::Min => -value,
            },
            _ => f64::NEG_INFINITY,
        }
    }
}

fn metric(metrics: &Map<String, Value>, name: &str) -> Option<f64> {
    if let Some(value) = metrics.get(name) {
        return value.as_f64();
    }
    let (outer, inner) = name.split_once('/')?;
    metric(metrics.get(outer)?.as_object()?, inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_metric_is_found_and_a_missing_one_is_worst() {
        let retention = |order| Retention {
            num_to_keep: None,
            score: Some(Score {
                attribute: "eval/loss".into(),
                order,
            }),
        };
        let of = |order, metrics: Value| {
            retention(order).goodness(metrics.as_object().expect("an object"))
        };
        assert_eq!(of(ScoreOrder::Max, json!({"eval": {"loss": 2}})), 2.0);
        assert_eq!(of(ScoreOrder::Min, json!({"eval/loss": 2.5})), -2.5);
        for order in [ScoreOrder::Max, ScoreOrder::Min] {
            assert_eq!(of(order, json!({"loss": 2})), f64::NEG_INFINITY);
            assert_eq!(of(order, json!({"eval": "x"})), f64::NEG_INFINITY);
        }
    }
}
