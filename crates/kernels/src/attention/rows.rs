//! What happens to rows of scores between the matrix products, as plain loops.

use std::ops::Range;

use half::bf16;

use crate::dispatch::{InstructionSet, Kernel};
use crate::exp::exp;
use crate::lanes::{self, LANES, Lanes, by_lanes};
use crate::tanh::tanh;

/// Which keys a query sees: itself and what is before it in its document, as far as the window reaches.
#[derive(Clone, Copy)]
pub(super) struct Mask<'a> {
    pub(super) window: usize,
    /// Where the document of each position of the row begins.
    pub(super) documents: Option<&'a [u32]>,
}

impl Mask<'_> {
    /// The keys that the query at this position sees. A later query sees none before the first of them.
    pub(super) fn keys(self, query: usize) -> Range<usize> {
        let first = (query + 1).saturating_sub(self.window);
        let start = self.documents.map_or(0, |starts| starts[query] as usize);
        first.max(start)..query + 1
    }

    /// Of these queries, those that may see some of the `keys`, but for what the window hides.
    pub(super) fn queries(self, queries: &Range<usize>, keys: &Range<usize>) -> Range<usize> {
        let start = queries.start.max(keys.start);
        let end = match self.documents {
            Some(starts) => {
                let starts = &starts[start..queries.end];
                start + starts.partition_point(|&first| (first as usize) < keys.end)
            }
            None => queries.end,
        };
        start..end
    }

    /// As [`Self::keys`], counted from the key at `first`.
    fn keys_from(self, query: usize, first: usize) -> Range<usize> {
        let keys = self.keys(query);
        keys.start.max(first) - first..keys.end - first
    }
}

/// Scores of successive queries with successive keys, one query after the other, `width` elements apart.
#[derive(Clone, Copy)]
pub(super) struct Window<'a> {
    pub(super) mask: Mask<'a>,
    pub(super) first_query: usize,
    pub(super) queries: usize,
    pub(super) first_key: usize,
    pub(super) keys: usize,
    pub(super) width: usize,
    /// Multiplies the scores.
    pub(super) scale: f32,
    /// Bends them afterwards.
    pub(super) soft_cap: Option<f32>,
}

impl<'a> Window<'a> {
    /// For every query: its number in the window, where its row is, and what of it the query sees.
    fn rows(self) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> + use<'a> {
        (0..self.queries).map(move |row| {
            let start = row * self.width;
            let seen = self.mask.keys_from(self.first_query + row, self.first_key);
            (row, start..start + self.width, seen)
        })
    }
}

/// What is computed of a row: whole groups of [`LANES`] around what the query sees.
fn groups(seen: &Range<usize>) -> Range<usize> {
    seen.start / LANES * LANES..seen.end.next_multiple_of(LANES)
}

/// Fills what a row has before and behind `kept`.
#[inline(always)]
fn fill_around<T: Copy>(row: &mut [T], kept: &Range<usize>, value: T) {
    row[..kept.start].fill(value);
    row[kept.end..].fill(value);
}

/// Turns products of queries and keys into probabilities that are still to be divided by their sum. What a query does not see
/// has probability 0.
pub(super) struct Softmax<'a> {
    pub(super) window: Window<'a>,
    /// Overwritten.
    pub(super) scores: &'a mut [f32],
    pub(super) probabilities: &'a mut [bf16],
    /// The inverse of every query's sum.
    pub(super) inverse: &'a mut [f32],
    pub(super) logsumexp: &'a mut [f32],
}

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        for (row, place, seen) in self.window.rows() {
            let groups = groups(&seen);
            let scores = &mut self.scores[place.clone()][groups.clone()];
            let mut scale = self.window.scale;
            if let Some(cap) = self.window.soft_cap {
                let inverse = scale / cap;
                for scores in scores.chunks_exact_mut(LANES) {
                    (cap * tanh(Lanes::<I>::load(scores) * inverse)).store(scores);
                }
                scale = 1.0;
            }
            // The exponential of which is 0.
            let inside = seen.start - groups.start..seen.end - groups.start;
            fill_around(scores, &inside, f32::NEG_INFINITY);
            let shift = lanes::max::<I, _>(scores) * scale;
            let probabilities = &mut self.probabilities[place][..self.window.keys.max(groups.end)];
            fill_around(probabilities, &groups, bf16::ZERO);
            let mut sums = Lanes::from(0.0);
            let probabilities = probabilities[groups].chunks_exact_mut(LANES);
            for (p, scores) in probabilities.zip(scores.chunks_exact(LANES)) {
                let exact = exp(Lanes::<I>::load(scores).mul_add(scale, -shift));
                sums += exact;
                exact.store(p);
            }
            let sum = sums.total();
            self.inverse[row] = 1.0 / sum;
            self.logsumexp[row] = shift + sum.ln();
        }
    }
}

/// Turns products of queries and keys into probabilities, and those of output gradients and values into gradients of the
/// products of queries and keys; both rounded, and 0 where a query does not see a key.
pub(super) struct SoftmaxGradient<'a> {
    pub(super) window: Window<'a>,
    pub(super) scores: &'a [f32],
    pub(super) d_probabilities: &'a [f32],
    /// By query.
    pub(super) logsumexp: &'a [f32],
    /// By query: what its output and the output's gradient have in common.
    pub(super) delta: &'a [f32],
    pub(super) probabilities: &'a mut [bf16],
    pub(super) d_scores: &'a mut [bf16],
    /// Elements of a row of the two results that are written.
    pub(super) filled: usize,
    /// How many of them are before the window's first key.
    pub(super) before: usize,
}

impl Kernel for SoftmaxGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        let scale = self.window.scale;
        for (row, place, seen) in self.window.rows() {
            let (logsumexp, delta) = (self.logsumexp[row], self.delta[row]);
            let groups = groups(&seen);
            let written = groups.start + self.before..groups.end + self.before;
            let scores = self.scores[place.clone()][groups.clone()].chunks_exact(LANES);
            let inputs =
                scores.zip(self.d_probabilities[place.clone()][groups].chunks_exact(LANES));
            let p = self.probabilities[place.clone()][written.clone()].chunks_exact_mut(LANES);
            let outputs = p.zip(self.d_scores[place.clone()][written].chunks_exact_mut(LANES));
            for ((scores, d_p), (p, d_score)) in inputs.zip(outputs) {
                let (scores, d_p) = (Lanes::<I>::load(scores), Lanes::load(d_p));
                match self.window.soft_cap {
                    Some(cap) => {
                        let bent = tanh(scores * (scale / cap));
                        let exact = exp(bent.mul_add(cap, -logsumexp));
                        let slope = (1.0 - bent * bent) * scale;
                        exact.store(p);
                        (exact * (d_p - delta) * slope).store(d_score);
                    }
                    None => {
                        let exact = exp(scores.mul_add(scale, -logsumexp));
                        exact.store(p);
                        (exact * (d_p - delta) * scale).store(d_score);
                    }
                }
            }
            // Over what was computed of keys that the query does not see, too.
            let kept = seen.start + self.before..seen.end + self.before;
            for out in [&mut *self.probabilities, &mut *self.d_scores] {
                fill_around(&mut out[place.clone()][..self.filled], &kept, bf16::ZERO);
            }
        }
    }
}

/// The sums of the products of two lists of rows.
pub(super) struct RowDots<'a> {
    pub(super) pairs: &'a [(&'a [bf16], &'a [bf16])],
    pub(super) out: &'a mut [f32],
}

impl Kernel for RowDots<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        for (out, (a, b)) in self.out.iter_mut().zip(self.pairs) {
            *out = lanes::dot::<I, _, _>(a, b);
        }
    }
}

/// Of rows (where it goes, sums, factor): `factor * sums`, rounded.
pub(super) struct StoreRows<R>(pub(super) R);

impl<'a, R: Iterator<Item = (&'a mut [bf16], &'a [f32], f32)>> Kernel for StoreRows<R> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        for (out, sums, factor) in self.0 {
            by_lanes!(out.len(), [sums], [out] => {
                (Lanes::<I>::load(sums) * factor).store(out);
            });
        }
    }
}
