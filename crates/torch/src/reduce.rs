//! Sums, maxima and what is made of them.

use crate::dispatch::Arg;
use crate::error::expect;
use crate::kind::Kind;
use crate::operators::{CUMSUM, LOGSUMEXP, MAX_DIM, MEAN_DIMS, NORM, SOFTMAX, SUM, SUM_DIMS};
use crate::tensor::Tensor;

impl Tensor {
    /// The sum of all elements, in `kind`.
    #[track_caller]
    pub fn sum(&self, kind: Kind) -> Self {
        expect(SUM.call(&[Arg::Tensor(self), Arg::SomeKind(kind)]))
    }

    /// The root of the sum of all squares, in this tensor's kind: one pass over the elements.
    #[track_caller]
    pub fn norm(&self) -> Self {
        expect(NORM.call(&[
            Arg::Tensor(self),
            Arg::None,
            Arg::None,
            Arg::Bool(false),
            Arg::None,
        ]))
    }

    /// Sums over some dimensions, which stay with size 1 if `keep`, in `kind`.
    #[track_caller]
    pub fn sum_dims(&self, dims: &[i64], keep: bool, kind: Kind) -> Self {
        expect(SUM_DIMS.call(&[
            Arg::Tensor(self),
            Arg::SomeInts(dims),
            Arg::Bool(keep),
            Arg::SomeKind(kind),
        ]))
    }

    /// Means over some dimensions, which stay with size 1 if `keep`, in `kind`.
    #[track_caller]
    pub fn mean_dims(&self, dims: &[i64], keep: bool, kind: Kind) -> Self {
        expect(MEAN_DIMS.call(&[
            Arg::Tensor(self),
            Arg::SomeInts(dims),
            Arg::Bool(keep),
            Arg::SomeKind(kind),
        ]))
    }

    /// The largest element along a dimension, and where it is.
    #[track_caller]
    pub fn max_dim(&self, dim: i64, keep: bool) -> (Self, Self) {
        let arguments = [Arg::Tensor(self), Arg::Int(dim), Arg::Bool(keep)];
        let [largest, places] = expect(MAX_DIM.call_for(&arguments));
        (largest, places)
    }

    /// For each element, the sum of those along a dimension up to it, itself included, in `kind`.
    #[track_caller]
    pub fn cumsum(&self, dim: i64, kind: Kind) -> Self {
        expect(CUMSUM.call(&[Arg::Tensor(self), Arg::Int(dim), Arg::SomeKind(kind)]))
    }

    /// The logarithm of the sum of the exponentials over some dimensions.
    #[track_caller]
    pub fn logsumexp(&self, dims: &[i64], keep: bool) -> Self {
        expect(LOGSUMEXP.call(&[Arg::Tensor(self), Arg::Ints(dims), Arg::Bool(keep)]))
    }

    /// Softmax along a dimension, computed in `kind`.
    #[track_caller]
    pub fn softmax(&self, dim: i64, kind: Kind) -> Self {
        expect(SOFTMAX.call(&[Arg::Tensor(self), Arg::Int(dim), Arg::SomeKind(kind)]))
    }
}
