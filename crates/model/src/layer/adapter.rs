//! What adapters add to the matrices of a layer, forward and backward.
//!
//! The matrices themselves are frozen: beside the gradient of its input, a layer computes those of its adapters and no others.
//! Where a matrix is cut along its outputs, `A` sees all of the input on every rank, and the gradient of it is a part of a sum;
//! where it is cut along its inputs, `A` is cut too, and what `B` makes of its partial result goes into the sum of the row.

use tandem_tensor::{Accumulate, Tensor, linear, random};

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

/// The gradients of what the `A` of a group produce, less the scale: `[tokens, adapters * r]`.
pub(super) struct HiddenGradient(Tensor);

impl LayerTensors {
    fn adapters(&self, place: Place) -> Option<&AdapterGroup> {
        self.adapter.as_ref()?.at(place)
    }

    /// Adds what the adapters at `place` make of `x` to `y`, which the matrices there have made of it.
    pub(super) fn add_adapters(&self, place: Place, y: &Tensor, x: &Tensor) {
        let Some(group) = self.adapters(place) else {
            return;
        };
        let hidden = group.hidden(x);
        for (index, b) in group.b.iter().enumerate() {
            let product = linear::forward(&group.part(&hidden, index), b, None);
            group.columns(y, index).add_(&product);
        }
    }

    /// Adds to `d_x`, the gradient of the input of the matrices at `place`, what comes by way of their adapters, from the gradient
    /// `d_y` of what they produce.
    pub(super) fn adapters_backward_input(
        &self,
        place: Place,
        d_y: &Tensor,
        d_x: &Tensor,
    ) -> Option<HiddenGradient> {
        let group = self.adapters(place)?;
        let parts = group.b.iter().enumerate();
        let parts = parts.map(|(index, b)| linear::backward_input(&group.columns(d_y, index), b));
        let parts: Vec<Tensor> = parts.collect();
        let d_hidden = Tensor::cat(&parts, 1) * group.scale;
        match &group.dropout {
            None => d_x.add_(&linear::backward_input(&d_hidden, &group.a)),
            Some(dropout) => {
                for index in 0..group.b.len() {
                    let d_part = group.part(&d_hidden, index).contiguous();
                    let through = linear::backward_input(&d_part, &group.rows_of_a(index));
                    d_x.add_(&(through * dropout.mask(index, d_x)));
                }
            }
        }
        Some(HiddenGradient(d_hidden))
    }

    /// Writes or adds the gradients of the adapters at `place`, whose input was `x`.
    pub(super) fn adapters_backward(
        &self,
        place: Place,
        gradients: Gradients<'_>,
        d_y: &Tensor,
        d_hidden: Option<HiddenGradient>,
        x: &Tensor,
        accumulate: Accumulate,
    ) {
        let (Some(group), Some(gradients), Some(HiddenGradient(d_hidden))) =
            (self.adapters(place), gradients.adapter(place), d_hidden)
        else {
            return;
        };
        let hidden = group.hidden(x);
        for (index, d_b) in gradients.b.iter().enumerate() {
            let (d_y, hidden) = (group.columns(d_y, index), group.part(&hidden, index));
            linear::backward_weight(d_b, &d_y, &hidden, accumulate);
        }
        match &group.dropout {
            None => linear::backward_weight(&gradients.a, &d_hidden, x, accumulate),
            Some(dropout) => {
                for index in 0..group.b.len() {
                    let x = x * dropout.mask(index, x);
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
                    let x = x * dropout.mask(index, x);
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
    /// What the elements of `x [tokens, inputs]`, all tokens of the rows, are multiplied with for adapter `index`: 0, or what
    /// makes up for the zeros. It is a function of the seed, the adapter, the row and the element in the whole model's row, so
    /// it depends neither on the mesh nor on how often it is computed.
    fn mask(&self, index: usize, x: &Tensor) -> Tensor {
        let (tokens, inputs) = (x.size()[0] as usize, x.size()[1] as usize);
        let mut kept = vec![0f32; tokens * inputs];
        let name = format!("dropout {} {}", self.paths[index], self.rows.epoch);
        let factor = (1.0 / (1.0 - self.probability)) as f32;
        // More elements than any token has: numbers of different tokens do not meet.
        const STRIDE: u64 = 1 << 24;
        let first = self.rows.first_row * self.rows.seq as u64;
        for (token, kept) in kept.chunks_mut(inputs.max(1)).enumerate() {
            let start = (first + token as u64) * STRIDE + self.input_start as u64;
            random::fill_uniform(kept, self.rows.seed, &name, start);
            for value in kept {
                *value = match f64::from(*value) < self.probability {
                    true => 0.0,
                    false => factor,
                };
            }
        }
        Tensor::from_slice(&kept)
            .view([tokens as i64, inputs as i64])
            .to_device(x.device())
            .to_kind(x.kind())
    }
}
