//! The chunk's two passes as kernels: logits are read once for the stats and turned into their gradient in place, in
//! fp32 without fp32 temporaries.

use std::ops::Range;

use tandem_kernels::cross_entropy;
use tandem_torch::{Device, Kind, Tensor};

use super::{Bend, Normaliser, Objective};
use crate::cpu::element::{Stored, is_plain, slice, slice_mut, with_element};
use crate::factor::Factor;

/// As [`super::bend_`]; `None`, with nothing written, where the kernel does not apply.
pub(super) fn bend_(logits: &Tensor, bend: Bend) -> Option<()> {
    with_element!(logits.kind(), T => {
        if !is_plain::<T>(logits) {
            return None;
        }
        // SAFETY: the kernel is the only operation on this storage meanwhile.
        cross_entropy::bend(unsafe { slice_mut::<T>(logits) }, bend);
        Some(())
    })
}

/// As [`super::local_stats`]; `None`, with nothing written, where the kernel does not apply.
pub(super) fn local_stats(
    logits: &Tensor,
    targets: &Tensor,
    vocab: &Range<i64>,
    bend: Bend,
) -> Option<Tensor> {
    with_element!(logits.kind(), T => {
        if !applies::<T>(logits, targets, vocab) {
            return None;
        }
        let out = Tensor::empty([3, targets.numel() as i64], (Kind::Float, Device::Cpu));
        // SAFETY: the tensor was made here and nothing else knows it.
        let stats = unsafe { slice_mut::<f32>(&out) };
        // SAFETY: `targets` are of another kind, so they do not share this storage.
        let logits = unsafe { slice_mut::<T>(logits) };
        cross_entropy::local_stats(logits, slice::<i64>(targets), vocab, bend, stats);
        Some(out)
    })
}

/// As [`super::logits_to_gradient_`]; `None`, with nothing written, where the kernel does not apply.
pub(super) fn logits_to_gradient_(
    logits: &Tensor,
    targets: &Tensor,
    vocab: &Range<i64>,
    normaliser: &Normaliser,
    bend: Bend,
    objective: Objective<'_>,
) -> Option<()> {
    let Factor::Number(scale) = objective.scale else {
        return None;
    };
    let objective = cross_entropy::Objective {
        scale: scale as f32,
        z_loss: objective.z_loss,
    };
    with_element!(logits.kind(), T => {
        let logsumexp = &normaliser.logsumexp;
        let plain = is_plain::<f32>(logsumexp) && logsumexp.numel() == targets.numel();
        if !plain || !applies::<T>(logits, targets, vocab) {
            return None;
        }
        // SAFETY: `targets` and `logsumexp` are of other kinds or made by `combine`, so neither shares this storage.
        let logits = unsafe { slice_mut::<T>(logits) };
        let (targets, logsumexp) = (slice::<i64>(targets), slice::<f32>(logsumexp));
        cross_entropy::logits_to_gradient(logits, targets, vocab, logsumexp, bend, objective);
        Some(())
    })
}

/// Whether the kernels can work on this shard's logits.
fn applies<T: Stored>(logits: &Tensor, targets: &Tensor, vocab: &Range<i64>) -> bool {
    is_plain::<T>(logits)
        && is_plain::<i64>(targets)
        && logits.numel() > 0
        && logits.size() == [targets.numel() as i64, vocab.end - vocab.start]
}
