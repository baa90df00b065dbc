//! Elements by their place: gathered, scattered, repeated, sorted.

use std::borrow::Borrow;

use crate::dispatch::Arg;
use crate::error::expect;
use crate::operators::{
    GATHER, INDEX_PUT_, INDEX_SELECT, REPEAT_INTERLEAVE, SCATTER_ADD_, SORT, STACK,
};
use crate::tensor::Tensor;

impl Tensor {
    /// The indices `index` (i64, one dimension) of dimension `dim`.
    #[track_caller]
    pub fn index_select(&self, dim: i64, index: &Self) -> Self {
        expect(INDEX_SELECT.call(&[Arg::Tensor(self), Arg::Int(dim), Arg::Tensor(index)]))
    }

    /// Adds each index of `source`'s dimension `dim` to the one of this tensor that `index` names.
    #[track_caller]
    pub fn index_add_(&self, dim: i64, index: &Self, source: &Self) {
        let mut indices: Vec<Option<&Self>> = vec![None; self.axis(dim)];
        indices.push(Some(index));
        expect(INDEX_PUT_.call(&[
            Arg::Tensor(self),
            Arg::OptionalTensors(&indices),
            Arg::Tensor(source),
            Arg::Bool(true),
        ]));
    }

    /// For every place of `index`, the element that it names along dimension `dim`.
    #[track_caller]
    pub fn gather(&self, dim: i64, index: &Self) -> Self {
        expect(GATHER.call(&[
            Arg::Tensor(self),
            Arg::Int(dim),
            Arg::Tensor(index),
            Arg::Bool(false),
        ]))
    }

    /// Adds every element of `source` to the one that `index` names along dimension `dim`.
    #[track_caller]
    pub fn scatter_add_(&self, dim: i64, index: &Self, source: &Self) {
        expect(SCATTER_ADD_.call(&[
            Arg::Tensor(self),
            Arg::Int(dim),
            Arg::Tensor(index),
            Arg::Tensor(source),
        ]));
    }

    /// The elements along dimension `dim` in ascending order, or descending, equals in the order in which they are; and where each one
    /// was (i64).
    #[track_caller]
    pub fn sort(&self, dim: i64, descending: bool) -> (Self, Self) {
        let arguments = [
            Arg::Tensor(self),
            Arg::SomeBool(true),
            Arg::Int(dim),
            Arg::Bool(descending),
        ];
        let [sorted, places] = expect(SORT.call_for(&arguments));
        (sorted, places)
    }

    /// Every index of dimension `dim`, `times` times in a row.
    #[track_caller]
    pub fn repeat_interleave(&self, times: i64, dim: i64) -> Self {
        expect(REPEAT_INTERLEAVE.call(&[
            Arg::Tensor(self),
            Arg::Int(times),
            Arg::SomeInt(dim),
            Arg::None,
        ]))
    }

    /// One tensor of several of equal size, with a new dimension `dim`.
    #[track_caller]
    pub fn stack(tensors: &[impl Borrow<Self>], dim: i64) -> Self {
        let tensors: Vec<&Self> = tensors.iter().map(Borrow::borrow).collect();
        expect(STACK.call(&[Arg::Tensors(&tensors), Arg::Int(dim)]))
    }
}
