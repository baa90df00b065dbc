//! Operators of a GPU that other operators stand for on a pretended one.

use crate::recorder::{self, Action, Writes};
use crate::tensor::Tensor;

/// Computes with other operators what one of the device, `operator`, does with these tensors: that one is recorded.
pub(crate) fn for_operator<const N: usize>(
    operator: &str,
    writes: Writes,
    given: &[&Tensor],
    body: impl FnOnce() -> [Tensor; N],
) -> [Tensor; N] {
    given.iter().for_each(|tensor| tensor.touch());
    let results = recorder::unrecorded(body);
    if recorder::is_on() {
        recorder::called(operator, writes, Action::Compute);
        results.iter().for_each(Tensor::tell_made);
    }
    results
}
