//! Cross entropy over one shard of a vocabulary: logits are read once for the stats and turned into their gradient in place,
//! in fp32 without fp32 temporaries.

use std::ops::Range;

use crate::dispatch::{self, InstructionSet, Kernel};
use crate::element::Element;
use crate::exp::{exp, exp_of_one};
use crate::lanes::{self, Lanes, by_lanes};
use crate::tanh::tanh;
use crate::vocab::{entries, local};

/// The label of a position that has no target.
pub const IGNORE: i64 = -100;

/// Logits that are looked at twice while they are in the first-level cache: for the largest, then for the sum.
const BLOCK: usize = 2048;

/// What becomes of a product of the head before it is a logit: `x` as it is, `scale * x`, or `cap * tanh(scale * x / cap)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bend {
    /// Multiplies; not 0.
    pub scale: f32,
    /// No logit is larger; more than 0.
    pub soft_cap: Option<f32>,
}

impl Bend {
    /// Logits as they are.
    pub const NONE: Self = Self {
        scale: 1.0,
        soft_cap: None,
    };
}

/// Bends `logits` in place, all of them by themselves; [`local_stats`] does so while it reads them.
pub fn bend<T: Element>(logits: &mut [T], bend: Bend) {
    if bend != Bend::NONE {
        dispatch::for_each(
            logits
                .chunks_mut(BLOCK)
                .map(|block| Bending { block, bend }),
        );
    }
}

/// What the gradient is of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    /// Multiplies the cross entropy.
    pub scale: f32,
    /// Multiplies the square of a row's `logsumexp`, which is added to its cross entropy.
    pub z_loss: f32,
}

/// Bends the logits in place, and fills `stats [3, rows]` with the largest logit of each row, the sum of `exp(logit - largest)`, and the target's logit
/// where the target lies in this shard (0 elsewhere).
///
/// `logits` is `[rows, entries of the shard]`, `targets` is `[rows]` in the whole vocabulary.
///
/// # Panics
/// When the shard is empty or a size does not fit.
pub fn local_stats<T: Element>(
    logits: &mut [T],
    targets: &[i64],
    vocab: &Range<i64>,
    bend: Bend,
    stats: &mut [f32],
) {
    let columns = checked_columns(logits, targets, vocab);
    assert_eq!(stats.len(), 3 * targets.len(), "three numbers a row");
    let rows = logits.chunks_exact_mut(columns).zip(targets);
    let by_row = dispatch::map(rows.map(|(logits, &target)| RowStats {
        logits,
        target: local(target, vocab),
        bend,
    }));
    // Not `chunks`, whose length must not be 0, as there may be no rows.
    for part in 0..3 {
        let values = &mut stats[part * by_row.len()..][..by_row.len()];
        for (value, row) in values.iter_mut().zip(&by_row) {
            *value = row[part];
        }
    }
}

/// Turns `logits` into the gradient of `scale * sum(loss + z_loss * logsumexp^2)`, in place, with respect to what they were
/// before they were bent: `scale * (softmax * (1 + 2 z_loss logsumexp) - one_hot)` times the slope of the bend, zero in rows
/// whose target is [`IGNORE`].
///
/// `logits` are as [`local_stats`] has left them, `targets` as there; `logsumexp [rows]` is `log(sum(exp(logits)))` over the whole vocabulary.
///
/// # Panics
/// When the shard is empty or a size does not fit.
pub fn logits_to_gradient<T: Element>(
    logits: &mut [T],
    targets: &[i64],
    vocab: &Range<i64>,
    logsumexp: &[f32],
    bend: Bend,
    objective: Objective,
) {
    let columns = checked_columns(logits, targets, vocab);
    assert_eq!(logsumexp.len(), targets.len(), "one number a row");
    let rows = logits.chunks_exact_mut(columns).zip(targets).zip(logsumexp);
    dispatch::for_each(rows.map(|((logits, &target), &logsumexp)| RowGradient {
        logits,
        target: local(target, vocab),
        ignored: target == IGNORE,
        logsumexp,
        bend,
        objective,
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

struct Bending<'a, T> {
    block: &'a mut [T],
    bend: Bend,
}

impl<T: Element> Kernel for Bending<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        bend_block::<I, T>(self.block, self.bend);
    }
}

#[inline(always)]
fn bend_block<I: InstructionSet, T: Element>(block: &mut [T], bend: Bend) {
    match bend.soft_cap {
        Some(cap) => {
            let inverse = bend.scale / cap;
            by_lanes!(block.len(), [], [block] => {
                (cap * tanh(Lanes::<I>::load(block) * inverse)).store(block);
            });
        }
        None if bend.scale != 1.0 => {
            by_lanes!(block.len(), [], [block] => {
                (Lanes::<I>::load(block) * bend.scale).store(block);
            });
        }
        None => {}
    }
}

/// The three numbers of one row.
struct RowStats<'a, T> {
    logits: &'a mut [T],
    target: Option<usize>,
    bend: Bend,
}

impl<T: Element> Kernel for RowStats<'_, T> {
    type Output = [f32; 3];

    #[inline(always)]
    fn run<I: InstructionSet>(self) -> [f32; 3] {
        let mut largest = f32::NEG_INFINITY;
        let mut sum = 0f64;
        for block in self.logits.chunks_mut(BLOCK) {
            bend_block::<I, T>(block, self.bend);
            let block_largest = lanes::max::<I, _>(&*block);
            if block_largest > largest {
                sum *= f64::from(exp_of_one::<I>(largest - block_largest));
                largest = block_largest;
            }
            // Where all so far is -inf, any finite shift gives the zeros that `-inf - -inf` would not.
            let shift = if largest == f32::NEG_INFINITY {
                0.0
            } else {
                largest
            };
            let mut sums = Lanes::<I>::from(0.0);
            by_lanes!(block.len(), [block], [] => {
                // Of what is not there, the exponential is 0.
                let logits = Lanes::load_padded(block, f32::NEG_INFINITY);
                sums += exp(logits - shift);
            });
            sum += f64::from(sums.total());
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
    bend: Bend,
    objective: Objective,
}

impl<T: Element> Kernel for RowGradient<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        let Self {
            logits,
            logsumexp,
            bend,
            objective,
            ..
        } = self;
        if self.ignored {
            logits.fill(T::round(0.0));
            return;
        }
        let scale = objective.scale * bend.scale;
        let all = scale * (1.0 + 2.0 * objective.z_loss * logsumexp);
        let inverse = bend.soft_cap.map(|cap| 1.0 / cap);
        let gradient = Gradient {
            logsumexp,
            all,
            inverse,
        };
        let at_target = self.target.map(|target| {
            let bent = Lanes::<I>::from(logits[target].widen());
            (target, T::round(gradient.of(bent, scale).get(0)))
        });
        by_lanes!(logits.len(), [], [logits] => {
            gradient.of(Lanes::<I>::load(logits), 0.0).store(logits);
        });
        if let Some((target, value)) = at_target {
            logits[target] = value;
        }
    }
}

/// What the gradients of a row's logits have in common.
#[derive(Clone, Copy)]
struct Gradient {
    logsumexp: f32,
    /// Multiplies the softmax.
    all: f32,
    /// Of the soft cap.
    inverse: Option<f32>,
}

impl Gradient {
    /// Of `bent` logits; `one_hot` is what the softmax, multiplied, is less by.
    #[inline(always)]
    fn of<I: InstructionSet>(self, bent: Lanes<I>, one_hot: f32) -> Lanes<I> {
        let gradient = exp(bent - self.logsumexp) * self.all - one_hot;
        match self.inverse {
            Some(inverse) => {
                let tanh = bent * inverse;
                gradient * (1.0 - tanh * tanh)
            }
            None => gradient,
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::testing::{assert_close, bits, normal, numbers, unfilled, wide};

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
            local_stats(&mut logits, &targets, &vocab, Bend::NONE, &mut stats);
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
            let objective = Objective {
                scale: 0.3,
                z_loss: 0.0,
            };
            logits_to_gradient(
                &mut logits,
                &targets,
                &vocab,
                &logsumexp,
                Bend::NONE,
                objective,
            );
            let scale = f64::from(objective.scale);
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

    /// With caps, scales and the square of the logarithm of the sum: against central differences of the loss in fp64.
    #[test]
    fn bent_logits_and_z_loss_have_the_gradient_of_their_loss() {
        let (columns, vocab) = (9usize, 3..12i64);
        let targets = [3i64, 11, IGNORE, 7];
        let raw = numbers::<f32>(targets.len() * columns, 1, 3.0);
        for (scale, soft_cap) in [(1.0, None), (0.4, None), (1.0, Some(2.5)), (1.7, Some(4.0))] {
            for z_loss in [0.0, 0.05] {
                let objective = Objective { scale: 0.7, z_loss };
                let bent = |x: f64| match soft_cap {
                    Some(cap) => f64::from(cap) * (x * f64::from(scale) / f64::from(cap)).tanh(),
                    None => x * f64::from(scale),
                };
                let loss = |raw: &[f64]| -> f64 {
                    let rows = raw.chunks(columns).zip(&targets);
                    let of_row = |(row, target): (&[f64], &i64)| {
                        let sum: f64 = row.iter().map(|&x| bent(x).exp()).sum();
                        let Some(target) = local(*target, &vocab) else {
                            return 0.0;
                        };
                        let entropy = sum.ln() - bent(row[target]);
                        0.7 * (entropy + f64::from(z_loss) * sum.ln().powi(2))
                    };
                    rows.map(of_row).sum()
                };
                let mut expected = vec![0.0; raw.len()];
                for (i, expected) in expected.iter_mut().enumerate() {
                    let at = |step: f64| {
                        let mut moved = wide(&raw);
                        moved[i] += step;
                        loss(&moved)
                    };
                    *expected = (at(1e-5) - at(-1e-5)) / 2e-5;
                }
                let bend = Bend { scale, soft_cap };
                let (mut logits, mut stats) = (raw.clone(), unfilled::<f32>(3 * targets.len()));
                local_stats(&mut logits, &targets, &vocab, bend, &mut stats);
                let logsumexp: Vec<f32> = (0..targets.len())
                    .map(|row| stats[row] + stats[targets.len() + row].ln())
                    .collect();
                let mut alone = raw.clone();
                super::bend(&mut alone, bend);
                assert_eq!(bits(&alone), bits(&logits));
                logits_to_gradient(&mut logits, &targets, &vocab, &logsumexp, bend, objective);
                let label = format!("scale {scale}, cap {soft_cap:?}, z {z_loss}");
                assert_close(&label, &logits, &expected, 2e-6);
            }
        }
    }

    #[test]
    fn rows_of_minus_infinity_and_nan_are_told_apart() {
        let mut logits = normal(3 * 100, 1);
        logits[..100].fill(f32::NEG_INFINITY);
        logits[170] = f32::NAN;
        logits[299] = f32::INFINITY;
        let mut stats = unfilled::<f32>(9);
        local_stats(&mut logits, &[0, 1, 2], &(0..100), Bend::NONE, &mut stats);
        assert_eq!((stats[0], stats[3]), (f32::NEG_INFINITY, 0.0));
        // The largest passes NaN over, the sum does not.
        assert!(stats[1].is_finite() && stats[4].is_nan(), "{stats:?}");
        assert_eq!(stats[2], f32::INFINITY);
        assert!(stats[5].is_nan(), "infinity less itself");
    }

    #[test]
    fn no_rows_are_no_stats() {
        local_stats::<f32>(&mut [], &[], &(0..5), Bend::NONE, &mut []);
        let objective = Objective {
            scale: 1.0,
            z_loss: 0.0,
        };
        logits_to_gradient::<f32>(&mut [], &[], &(0..5), &[], Bend::NONE, objective);
    }

    #[test]
    #[should_panic(expected = "2 rows of 5 logits")]
    fn logits_of_another_shard_are_noticed() {
        let stats = &mut [0.0; 6];
        local_stats(&mut [0f32; 8], &[0, 1], &(0..5), Bend::NONE, stats);
    }
}
