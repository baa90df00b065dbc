//! Cross entropy over one shard of a vocabulary: logits are read once for the stats and turned into their gradient in place,
//! in fp32 without fp32 temporaries.

use std::ops::Range;

use crate::dispatch::{self, InstructionSet, Kernel};
use crate::element::Element;
use crate::exp::exp;
use crate::lanes;
use crate::vocab::{entries, local};

/// The label of a position that has no target.
pub const IGNORE: i64 = -100;

/// Logits that are looked at twice while they are in the first-level cache: for the largest, then for the sum.
const BLOCK: usize = 2048;

/// Fills `stats [3, rows]` with the largest logit of each row, the sum of `exp(logit - largest)`, and the target's logit
/// where the target lies in this shard (0 elsewhere).
///
/// `logits` is `[rows, entries of the shard]`, `targets` is `[rows]` in the whole vocabulary.
///
/// # Panics
/// When the shard is empty or a size does not fit.
pub fn local_stats<T: Element>(
    logits: &[T],
    targets: &[i64],
    vocab: &Range<i64>,
    stats: &mut [f32],
) {
    let columns = checked_columns(logits, targets, vocab);
    assert_eq!(stats.len(), 3 * targets.len(), "three numbers a row");
    let rows = logits.chunks_exact(columns).zip(targets);
    let by_row = dispatch::map(rows.map(|(logits, &target)| RowStats {
        logits,
        target: local(target, vocab),
    }));
    // Not `chunks`, whose length must not be 0, as there may be no rows.
    for part in 0..3 {
        let values = &mut stats[part * by_row.len()..][..by_row.len()];
        for (value, row) in values.iter_mut().zip(&by_row) {
            *value = row[part];
        }
    }
}

/// Turns `logits` into the gradient of `scale * sum(loss)`, in place: `scale * (softmax - one_hot)`, zero in rows whose target
/// is [`IGNORE`].
///
/// `logits` and `targets` are as in [`local_stats`]; `logsumexp [rows]` is `log(sum(exp(logits)))` over the whole vocabulary.
///
/// # Panics
/// When the shard is empty or a size does not fit.
pub fn logits_to_gradient<T: Element>(
    logits: &mut [T],
    targets: &[i64],
    vocab: &Range<i64>,
    logsumexp: &[f32],
    scale: f32,
) {
    let columns = checked_columns(logits, targets, vocab);
    assert_eq!(logsumexp.len(), targets.len(), "one number a row");
    let rows = logits.chunks_exact_mut(columns).zip(targets).zip(logsumexp);
    dispatch::for_each(rows.map(|((logits, &target), &logsumexp)| RowGradient {
        logits,
        target: local(target, vocab),
        ignored: target == IGNORE,
        logsumexp,
        scale,
    }));
}

/// The columns of the logits.
fn checked_columns<T>(logits: &[T], targets: &[i64], vocab: &Range<i64>) -> usize {
    let columns = entries(vocab);
    assert_eq!(
        Some(logits.len()),
        targets.len().checked_mul(columns),
        "{} rows of {columns} logits",
        targets.len()
    );
    columns
}

/// The three numbers of one row.
struct RowStats<'a, T> {
    logits: &'a [T],
    target: Option<usize>,
}

impl<T: Element> Kernel for RowStats<'_, T> {
    type Output = [f32; 3];

    #[inline(always)]
    fn run<I: InstructionSet>(self) -> [f32; 3] {
        let mut largest = f32::NEG_INFINITY;
        let mut sum = 0f64;
        for block in self.logits.chunks(BLOCK) {
            let block_largest = lanes::max(block);
            if block_largest > largest {
                sum *= f64::from(exp::<I>(largest - block_largest));
                largest = block_largest;
            }
            // Where all so far is -inf, any finite shift gives the zeros that `-inf - -inf` would not.
            let shift = if largest == f32::NEG_INFINITY {
                0.0
            } else {
                largest
            };
            sum += f64::from(lanes::sum(block, |x| exp::<I>(x - shift)));
        }
        let target = self
            .target
            .map_or(0.0, |target| self.logits[target].widen());
        [largest, sum as f32, target]
    }
}

/// One row's logits into their gradient.
struct RowGradient<'a, T> {
    logits: &'a mut [T],
    target: Option<usize>,
    ignored: bool,
    logsumexp: f32,
    scale: f32,
}

impl<T: Element> Kernel for RowGradient<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        let Self {
            logits,
            logsumexp,
            scale,
            ..
        } = self;
        if self.ignored {
            logits.fill(T::round(0.0));
            return;
        }
        let at_target = self.target.map(|target| {
            let probability = exp::<I>(logits[target].widen() - logsumexp);
            (target, T::round(probability * scale - scale))
        });
        for x in logits.iter_mut() {
            *x = T::round(exp::<I>(x.widen() - logsumexp) * scale);
        }
        if let Some((target, value)) = at_target {
            logits[target] = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::testing::{assert_close, normal, numbers, unfilled, wide};

    /// Lengths around the blocks, with targets in, outside and at the edges of the shard, a row that begins with `-inf`, and
    /// an ignored row.
    fn follows_the_formula<T: Element>(kind: &str, tolerance: f64) {
        for columns in [1usize, 17, BLOCK, 5000] {
            let start = 1000;
            let vocab = start..start + columns as i64;
            let targets = [
                start,
                vocab.end - 1,
                IGNORE,
                start - 1,
                vocab.end,
                vocab.end - 1,
            ];
            let mut logits = numbers::<T>(targets.len() * columns, 1, 6.0);
            logits[columns..][..columns * 2 / 3].fill(T::round(f32::NEG_INFINITY));
            let exact = wide(&logits);
            let label = format!("{kind}, {columns} columns");

            let mut stats = unfilled::<f32>(3 * targets.len());
            local_stats(&logits, &targets, &vocab, &mut stats);
            let mut expected = vec![0.0; stats.len()];
            for (row, logits) in exact.chunks_exact(columns).enumerate() {
                let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                expected[row] = largest;
                let sum = logits.iter().map(|x| (x - largest).exp()).sum();
                expected[targets.len() + row] = sum;
                if let Some(target) = local(targets[row], &vocab) {
                    expected[2 * targets.len() + row] = logits[target];
                }
            }
            assert_close(&format!("stats, {label}"), &stats, &expected, 2e-6);

            // The rest of the vocabulary, on other shards, has half of the sum.
            let logsumexp: Vec<f32> = (0..targets.len())
                .map(|row| (expected[row] + (2.0 * expected[targets.len() + row]).ln()) as f32)
                .collect();
            let scale = 0.3;
            logits_to_gradient(&mut logits, &targets, &vocab, &logsumexp, scale);
            let scale = f64::from(scale);
            let mut expected = vec![0.0; logits.len()];
            for (row, expected) in expected.chunks_exact_mut(columns).enumerate() {
                if targets[row] == IGNORE {
                    continue;
                }
                let exact = &exact[row * columns..];
                for (expected, x) in expected.iter_mut().zip(exact) {
                    *expected = scale * (x - f64::from(logsumexp[row])).exp();
                }
                if let Some(target) = local(targets[row], &vocab) {
                    expected[target] -= scale;
                }
            }
            assert_close(&format!("d_logits, {label}"), &logits, &expected, tolerance);
        }
    }

    #[test]
    fn both_kinds_follow_the_formula() {
        follows_the_formula::<f32>("fp32", 2e-6);
        follows_the_formula::<bf16>("bf16", 4e-3);
    }

    #[test]
    fn rows_of_minus_infinity_and_nan_are_told_apart() {
        let mut logits = normal(3 * 100, 1);
        logits[..100].fill(f32::NEG_INFINITY);
        logits[170] = f32::NAN;
        logits[299] = f32::INFINITY;
        let mut stats = unfilled::<f32>(9);
        local_stats(&logits, &[0, 1, 2], &(0..100), &mut stats);
        assert_eq!((stats[0], stats[3]), (f32::NEG_INFINITY, 0.0));
        // The largest passes NaN over, the sum does not.
        assert!(stats[1].is_finite() && stats[4].is_nan(), "{stats:?}");
        assert_eq!(stats[2], f32::INFINITY);
        assert!(stats[5].is_nan(), "infinity less itself");
    }

    #[test]
    fn no_rows_are_no_stats() {
        local_stats::<f32>(&[], &[], &(0..5), &mut []);
        logits_to_gradient::<f32>(&mut [], &[], &(0..5), &[], 1.0);
    }

    #[test]
    #[should_panic(expected = "2 rows of 5 logits")]
    fn logits_of_another_shard_are_noticed() {
        local_stats(&[0f32; 8], &[0, 1], &(0..5), &mut [0.0; 6]);
    }
}
