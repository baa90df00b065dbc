//! Which parameters decay, and where they lie in a flat buffer.

use std::ops::Range;

use crate::layout::LocalParam;

/// The parameters on which weight decay acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightDecayOn {
    /// All of them, as `torch.optim.AdamW` has it when it is given a model's parameters.
    #[default]
    All,
    /// Those of two dimensions or more, as many recipes have it: norms and biases stay free.
    Matrices,
}

impl WeightDecayOn {
    /// The range `owned` of a unit's flat buffer, cut where decay begins or ends: each part with whether it decays. They are
    /// in order, and there are as few as can be.
    pub fn segments(
        self,
        params: &[LocalParam],
        owned: &Range<usize>,
    ) -> Vec<(Range<usize>, bool)> {
        if self == Self::All {
            return vec![(owned.clone(), true)];
        }
        let mut segments: Vec<(Range<usize>, bool)> = Vec::new();
        for param in params {
            let span = param.span();
            let start = span.start.max(owned.start);
            let end = span.end.min(owned.end);
            if start >= end {
                continue;
            }
            let decays = param.spec.shape.len() >= 2;
            match segments.last_mut() {
                Some((range, same)) if *same == decays => range.end = end,
                _ => segments.push((start..end, decays)),
            }
        }
        segments
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_mesh::ShardSlice;
    use tandem_model::{Init, ParamSpec};

    fn params(shapes: &[&[usize]]) -> Vec<LocalParam> {
        let mut offset = 0;
        let param = |shape: &&[usize]| {
            let slice = ShardSlice::whole(shape);
            let begin = offset;
            offset += slice.numel();
            LocalParam {
                spec: ParamSpec {
                    name: format!("model.p{begin}.weight"),
                    shape: shape.to_vec(),
                    init: Init::Ones,
                },
                counted: 0..slice.numel(),
                slice,
                offset: begin,
            }
        };
        shapes.iter().map(param).collect()
    }

    #[test]
    fn neighbours_of_one_kind_are_one_segment() {
        // A norm, two matrices, a bias, a norm, a matrix.
        let params = params(&[&[4], &[2, 4], &[3, 4], &[3], &[4], &[4, 2]]);
        let on = |owned| WeightDecayOn::Matrices.segments(&params, &owned);
        assert_eq!(
            on(0..39),
            [
                (0..4, false),
                (4..24, true),
                (24..31, false),
                (31..39, true)
            ]
        );
        assert_eq!(on(6..9), [(6..9, true)]);
        assert_eq!(on(25..33), [(25..31, false), (31..33, true)]);
        assert_eq!(on(5..5), []);
        let all = WeightDecayOn::All.segments(&params, &(3..30));
        assert_eq!(all, [(3..30, true)]);
    }
}
