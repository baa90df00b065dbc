//! Element-wise reduction of several ranks' memory, in rank order.
//!
//! Works block by block: a block of the first source is widened into an accumulator that stays in the L1 cache, the other
//! sources are combined into it one after another, and the result is rounded once. The inner loops have no branches and
//! no bounds, so the compiler turns them into vector code.
//!
//! ```
//! use tandem_kernels::reduce::{ReduceOp, Source, reduce};
//!
//! // In place: the second rank's part lies where the result goes.
//! let (first, mut second) = ([1.0f32, 2.0], [10.0, 20.0]);
//! let sources = [Source::Slice(&first), Source::Target(0)];
//! reduce(ReduceOp::Sum, &sources, &mut [&mut second]);
//! assert_eq!(second, [11.0, 22.0]);
//! ```

mod combine;
mod reducible;

use std::marker::PhantomData;
use std::ops::Range;

use crate::dispatch::{self, InstructionSet, Kernel};
use combine::{Combine, Max, Min, Sum};
pub use reducible::Reducible;

/// Elements of one block: 4 KiB of fp32, which leaves room in L1 for the sources.
const BLOCK: usize = 1024;

/// How elements of several ranks become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReduceOp {
    /// The sum. Integers wrap around; bf16 and f16 are summed in fp32 and rounded once.
    Sum,
    /// The largest. NaN wins.
    Max,
    /// The smallest. NaN wins.
    Min,
}

/// What one rank contributes.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a, E> {
    /// Memory that is only read.
    Slice(&'a [E]),
    /// What the target with this number holds before it is overwritten.
    Target(usize),
}

/// Reduces all sources, in their order, into every target; on the calling thread. Without a source, targets stay as they are.
///
/// # Panics
/// When lengths differ, or a source names a target that is not there.
pub fn reduce<E: Reducible>(op: ReduceOp, sources: &[Source<'_, E>], targets: &mut [&mut [E]]) {
    let Some(elements) = targets.first().map(|target| target.len()) else {
        return;
    };
    let fits = |source: &Source<'_, E>| match *source {
        Source::Slice(source) => source.len() == elements,
        Source::Target(index) => index < targets.len(),
    };
    assert!(
        targets.iter().all(|target| target.len() == elements) && sources.iter().all(fits),
        "not everything to reduce has the first target's {elements} elements"
    );
    match op {
        ReduceOp::Sum => dispatch::run(Reduction::<E, Sum>::new(sources, targets)),
        ReduceOp::Max => dispatch::run(Reduction::<E, Max>::new(sources, targets)),
        ReduceOp::Min => dispatch::run(Reduction::<E, Min>::new(sources, targets)),
    }
}

struct Reduction<'a, 's, 't, E, C> {
    sources: &'a [Source<'s, E>],
    targets: &'a mut [&'t mut [E]],
    op: PhantomData<C>,
}

impl<'a, 's, 't, E: Reducible, C: Combine> Reduction<'a, 's, 't, E, C> {
    fn new(sources: &'a [Source<'s, E>], targets: &'a mut [&'t mut [E]]) -> Self {
        Self {
            sources,
            targets,
            op: PhantomData,
        }
    }

    /// A block of a source.
    #[inline(always)]
    fn block(&self, source: &'a Source<'s, E>, block: &Range<usize>) -> &[E] {
        match source {
            Source::Slice(source) => &source[block.clone()],
            Source::Target(index) => &self.targets[*index][block.clone()],
        }
    }
}

impl<E: Reducible, C: Combine> Kernel for Reduction<'_, '_, '_, E, C> {
    type Output = ();

    #[inline(always)]
    fn run<I: InstructionSet>(self) {
        let Some((first, others)) = self.sources.split_first() else {
            return;
        };
        let elements = self.targets.first().map_or(0, |target| target.len());
        let mut wide = [E::Wide::default(); BLOCK];
        for start in (0..elements).step_by(BLOCK) {
            let block = start..elements.min(start + BLOCK);
            let wide = &mut wide[..block.len()];
            let first = self.block(first, &block);
            let others = match others.split_first() {
                Some((second, others)) => {
                    E::widen_combined::<C>(first, self.block(second, &block), wide);
                    others
                }
                None => {
                    E::widen(first, wide);
                    others
                }
            };
            for other in others {
                E::combine::<C>(wide, self.block(other, &block));
            }
            if let Some((target, copies)) = self.targets.split_first_mut() {
                let target = &mut target[block.clone()];
                E::narrow(wide, target);
                // Rounding once is cheaper than twice.
                for copy in copies {
                    copy[block.clone()].copy_from_slice(target);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::dispatch::testing::run_on_each_set;

    /// The result, in place of the source in the middle and in a target beside it.
    fn run<E: Reducible + PartialEq + std::fmt::Debug>(op: ReduceOp, sources: &[Vec<E>]) -> Vec<E> {
        let middle = sources.len() / 2;
        let mut target = sources[middle].clone();
        let mut second = sources[0].clone();
        let own = |(index, source)| match index == middle {
            true => Source::Target(1),
            false => Source::Slice(source),
        };
        let sources: Vec<Source<'_, E>> = sources
            .iter()
            .map(Vec::as_slice)
            .enumerate()
            .map(own)
            .collect();
        reduce(op, &sources, &mut [&mut second, &mut target]);
        let bytes = |values: &[E]| format!("{values:?}");
        assert_eq!(bytes(&target), bytes(&second));
        target
    }

    fn rank_values(len: usize) -> Vec<Vec<f32>> {
        (0..3)
            .map(|rank| (0..len).map(|i| (i * 7 + rank) as f32 * 0.1).collect())
            .collect()
    }

    #[test]
    fn sums_are_in_rank_order_and_bf16_rounds_once() {
        for len in [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 3] {
            let sources = rank_values(len);
            let sum = run(ReduceOp::Sum, &sources);
            for i in 0..len {
                assert_eq!(sum[i], (sources[0][i] + sources[1][i]) + sources[2][i]);
            }
            let in_kind = |source: &Vec<f32>| source.iter().map(|v| bf16::from_f32(*v)).collect();
            let narrow: Vec<Vec<bf16>> = sources.iter().map(in_kind).collect();
            let sum = run(ReduceOp::Sum, &narrow);
            for i in 0..len {
                let exact = (narrow[0][i].to_f32() + narrow[1][i].to_f32()) + narrow[2][i].to_f32();
                assert_eq!(sum[i], bf16::from_f32(exact));
            }
            let in_kind = |source: &Vec<f32>| source.iter().map(|v| f16::from_f32(*v)).collect();
            let half: Vec<Vec<f16>> = sources.iter().map(in_kind).collect();
            let sum = run(ReduceOp::Sum, &half);
            for i in 0..len {
                let exact = (half[0][i].to_f32() + half[1][i].to_f32()) + half[2][i].to_f32();
                assert_eq!(sum[i], f16::from_f32(exact));
            }
            let in_kind = |source: &Vec<f32>| source.iter().map(|v| f64::from(*v) / 3.0).collect();
            let double: Vec<Vec<f64>> = sources.iter().map(in_kind).collect();
            let sum = run(ReduceOp::Sum, &double);
            for i in 0..len {
                assert_eq!(sum[i], (double[0][i] + double[1][i]) + double[2][i]);
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let sources = rank_values(BLOCK + 17);
        let sources: Vec<Vec<bf16>> = sources
            .iter()
            .map(|source| source.iter().map(|v| bf16::from_f32(*v)).collect())
            .collect();
        let expected = run(ReduceOp::Sum, &sources);
        let slices: Vec<_> = sources.iter().map(|source| Source::Slice(source)).collect();
        let results = std::sync::Mutex::new(Vec::new());
        struct OneSum<'a>(&'a [Source<'a, bf16>], &'a std::sync::Mutex<Vec<Vec<bf16>>>);
        impl Kernel for OneSum<'_> {
            type Output = ();

            #[inline(always)]
            fn run<I: InstructionSet>(self) {
                let mut target = vec![bf16::NAN; BLOCK + 17];
                Reduction::<bf16, Sum>::new(self.0, &mut [&mut target]).run::<I>();
                self.1.lock().unwrap().push(target);
            }
        }
        let sets = run_on_each_set(|| OneSum(&slices, &results)).len();
        assert_eq!(results.into_inner().unwrap(), vec![expected; sets]);
    }

    #[test]
    fn extremes_keep_nan_and_integers_wrap() {
        let floats = [vec![1.0f32, f32::NAN, 2.0], vec![3.0, 0.0, f32::NAN]];
        let max = run(ReduceOp::Max, &floats);
        assert!(max[0] == 3.0 && max[1].is_nan() && max[2].is_nan());
        let min = run(ReduceOp::Min, &floats);
        assert!(min[0] == 1.0 && min[1].is_nan() && min[2].is_nan());
        let integers = [vec![i64::MAX, -5, 0], vec![1, 7, 0]];
        assert_eq!(run(ReduceOp::Sum, &integers), [i64::MIN, 2, 0]);
        assert_eq!(run(ReduceOp::Max, &integers), [i64::MAX, 7, 0]);
        let integers = [vec![i32::MAX, -5], vec![1, 7]];
        assert_eq!(run(ReduceOp::Sum, &integers), [i32::MIN, 2]);
        let bytes = [vec![200u8, 1], vec![100, 2]];
        assert_eq!(run(ReduceOp::Sum, &bytes), [44, 3]);
        assert_eq!(run(ReduceOp::Min, &bytes), [100, 1]);
    }

    #[test]
    fn nan_survives_rounding_to_bf16() {
        let sources = [vec![bf16::NAN, bf16::MAX], vec![bf16::ONE, bf16::MAX]];
        let sum = run(ReduceOp::Sum, &sources);
        assert!(sum[0].is_nan() && sum[1].is_infinite());
    }

    #[test]
    fn without_sources_targets_stay() {
        let mut target = [1.0f32];
        reduce(ReduceOp::Sum, &[], &mut [&mut target]);
        assert_eq!(target, [1.0]);
        reduce::<f32>(ReduceOp::Sum, &[Source::Slice(&[1.0])], &mut []);
    }

    #[test]
    #[should_panic(expected = "the first target's 2 elements")]
    fn a_shorter_source_is_noticed() {
        reduce(ReduceOp::Sum, &[Source::Slice(&[1i32])], &mut [&mut [0; 2]]);
    }
}
