//! The engine's units by what they hold, with the pool that they borrow buffers from.

use tandem_model::{
    AdapterTensors, DropoutRows, Gradients, HeadTensors, LayerAccumulate, LayerTensors,
};
use tandem_parallel::ParallelError;
use tandem_tensor::Tensor;

use crate::engine::Engine;
use crate::micro_batch::MicroBatch;

/// Where a layer's gradients go.
pub(crate) enum LayerGradients {
    /// All weights are trained.
    Weights(LayerTensors),
    /// Its adapters, where it has some.
    Adapter(Option<AdapterTensors>),
}

impl LayerGradients {
    /// As a layer takes them.
    pub(crate) fn as_ref(&self) -> Gradients<'_> {
        match self {
            Self::Weights(tensors) => Gradients::Weights(tensors),
            Self::Adapter(tensors) => Gradients::Adapter(tensors.as_ref()),
        }
    }
}

/// The unit of the embedding (and, where it is tied, of the head).
pub(crate) const EMBEDDING: usize = 0;

/// The unit of the layer with the index `layer`.
pub(crate) fn of_layer(layer: usize) -> usize {
    EMBEDDING + 1 + layer
}

impl Engine {
    /// The unit that holds the output head.
    pub(crate) fn head_unit(&self) -> usize {
        match self.config.tie_word_embeddings {
            true => EMBEDDING,
            false => of_layer(self.layers.len()),
        }
    }

    fn start_unshard(&mut self, unit: usize) -> Result<(), ParallelError> {
        self.units[unit].start_unshard(&mut self.pool)
    }

    /// A unit's parameters, whole: this rank's tensor parallel part of them.
    pub(crate) fn unshard(&mut self, unit: usize) -> Result<Tensor, ParallelError> {
        self.units[unit].unshard(&mut self.pool)
    }

    /// Frees what was gathered of a unit.
    pub(crate) fn reshard(&mut self, unit: usize) {
        self.units[unit].reshard(&mut self.pool);
    }

    /// The buffer for a unit's gradient.
    pub(crate) fn gradient(&mut self, unit: usize) -> Tensor {
        self.units[unit].gradient(&mut self.pool)
    }

    /// Waits until a unit's gradient is with its owners; nothing where there is no such unit, or nothing under way.
    pub(crate) fn finish_reduce(&mut self, unit: usize) -> Result<(), ParallelError> {
        match self.units.get_mut(unit) {
            Some(unit) => unit.finish_reduce(&mut self.pool),
            None => Ok(()),
        }
    }

    /// The embedding's rows in its unit's buffer, `[local vocabulary, hidden]`.
    pub(crate) fn table(&self, flat: &Tensor) -> Tensor {
        let rows = self.embedding.vocab.end - self.embedding.vocab.start;
        let hidden = self.config.hidden_size as i64;
        flat.narrow(0, 0, rows * hidden).view([rows, hidden])
    }

    /// The head's tensors in its unit's buffer.
    pub(crate) fn head_tensors(&self, flat: &Tensor) -> HeadTensors {
        let rows = (self.head.vocab.end - self.head.vocab.start) as usize;
        let tied = self.config.tie_word_embeddings;
        match HeadTensors::view(flat, self.config.hidden_size, rows, tied) {
            Some(tensors) => tensors,
            None => unreachable!("the layout and the head's views have one order"),
        }
    }

    /// The units of the model, which those of adapters are behind.
    pub(crate) fn base_units(&self) -> usize {
        let with_head = self.head_unit().max(self.layers.len()) + 1;
        let behind = self.units[with_head..].iter();
        with_head
            + behind
                .filter(|unit| unit.layout().experts_of.is_some())
                .count()
    }

    /// The unit of a layer's experts, where they are spread over ranks; otherwise they are in the layer's.
    pub(crate) fn expert_unit(&self, layer: usize) -> Option<usize> {
        let mut units = self.units.iter();
        units.position(|unit| unit.layout().experts_of == Some(layer))
    }

    /// Starts gathering the parameters of a layer; after the last one, those of the head, where it has any of its own.
    pub(crate) fn start_unshard_layer(&mut self, layer: usize) -> Result<(), ParallelError> {
        if layer == self.layers.len() && self.config.tie_word_embeddings {
            return Ok(());
        }
        self.start_unshard(of_layer(layer))?;
        match self.expert_unit(layer) {
            Some(experts) => self.start_unshard(experts),
            None => Ok(()),
        }
    }

    /// Whether backward writes the gradients of a layer, of which the unit `trained` is trained, or adds to them.
    pub(crate) fn layer_accumulate(
        &self,
        layer: usize,
        trained: usize,
        first: bool,
    ) -> LayerAccumulate {
        let of_unit = |unit: usize| self.units[unit].accumulate(first);
        LayerAccumulate {
            layer: of_unit(trained),
            experts: of_unit(self.expert_unit(layer).unwrap_or(trained)),
        }
    }

    /// Frees what was gathered of a layer.
    pub(crate) fn reshard_layer(&mut self, layer: usize) {
        self.reshard(of_layer(layer));
        if let Some(experts) = self.expert_unit(layer) {
            self.reshard(experts);
        }
    }

    /// Whether the model is frozen, and its adapters are trained.
    pub(crate) fn is_frozen(&self) -> bool {
        self.adapters.is_some()
    }

    /// The unit of a layer's adapters, where it has any.
    pub(crate) fn adapter_unit(&self, layer: usize) -> Option<usize> {
        let of_layer = self.adapters.as_ref()?.layers[layer].as_ref();
        of_layer.map(|(unit, _)| *unit)
    }

    /// A layer's adapters in their unit's buffer, where it has any.
    pub(crate) fn adapter_tensors(
        &self,
        layer: usize,
        flat: Option<&Tensor>,
        dropout: Option<&DropoutRows>,
    ) -> Option<AdapterTensors> {
        let (_, dims) = self.adapters.as_ref()?.layers[layer].as_ref()?;
        match AdapterTensors::view(flat?, dims, dropout) {
            Some(tensors) => Some(tensors),
            None => unreachable!("the layout and the adapters' views have one order"),
        }
    }

    /// What decides on the elements that are dropped of adapters' inputs.
    pub(crate) fn dropout_rows(&self, micro: &MicroBatch) -> Option<DropoutRows> {
        let adapters = self.adapters.as_ref()?;
        Some(DropoutRows {
            seed: adapters.seed,
            epoch: micro.epoch,
            first_row: micro.first_row,
            seq: self.seq,
        })
    }

    /// A layer's tensors in its unit's buffer, with its adapters and with experts that have a unit of their own.
    pub(crate) fn adapted_tensors(
        &mut self,
        layer: usize,
        flat: &Tensor,
        dropout: Option<&DropoutRows>,
    ) -> Result<LayerTensors, ParallelError> {
        let adapter = self.adapter_unit(layer);
        let adapter = adapter.map(|unit| self.unshard(unit)).transpose()?;
        let experts = self.expert_unit(layer);
        let experts = experts.map(|unit| self.unshard(unit)).transpose()?;
        Ok(LayerTensors {
            adapter: self.adapter_tensors(layer, adapter.as_ref(), dropout),
            ..self.layer_tensors(layer, flat, experts.as_ref())
        })
    }

    /// The unit of a layer that is trained, if any, and the buffers for its gradients.
    pub(crate) fn layer_gradients(&mut self, layer: usize) -> (Option<usize>, LayerGradients) {
        if self.is_frozen() {
            let unit = self.adapter_unit(layer);
            let flat = unit.map(|unit| self.gradient(unit));
            let tensors = self.adapter_tensors(layer, flat.as_ref(), None);
            return (unit, LayerGradients::Adapter(tensors));
        }
        let unit = of_layer(layer);
        let flat = self.gradient(unit);
        let experts = self.expert_unit(layer).map(|unit| self.gradient(unit));
        let tensors = self.layer_tensors(layer, &flat, experts.as_ref());
        (Some(unit), LayerGradients::Weights(tensors))
    }

    /// A layer's tensors in its unit's buffer and that of its experts, where they have one; less its adapters.
    fn layer_tensors(&self, layer: usize, flat: &Tensor, experts: Option<&Tensor>) -> LayerTensors {
        match LayerTensors::view_both(flat, experts, &self.layers[layer].dims) {
            Some(tensors) => tensors,
            None => unreachable!("the layout and the layer's views have one order"),
        }
    }
}
