//! Rows of tokens on their way to the experts that a router chose, and back: sorted by expert, so that each expert's rows are
//! one matrix.

use std::ops::Range;

use crate::dispatch::{self, InstructionSet, Kernel};
use crate::element::Element;
use crate::lanes;

/// Where every choice of every token goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dispatch {
    /// Where each expert's rows begin, and the end of the last.
    starts: Vec<usize>,
    /// The token of each row.
    pub tokens: Vec<i64>,
    /// The row of each token's choices, `[tokens, top_k]`.
    pub rows: Vec<i64>,
}

impl Dispatch {
    /// Sorts `chosen [tokens, top_k]` by expert; the rows of one expert are in the order of the tokens.
    ///
    /// # Panics
    /// When an expert is beyond `experts`, or `top_k` is 0.
    pub fn new(chosen: &[u32], experts: usize, top_k: usize) -> Self {
        let mut starts = vec![0; experts + 1];
        for &expert in chosen {
            starts[expert as usize + 1] += 1;
        }
        add_up(&mut starts);
        let mut next = starts.clone();
        let mut tokens = vec![0; chosen.len()];
        let mut rows = vec![0; chosen.len()];
        for (choice, &expert) in chosen.iter().enumerate() {
            let row = next[expert as usize];
            next[expert as usize] += 1;
            tokens[row] = (choice / top_k) as i64;
            rows[choice] = row as i64;
        }
        Self {
            starts,
            tokens,
            rows,
        }
    }

    /// The rows of each expert, in the order of the experts; empty for one that nobody chose.
    pub fn experts(&self) -> impl Iterator<Item = Range<usize>> {
        self.starts.windows(2).map(|pair| pair[0]..pair[1])
    }
}

/// Rows that come from several senders, each sender's sorted by expert, and are to be sorted by expert all together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrivals {
    /// Where each expert's rows begin, and the end of the last.
    starts: Vec<usize>,
    /// Which of the rows that came each sorted row is.
    pub sorted: Vec<i64>,
    /// Which of the sorted rows each one that came is.
    pub came: Vec<i64>,
}

impl Arrivals {
    /// Of each sender, in the order in which they come, the rows for each expert. The rows of one expert are in the order of the
    /// senders.
    ///
    /// # Panics
    /// When senders do not count as many experts.
    pub fn new(counts: &[&[usize]]) -> Self {
        let experts = counts.first().map_or(0, |of_sender| of_sender.len());
        let mut starts = vec![0; experts + 1];
        for of_sender in counts {
            assert_eq!(of_sender.len(), experts, "a count for each expert");
            for (start, count) in starts[1..].iter_mut().zip(*of_sender) {
                *start += count;
            }
        }
        add_up(&mut starts);
        let mut next = starts.clone();
        let rows = starts[experts];
        let (mut sorted, mut came) = (vec![0; rows], Vec::with_capacity(rows));
        for of_sender in counts {
            for (next, &count) in next.iter_mut().zip(*of_sender) {
                let rows = *next..*next + count;
                for (row, sorted) in rows.clone().zip(&mut sorted[rows]) {
                    *sorted = came.len() as i64;
                    came.push(row as i64);
                }
                *next += count;
            }
        }
        Self {
            starts,
            sorted,
            came,
        }
    }

    /// The sorted rows of each expert.
    pub fn experts(&self) -> impl Iterator<Item = Range<usize>> {
        self.starts.windows(2).map(|pair| pair[0]..pair[1])
    }
}

/// From what comes between the numbers, of which the first is 0, to their sums so far.
fn add_up(starts: &mut [usize]) {
    for index in 1..starts.len() {
        starts[index] += starts[index - 1];
    }
}

/// Fills `y [tokens, hidden]` with the sum of each token's rows of `x [tokens * top_k, hidden]`, in the order of its choices, and of
/// its row of `plus [tokens, hidden]`, where that is not empty; rounded once.
///
/// `rows` is [`Dispatch::rows`].
///
/// # Panics
/// When a size does not fit, or a row lies outside of `x`.
pub fn combine<T: Element>(x: &[T], rows: &[i64], top_k: usize, plus: &[f32], y: &mut [T]) {
    if y.is_empty() {
        return;
    }
    assert!(top_k > 0 && rows.len().is_multiple_of(top_k), "whole rows");
    let tokens = rows.len() / top_k;
    assert!(y.len().is_multiple_of(tokens), "whole rows");
    let hidden = y.len() / tokens;
    assert_eq!(x.len(), rows.len() * hidden, "a row for each choice");
    assert!(plus.is_empty() || plus.len() == y.len(), "one for each sum");
    let of_tokens = y.chunks_exact_mut(hidden).zip(rows.chunks_exact(top_k));
    dispatch::for_each(of_tokens.enumerate().map(|(token, (y, rows))| {
        let plus = match plus {
            [] => &[],
            plus => &plus[token * hidden..(token + 1) * hidden],
        };
        Sum { x, rows, plus, y }
    }));
}

/// Fills `y` with the rows of `x [rows, features]`, each times its factor.
///
/// # Panics
/// When a size does not fit.
pub fn scale<T: Element>(x: &[T], factors: &[f32], y: &mut [T]) {
    assert_eq!(x.len(), y.len(), "as many elements");
    let Some(features) = features(x.len(), factors.len()) else {
        return;
    };
    let rows = x.chunks_exact(features).zip(y.chunks_exact_mut(features));
    dispatch::for_each(
        rows.zip(factors)
            .map(|((x, y), &factor)| Scale { x, factor, y }),
    );
}

/// Fills `dots [rows]` with the sum of the products of each row of `a` and `b`, both `[rows, features]`.
///
/// # Panics
/// When a size does not fit.
pub fn row_dots<T: Element>(a: &[T], b: &[T], dots: &mut [f32]) {
    assert_eq!(a.len(), b.len(), "as many elements");
    let Some(features) = features(a.len(), dots.len()) else {
        dots.fill(0.0);
        return;
    };
    let rows = a.chunks_exact(features).zip(b.chunks_exact(features));
    dispatch::for_each(rows.zip(dots).map(|((a, b), dot)| Dot { a, b, dot }));
}

/// Elements of a row; `None` where there are none.
fn features(elements: usize, rows: usize) -> Option<usize> {
    if elements == 0 {
        return None;
    }
    assert!(
        rows > 0 && elements.is_multiple_of(rows),
        "{elements} elements are not {rows} rows"
    );
    Some(elements / rows)
}

struct Sum<'a, T> {
    x: &'a [T],
    rows: &'a [i64],
    plus: &'a [f32],
    y: &'a mut [T],
}

impl<T: Element> Kernel for Sum<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        /// Sums that are kept in registers while all rows are added.
        const BLOCK: usize = 64;
        let hidden = self.y.len();
        for start in (0..hidden).step_by(BLOCK) {
            let len = BLOCK.min(hidden - start);
            let mut sums = [0f32; BLOCK];
            if !self.plus.is_empty() {
                sums[..len].copy_from_slice(&self.plus[start..start + len]);
            }
            for &row in self.rows {
                let at = row as usize * hidden + start;
                for (sum, x) in sums.iter_mut().zip(&self.x[at..at + len]) {
                    *sum += x.widen();
                }
            }
            for (y, sum) in self.y[start..start + len].iter_mut().zip(sums) {
                *y = T::round(sum);
            }
        }
    }
}

struct Scale<'a, T> {
    x: &'a [T],
    factor: f32,
    y: &'a mut [T],
}

impl<T: Element> Kernel for Scale<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        for (y, x) in self.y.iter_mut().zip(self.x) {
            *y = T::round(x.widen() * self.factor);
        }
    }
}

struct Dot<'a, T> {
    a: &'a [T],
    b: &'a [T],
    dot: &'a mut f32,
}

impl<T: Element> Kernel for Dot<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        *self.dot = lanes::dot::<I, _, _>(self.a, self.b);
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::testing::{assert_close, normal, numbers, unfilled, wide};

    /// Six tokens, two experts of four each; nobody chooses expert 2.
    const CHOSEN: [u32; 12] = [3, 0, 0, 1, 1, 3, 0, 3, 3, 1, 1, 0];

    #[test]
    fn rows_are_sorted_by_expert_and_every_choice_has_one() {
        let dispatch = Dispatch::new(&CHOSEN, 4, 2);
        let experts: Vec<_> = dispatch.experts().collect();
        assert_eq!(experts, [0..4, 4..8, 8..8, 8..12]);
        assert_eq!(dispatch.tokens, [0, 1, 3, 5, 1, 2, 4, 5, 0, 2, 3, 4]);
        for (choice, (&row, &expert)) in dispatch.rows.iter().zip(&CHOSEN).enumerate() {
            assert_eq!(dispatch.tokens[row as usize], choice as i64 / 2);
            assert!(experts[expert as usize].contains(&(row as usize)));
        }
    }

    #[test]
    fn what_comes_from_several_is_sorted_by_expert_and_finds_its_way_back() {
        // Three senders, three experts: nobody has anything for the second, and the second sender nothing at all.
        let arrivals = Arrivals::new(&[&[2, 0, 1], &[0, 0, 0], &[1, 0, 3]]);
        assert_eq!(arrivals.experts().collect::<Vec<_>>(), [0..3, 3..3, 3..7]);
        assert_eq!(arrivals.sorted, [0, 1, 3, 2, 4, 5, 6]);
        for (row, &came) in arrivals.sorted.iter().enumerate() {
            assert_eq!(arrivals.came[came as usize], row as i64);
        }
        let nothing = Arrivals::new(&[&[0], &[0]]);
        assert_eq!(nothing.experts().count(), 1);
        assert!(nothing.experts().all(|rows| rows == (0..0)));
        assert!(nothing.sorted.is_empty() && nothing.came.is_empty());
    }

    fn sums_scales_and_dots<T: Element>(tolerance: f64) {
        let dispatch = Dispatch::new(&CHOSEN, 4, 2);
        for hidden in [1, 64, 70] {
            let (a, b) = (
                numbers::<T>(12 * hidden, 1, 1.0),
                numbers::<T>(12 * hidden, 2, 1.0),
            );
            let (plus, factors) = (normal(6 * hidden, 3), normal(12, 4));
            let mut y = unfilled::<T>(6 * hidden);
            for plus in [&plus[..], &[]] {
                combine(&a, &dispatch.rows, 2, plus, &mut y);
                let expected: Vec<f64> = (0..6 * hidden)
                    .map(|at| {
                        let (token, i) = (at / hidden, at % hidden);
                        let row = |j: usize| dispatch.rows[2 * token + j] as usize * hidden + i;
                        let plus = plus.get(at).map_or(0.0, |&x| f64::from(x));
                        plus + f64::from(a[row(0)].widen()) + f64::from(a[row(1)].widen())
                    })
                    .collect();
                assert_close("sum", &y, &expected, tolerance);
            }
            let mut scaled = unfilled::<T>(a.len());
            scale(&a, &factors, &mut scaled);
            let rows = wide(&a).into_iter().enumerate();
            let expected: Vec<f64> = rows
                .map(|(at, x)| x * f64::from(factors[at / hidden]))
                .collect();
            assert_close("scaled", &scaled, &expected, tolerance);
            let mut dots = vec![f32::NAN; 12];
            row_dots(&a, &b, &mut dots);
            let products: Vec<f64> = wide(&a).iter().zip(wide(&b)).map(|(a, b)| a * b).collect();
            let expected: Vec<f64> = products
                .chunks(hidden)
                .map(|row| row.iter().sum())
                .collect();
            assert_close("dots", &dots, &expected, 1e-5);
        }
    }

    #[test]
    fn both_kinds_follow_the_formula() {
        sums_scales_and_dots::<f32>(1e-6);
        sums_scales_and_dots::<bf16>(4e-3);
    }

    #[test]
    fn no_tokens_are_no_work() {
        let dispatch = Dispatch::new(&[], 4, 2);
        assert!(dispatch.experts().all(|rows| rows.is_empty()));
        combine::<f32>(&[], &dispatch.rows, 2, &[], &mut []);
        scale::<f32>(&[], &[], &mut []);
        row_dots::<f32>(&[], &[], &mut []);
    }
}
