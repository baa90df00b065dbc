//! Rotary position embedding (Su et al., arXiv 2104.09864) in Hugging Face's half-split layout, token by token, in place.

use crate::dispatch::{self, InstructionSet, Kernel};
use crate::element::Element;

/// All heads of one token after another, in a buffer where tokens may lie apart, as q, k and v do in their common one.
#[derive(Debug)]
pub struct TokensMut<'a, T> {
    data: &'a mut [T],
    width: usize,
    stride: usize,
}

impl<'a, T> TokensMut<'a, T> {
    /// `tokens` tokens of `width` elements, of which the first begins with `data` and each other one `stride` elements after
    /// the one before.
    ///
    /// # Panics
    /// When `data` is too short, tokens are empty, or they overlap.
    pub fn new(data: &'a mut [T], tokens: usize, width: usize, stride: usize) -> Self {
        assert!(
            0 < width && width <= stride,
            "tokens of {width} elements are {stride} apart"
        );
        let span = match tokens.checked_sub(1) {
            Some(others) => others
                .checked_mul(stride)
                .and_then(|start| start.checked_add(width)),
            None => Some(0),
        };
        let fits = span.filter(|&span| span <= data.len());
        let Some(span) = fits else {
            panic!(
                "{tokens} tokens, {stride} apart, are not in {} elements",
                data.len()
            );
        };
        Self {
            data: &mut data[..span],
            width,
            stride,
        }
    }

    fn iter(self) -> impl Iterator<Item = &'a mut [T]> {
        let Self { width, stride, .. } = self;
        let tokens = self.data.chunks_mut(stride);
        tokens.map(move |token| &mut token[..width])
    }
}

/// The cosines and sines of the angles, `[positions, half]` each.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    half: usize,
}

impl<'a> Table<'a> {
    /// Of `half` angles a position.
    ///
    /// # Panics
    /// When there are no positions, or a size does not fit.
    pub fn new(cos: &'a [f32], sin: &'a [f32], half: usize) -> Self {
        let fits = half > 0 && !cos.is_empty() && cos.len().is_multiple_of(half);
        assert!(
            fits && cos.len() == sin.len(),
            "{} cosines and {} sines of {half} angles a position",
            cos.len(),
            sin.len()
        );
        Self { cos, sin, half }
    }
}

/// Rotates the heads of all tokens in place: `(a, b) -> (a cos - b sin, b cos + a sin)`, where `a` are the first `half`
/// elements of a head and `b` as many after them. What follows in the head stays.
///
/// A token is `[heads, head_dim]`. Tokens are at positions 0, 1, .., and from 0 again when the table ends: a sequence is as
/// long as the table. `direction` is 1 forward, and -1 for the gradient, which is the transposed rotation.
///
/// # Panics
/// When a token is not whole heads, or the table has more angles than half a head.
pub fn rotate<T: Element>(
    tokens: TokensMut<'_, T>,
    head_dim: usize,
    table: Table<'_>,
    direction: f32,
) {
    let Table { cos, sin, half } = table;
    assert!(
        2 * half <= head_dim && tokens.width.is_multiple_of(head_dim),
        "heads of {head_dim} in tokens of {} elements, rotated by {half} angles",
        tokens.width
    );
    let table = cos.chunks_exact(half).zip(sin.chunks_exact(half)).cycle();
    dispatch::for_each(
        tokens
            .iter()
            .zip(table)
            .map(|(heads, (cos, sin))| Rotation {
                heads,
                head_dim,
                cos,
                sin,
                direction,
            }),
    );
}

/// One token's heads.
struct Rotation<'a, T> {
    heads: &'a mut [T],
    head_dim: usize,
    cos: &'a [f32],
    sin: &'a [f32],
    direction: f32,
}

impl<T: Element> Kernel for Rotation<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        let half = self.cos.len();
        for head in self.heads.chunks_exact_mut(self.head_dim) {
            let (first, rest) = head.split_at_mut(half);
            let pairs = first.iter_mut().zip(&mut rest[..half]);
            for ((a, b), (cos, sin)) in pairs.zip(self.cos.iter().zip(self.sin)) {
                let (x, y, sin) = (a.widen(), b.widen(), sin * self.direction);
                *a = T::round(x * cos - y * sin);
                *b = T::round(y * cos + x * sin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::testing::{assert_close, normal, numbers, wide};

    /// Whole heads and heads that are rotated in part, two sequences, in a buffer with other elements around them, which stay.
    fn follows_the_formula<T: Element>(kind: &str, tolerance: f64) {
        for (head_dim, half) in [(64, 32), (10, 5), (16, 4)] {
            let (seq, tokens, heads) = (5, 10, 3);
            let (width, stride) = (heads * head_dim, 5 * head_dim);
            let before = numbers::<T>(tokens * stride, 1, 1.0);
            let angles = normal(seq * half, 2);
            let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
            let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
            for direction in [1.0f32, -1.0] {
                let mut data = before.clone();
                let view = TokensMut::new(&mut data[head_dim..], tokens, width, stride);
                rotate(view, head_dim, Table::new(&cos, &sin, half), direction);

                let mut expected = wide(&before);
                for token in 0..tokens {
                    for head in 0..heads {
                        let head = token * stride + (1 + head) * head_dim;
                        for i in 0..half {
                            let at = token % seq * half + i;
                            let cos = f64::from(cos[at]);
                            let sin = f64::from(sin[at] * direction);
                            let (a, b) = (expected[head + i], expected[head + half + i]);
                            expected[head + i] = a * cos - b * sin;
                            expected[head + half + i] = b * cos + a * sin;
                        }
                    }
                }
                let label = format!("{kind}, {head_dim}, {half}, {direction}");
                assert_close(&label, &data, &expected, tolerance);
            }
        }
    }

    #[test]
    fn both_kinds_follow_the_formula() {
        follows_the_formula::<f32>("fp32", 1e-6);
        follows_the_formula::<bf16>("bf16", 4e-3);
    }

    #[test]
    fn no_tokens_are_no_work() {
        let view = TokensMut::<f32>::new(&mut [], 0, 4, 4);
        rotate(view, 4, Table::new(&[1.0], &[0.0], 1), 1.0);
    }

    #[test]
    #[should_panic(expected = "2 tokens, 5 apart, are not in 8 elements")]
    fn a_buffer_that_ends_within_a_token_is_noticed() {
        TokensMut::new(&mut [0f32; 8], 2, 4, 5);
    }

    #[test]
    #[should_panic(expected = "tokens of 4 elements are 3 apart")]
    fn tokens_that_overlap_are_noticed() {
        TokensMut::new(&mut [0f32; 8], 2, 4, 3);
    }
}
