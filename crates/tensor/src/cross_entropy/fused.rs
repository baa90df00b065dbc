//! The chunk's two passes as kernels: logits are read once for the stats and turned into their gradient in place, in
//! fp32 without fp32 temporaries.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::{IGNORE, Normaliser};
use crate::cpu::element::{Element, is_plain, slice, slice_mut, with_element};
use crate::cpu::exp::exp;
use crate::cpu::kernel::{self, InstructionSet, Kernel};
use crate::cpu::lanes;

/// Logits that are looked at twice while they are in the first-level cache: for the largest, then for the sum.
const BLOCK: usize = 2048;

/// As [`super::local_stats`]; `None` where the kernel does not apply.
pub(super) fn local_stats(logits: &Tensor, targets: &Tensor, vocab: &Range<i64>) -> Option<Tensor> {
    with_element!(logits.kind(), T => {
        let columns = applies::<T>(logits, targets)?;
        let rows = slice::<T>(logits).chunks_exact(columns).zip(slice::<i64>(targets));
        let stats = kernel::map(rows.map(|(logits, &target)| RowStats {
            logits,
            target: local(target, vocab),
        }));
        let out = Tensor::empty([3, stats.len() as i64], (Kind::Float, Device::Cpu));
        // SAFETY: the tensor was made here and nothing else knows it.
        let values = unsafe { slice_mut::<f32>(&out) };
        for (part, values) in values.chunks_exact_mut(stats.len()).enumerate() {
            for (value, stats) in values.iter_mut().zip(&stats) {
                *value = stats[part];
            }
        }
        Some(out)
    })
}

/// As [`super::logits_to_gradient_`]; `None`, with nothing written, where the kernel does not apply.
pub(super) fn logits_to_gradient_(
    logits: &Tensor,
    targets: &Tensor,
    vocab: &Range<i64>,
    normaliser: &Normaliser,
    scale: f64,
) -> Option<()> {
    with_element!(logits.kind(), T => {
        let columns = applies::<T>(logits, targets)?;
        if !is_plain::<f32>(&normaliser.logsumexp) {
            return None;
        }
        // SAFETY: `targets` and `logsumexp` are of other kinds or made by `combine`, so neither shares this storage.
        let rows = unsafe { slice_mut::<T>(logits) }.chunks_exact_mut(columns);
        let rows = rows.zip(slice::<i64>(targets)).zip(slice::<f32>(&normaliser.logsumexp));
        kernel::for_each(rows.map(|((logits, &target), &logsumexp)| RowGradient {
            logits,
            target: local(target, vocab),
            ignored: target == IGNORE,
            logsumexp,
            scale: scale as f32,
        }));
        Some(())
    })
}

/// The columns of the logits where the kernels can work on them.
fn applies<T: Element>(logits: &Tensor, targets: &Tensor) -> Option<usize> {
    let columns = *logits.size().get(1)?;
    let plain = is_plain::<T>(logits) && is_plain::<i64>(targets);
    (plain && columns > 0 && targets.numel() > 0).then_some(columns as usize)
}

/// The target's column in this shard.
fn local(target: i64, vocab: &Range<i64>) -> Option<usize> {
    vocab
        .contains(&target)
        .then(|| (target - vocab.start) as usize)
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
