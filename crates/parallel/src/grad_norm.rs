//! The norm of the whole model's gradient.

use tandem_comm::{ProcessGroup, ReduceOp};
use tandem_tensor::sum_of_squares::SumOfSquares;
use tandem_tensor::{Device, Tensor};

use crate::error::ParallelError;
use crate::flat_unit::FlatUnit;

/// The squared L2 norm over all parameters, every element counted once whatever the mesh: fp64 `[1]` on `device`, summed over the
/// world. Nothing waits for it, so whoever reads it asks the world then whether it is one ([`ProcessGroup::check`]).
///
/// A rank adds its `doubt`, fp64 `[1]`, where it has one: 0, or NaN where its gradient is good for nothing, so that all ranks know.
///
/// # Errors
/// When a peer fails.
pub fn global_squared_norm(
    units: &[FlatUnit],
    world: &dyn ProcessGroup,
    device: Device,
    doubt: Option<&Tensor>,
) -> Result<Tensor, ParallelError> {
    let mut own = SumOfSquares::default();
    for unit in units {
        own.merge(unit.gradient_sum_of_squares());
    }
    let mut total = own.into_tensor(device);
    if let Some(doubt) = doubt {
        total += doubt;
    }
    world.all_reduce(&total, ReduceOp::Sum)?.wait()?;
    Ok(total)
}

/// Whether what this rank counts of the gradient is finite.
pub fn own_gradient_is_finite(units: &[FlatUnit]) -> bool {
    let sum_of = |unit: &FlatUnit| unit.gradient_sum_of_squares().value();
    units.iter().all(|unit| sum_of(unit).is_finite())
}
