//! The auxiliary loss that keeps the experts of a mixture in balance (Switch Transformers, arXiv 2101.03961), as transformers
//! computes it, over the whole global batch.
//!
//! With `E` experts and `N` pairs of a sparse layer and a real token, `f_e` is the number of pairs that chose expert `e` over
//! `N`, `P_e` the sum of its probabilities over `N`, and the loss is `E * sum over e of f_e * P_e`. The layers are pooled before
//! the product. `f` counts as a constant for the gradient, which is therefore the same for every token's probabilities:
//! `E * f_e / N`; but it must be known before the first backward pass.

use tandem_comm::{ProcessGroup, ReduceOp};
use tandem_model::ExpertLoad;
use tandem_tensor::{Device, Tensor};

use crate::error::TrainError;

/// What the experts of each sparse layer got, in the order of the layers.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Loads(Vec<ExpertLoad>);

impl Loads {
    /// Adds what `layers` saw of another micro-batch, in the order of the sparse layers.
    pub(crate) fn add<'a>(&mut self, layers: impl Iterator<Item = &'a ExpertLoad>) {
        if self.0.is_empty() {
            self.0 = layers.cloned().collect();
            return;
        }
        for (sum, load) in self.0.iter_mut().zip(layers) {
            sum.add(load);
        }
    }

    /// The sum over the column, which sees all of the batch.
    pub(crate) fn sum_over(
        &mut self,
        dp: &dyn ProcessGroup,
        device: Device,
    ) -> Result<(), TrainError> {
        let experts = self.0.first().map_or(0, |load| load.chosen.len());
        if experts == 0 || dp.size() == 1 {
            return Ok(());
        }
        // Counts are exact in fp64 as far as anybody can count.
        let values: Vec<f64> = self.0.iter().flat_map(ExpertLoad::values).collect();
        let sums = Tensor::from_slice(&values).to_device(device);
        dp.all_reduce(&sums, ReduceOp::Sum)?.wait()?;
        let sums = sums.to_device(Device::Cpu).to_vec::<f64>();
        for (load, values) in self.0.iter_mut().zip(sums.chunks_exact(2 * experts)) {
            *load = ExpertLoad::from_values(values);
        }
        Ok(())
    }
}
