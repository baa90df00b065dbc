//! What happens to rows of scores between the matrix products, as plain loops.

use std::ops::Range;

use half::bf16;

use crate::dispatch::{InstructionSet, Kernel};
use crate::element::Element;
use crate::exp::exp;
use crate::lanes;
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
            (row, start..start + self.keys, seen)
        })
    }
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
            let scores = &mut self.scores[place.clone()][seen.clone()];
            let probabilities = &mut self.probabilities[place];
            let mut scale = self.window.scale;
            if let Some(cap) = self.window.soft_cap {
                let inverse = scale / cap;
                for score in scores.iter_mut() {
                    *score = cap * tanh::<I>(*score * inverse);
                }
                scale = 1.0;
            }
            let shift = lanes::max(scores) * scale;
            for score in scores.iter_mut() {
                *score = exp::<I>(I::mul_add(*score, scale, -shift));
            }
            let sum = lanes::sum(scores, |p| p);
            self.inverse[row] = 1.0 / sum;
            self.logsumexp[row] = shift + sum.ln();
            probabilities[..seen.start].fill(bf16::ZERO);
            probabilities[seen.end..].fill(bf16::ZERO);
            for (p, score) in probabilities[seen].iter_mut().zip(scores) {
                *p = bf16::round(*score);
            }
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
            let filled = place.start..place.start + self.filled;
            let written = seen.start + self.before..seen.end + self.before;
            let (logsumexp, delta) = (self.logsumexp[row], self.delta[row]);
            for out in [&mut *self.probabilities, &mut *self.d_scores] {
                let out = &mut out[filled.clone()];
                out[..written.start].fill(bf16::ZERO);
                out[written.end..].fill(bf16::ZERO);
            }
            let inputs = self.scores[place.clone()][seen.clone()].iter();
            let inputs = inputs.zip(&self.d_probabilities[place][seen]);
            let p = self.probabilities[filled.clone()][written.clone()].iter_mut();
            let outputs = p.zip(&mut self.d_scores[filled][written]);
            if let Some(cap) = self.window.soft_cap {
                let inverse = scale / cap;
                for ((score, d_p), (p, d_score)) in inputs.zip(outputs) {
                    let bent = tanh::<I>(*score * inverse);
                    let exact = exp::<I>(I::mul_add(bent, cap, -logsumexp));
                    let slope = (1.0 - bent * bent) * scale;
                    *p = bf16::round(exact);
                    *d_score = bf16::round(exact * (d_p - delta) * slope);
                }
                continue;
            }
            for ((score, d_p), (p, d_score)) in inputs.zip(outputs) {
                let exact = exp::<I>(I::mul_add(*score, scale, -logsumexp));
                *p = bf16::round(exact);
                *d_score = bf16::round(exact * (d_p - delta) * scale);
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
            *out = lanes::dot(a, b);
        }
    }
}

/// `factor * sums`, rounded.
pub(super) struct StoreRow<'a> {
    pub(super) out: &'a mut [bf16],
    pub(super) sums: &'a [f32],
    pub(super) factor: f32,
}

impl Kernel for StoreRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        for (out, sum) in self.out.iter_mut().zip(self.sums) {
            *out = bf16::round(sum * self.factor);
        }
    }
}
