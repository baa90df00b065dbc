//! What adapters add to the matrices of a layer, forward and backward.
//!
//! The matrices themselves are frozen: beside the gradient of its input, a layer computes those of its adapters and no others.
//! Where a matrix is cut along its outputs, `A` sees all of the input on every rank, and the gradient of it is a part of a sum;
//! where it is cut along its inputs, `A` is cut too, and what `B` makes of its partial result goes into the sum of the row.

use tandem_tensor::dropout::{self, Mask};
use tandem_tensor::linear::LowRank;
use tandem_tensor::random::Uniform;
use tandem_tensor::{Accumulate, Tensor, linear};

use crate::adapter::{AdapterGroup, AdapterTensors, GroupDropout, Place};
use crate::tensors::LayerTensors;

/// Where a layer's gradients go.
#[derive(Debug, Clone, Copy)]
pub enum Gradients<'a> {
    /// All weights are trained.
    Weights(&'a LayerTensors),
    /// The weights are frozen; their adapters, where the layer has some, are trained.
    Adapter(Option<&'a AdapterTensors>),
}

impl<'a> Gradients<'a> {
    /// Those of the weights, where these are trained.
    pub(super) fn weights(self) -> Option<&'a LayerTensors> {
        match self {
            Self::Weights(tensors) => Some(tensors),
            Self::Adapter(_) => None,
        }
    }

    /// Those of the adapters at `place`, where there are any.
    pub(super) fn adapter(self, place: Place) -> Option<&'a AdapterGroup> {
        match self {
            Self::Weights(_) => None,
            Self::Adapter(tensors) => tensors?.at(place),
        }
    }

    /// Whether a gradient is computed from the input of the matrices at `place`.
    pub(super) fn need_input(self, place: Place) -> bool {
        self.weights().is_some() || self.adapter(place).is_some()
    }
}

/// What the `A` of a group make of its input, times the scale: `[tokens, adapters * r]`. It is small, and kept for backward.
#[derive(Debug)]
pub(super) struct Hidden(Tensor);

/// The gradients of what the `A` of a group produce, less the scale: `[tokens, adapters * r]`.
pub(super) struct HiddenGradient(Tensor);

impl LayerTensors {
    fn adapters(&self, place: Place) -> Option<&AdapterGroup> {
        self.adapter.as_ref()?.at(place)
    }

    /// What the matrices at `place`, which are `weight` and `bias`, and their adapters make of `x`.
    pub(super) fn adapted_forward(
        &self,
        place: Place,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> (Tensor, Option<Hidden>) {
        let Some(group) = self.adapters(place) else {
            return (linear::forward(x, weight, bias), None);
        };
        let hidden = group.hidden(x);
        let adapters = group.b.iter().zip(&group.outputs).enumerate();
        let adapters = adapters.map(|(index, (weight, outputs))| LowRank {
            hidden: group.part(&hidden, index),
            weight,
            outputs: outputs.clone(),
        });
        let adapters: Vec<LowRank<'_>> = adapters.collect();
        let y = linear::adapted_forward(x, weight, bias, &adapters);
        (y, Some(Hidden(hidden)))
    }

    /// The gradient of the input of the matrices at `place`, which are `weight`, also by way of their adapters, from the gradient
    /// `d_y` of what they produce.
    pub(super) fn adapted_backward_input(
        &self,
        place: Place,
        d_y: &Tensor,
        weight: &Tensor,
    ) -> (Tensor, Option<HiddenGradient>) {
        let Some(group) = self.adapters(place) else {
            return (linear::backward_input(d_y, weight), None);
        };
        let parts = group.b.iter().enumerate();
        let parts = parts.map(|(index, b)| linear::backward_input(&group.columns(d_y, index), b));
        let parts: Vec<Tensor> = parts.collect();
        let d_hidden = Tensor::cat(&parts, 1) * group.scale;
        let d_x = match &group.dropout {
            None => linear::adapted_backward_input(d_y, weight, &d_hidden, &group.a),
            Some(dropout) => {
                let d_x = linear::backward_input(d_y, weight);
                for index in 0..group.b.len() {
                    let d_part = group.part(&d_hidden, index);
                    let through = linear::backward_input(&d_part, &group.rows_of_a(index));
                    dropout::add_(&d_x, &through, dropout.mask(index));
                }
                d_x
            }
        };
        (d_x, Some(HiddenGradient(d_hidden)))
    }

    /// Writes or adds the gradients of the adapters at `place`, whose input was `x`.
    pub(super) fn adapters_backward(
        &self,
        place: Place,
        gradients: Gradients<'_>,
        d_y: &Tensor,
        on_the_way: (Option<Hidden>, Option<HiddenGradient>),
        x: &Tensor,
        accumulate: Accumulate,
    ) {
        let (Some(group), Some(gradients)) = (self.adapters(place), gradients.adapter(place))
        else {
            return;
        };
        let (Some(Hidden(hidden)), Some(HiddenGradient(d_hidden))) = on_the_way else {
            return;
        };
        for (index, d_b) in gradients.b.iter().enumerate() {
            let (d_y, hidden) = (group.columns(d_y, index), group.part(&hidden, index));
            linear::backward_weight(d_b, &d_y, &hidden, accumulate);
        }
        match &group.dropout {
            None => linear::backward_weight(&gradients.a, &d_hidden, x, accumulate),
            Some(dropout) => {
                for index in 0..group.b.len() {
                    let x = dropout::forward(x, dropout.mask(index));
                    let (d_a, d_part) = (gradients.rows_of_a(index), group.part(&d_hidden, index));
                    linear::backward_weight(&d_a, &d_part, &x, accumulate);
                }
            }
        }
    }
}

impl AdapterGroup {
    /// What the `A` make of `x`, times the scale: `[tokens, adapters * r]`.
    fn hidden(&self, x: &Tensor) -> Tensor {
        let hidden = match &self.dropout {
            None => linear::forward(x, &self.a, None),
            Some(dropout) => {
                let part = |index| {
                    let x = dropout::forward(x, dropout.mask(index));
                    linear::forward(&x, &self.rows_of_a(index), None)
                };
                let parts: Vec<Tensor> = (0..self.b.len()).map(part).collect();
                Tensor::cat(&parts, 1)
            }
        };
        hidden * self.scale
    }

    /// One adapter's columns of [`Self::hidden`].
    fn part(&self, hidden: &Tensor, index: usize) -> Tensor {
        hidden.narrow(1, (index * self.rank) as i64, self.rank as i64)
    }

    fn rows_of_a(&self, index: usize) -> Tensor {
        self.a
            .narrow(0, (index * self.rank) as i64, self.rank as i64)
    }

    /// Of what all matrices at the place produce, what one adapted one does.
    fn columns(&self, y: &Tensor, index: usize) -> Tensor {
        let columns = &self.outputs[index];
        y.narrow(1, columns.start as i64, columns.len() as i64)
    }
}

impl GroupDropout {
    /// What is dropped of the input of adapter `index`: a function of the seed, the adapter, the row and the element in the whole
    /// model's row, so it depends neither on the mesh nor on how often it is computed.
    fn mask(&self, index: usize) -> Mask {
        // More elements than any token has: numbers of different tokens do not meet.
        const STRIDE: u64 = 1 << 24;
        let name = format!("dropout {} {}", self.paths[index], self.rows.epoch);
        let first = self.rows.first_row * self.rows.seq as u64;
        Mask {
            random: Uniform::new(self.rows.seed, &name),
            probability: self.probability as f32,
            start: first * STRIDE + self.input_start as u64,
            stride: STRIDE,
        }
    }
}
