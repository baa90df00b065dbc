//! Comparisons, and what masks do.

use crate::dispatch::{Arg, Operator};
use crate::error::expect;
use crate::operators::{
    EQ, GE, LOGICAL_AND, LOGICAL_OR, LT, MASKED_FILL, MASKED_FILL_, TRIL, TRIU,
};
use crate::scalar::Scalar;
use crate::tensor::Tensor;

impl Tensor {
    #[track_caller]
    fn compare(&self, operator: &Operator, scalar: Scalar) -> Self {
        let scalar = scalar.tensor(self.kind());
        expect(operator.call(&[Arg::Tensor(self), Arg::Tensor(&scalar)]))
    }

    /// Where the elements equal a number.
    #[track_caller]
    pub fn eq(&self, scalar: impl Into<Scalar>) -> Self {
        self.compare(&EQ, scalar.into())
    }

    /// Where the elements are less than a number.
    #[track_caller]
    pub fn lt(&self, scalar: impl Into<Scalar>) -> Self {
        self.compare(&LT, scalar.into())
    }

    /// Where the elements are a number or more.
    #[track_caller]
    pub fn ge(&self, scalar: impl Into<Scalar>) -> Self {
        self.compare(&GE, scalar.into())
    }

    /// Where both are true.
    #[track_caller]
    pub fn logical_and(&self, other: &Self) -> Self {
        expect(LOGICAL_AND.call(&[Arg::Tensor(self), Arg::Tensor(other)]))
    }

    /// Where one is true.
    #[track_caller]
    pub fn logical_or(&self, other: &Self) -> Self {
        expect(LOGICAL_OR.call(&[Arg::Tensor(self), Arg::Tensor(other)]))
    }

    /// A copy with `value` where `mask` is true.
    #[track_caller]
    pub fn masked_fill(&self, mask: &Self, value: impl Into<Scalar>) -> Self {
        let value = value.into().tensor(self.kind());
        expect(MASKED_FILL.call(&[Arg::Tensor(self), Arg::Tensor(mask), Arg::Tensor(&value)]))
    }

    /// Writes `value` where `mask` is true.
    #[track_caller]
    pub fn masked_fill_(&self, mask: &Self, value: impl Into<Scalar>) {
        let value = value.into().tensor(self.kind());
        expect(MASKED_FILL_.call(&[Arg::Tensor(self), Arg::Tensor(mask), Arg::Tensor(&value)]));
    }

    /// The matrix above its `diagonal`, which counts from the main one upwards; zero elsewhere.
    #[track_caller]
    pub fn triu(&self, diagonal: i64) -> Self {
        expect(TRIU.call(&[Arg::Tensor(self), Arg::Int(diagonal)]))
    }

    /// The matrix below its `diagonal`, which counts from the main one upwards; zero elsewhere.
    #[track_caller]
    pub fn tril(&self, diagonal: i64) -> Self {
        expect(TRIL.call(&[Arg::Tensor(self), Arg::Int(diagonal)]))
    }
}
