//! The norm of the whole model's gradient, and its clip factor.

use tandem_comm::{ProcessGroup, ReduceOp};
use tandem_tensor::Device;
use tandem_tensor::sum_of_squares::SumOfSquares;

use crate::error::ParallelError;
use crate::flat_unit::FlatUnit;

/// L2 norm over all parameters, every element counted once whatever the mesh: one fp64 number summed over the world, which is all
/// that the host reads.
///
/// # Errors
/// When a peer fails.
pub fn global_grad_norm(
    units: &[FlatUnit],
    world: &dyn ProcessGroup,
    device: Device,
) -> Result<f64, ParallelError> {
    let mut own = SumOfSquares::default();
    for unit in units {
        own.merge(unit.gradient_sum_of_squares());
    }
    let total = own.into_tensor(device);
    world.all_reduce(&total, ReduceOp::Sum)?.wait()?;
    let total = total.get(0).double_value();
    world.check()?;
    Ok(total.sqrt())
}

/// Whether what this rank counts of the gradient is finite.
pub fn own_gradient_is_finite(units: &[FlatUnit]) -> bool {
    let sum_of = |unit: &FlatUnit| unit.gradient_sum_of_squares().value();
    units.iter().all(|unit| sum_of(unit).is_finite())
}
