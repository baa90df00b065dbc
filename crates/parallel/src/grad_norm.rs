//! The norm of the whole model's gradient, and its clip factor.

use tandem_comm::{ProcessGroup, ReduceOp};
use tandem_tensor::{Device, Kind, Tensor};

use crate::error::ParallelError;
use crate::flat_unit::FlatUnit;

/// L2 norm over all parameters, every element counted once whatever the mesh: one fp64 number summed over the world.
///
/// # Errors
/// When a peer fails.
pub fn global_grad_norm(
    units: &[FlatUnit],
    world: &dyn ProcessGroup,
    device: Device,
) -> Result<f64, ParallelError> {
    let local: f64 = units.iter().map(FlatUnit::gradient_sum_of_squares).sum();
    let total = Tensor::from_slice(&[local])
        .to_kind(Kind::Double)
        .to_device(device);
    world.all_reduce(&total, ReduceOp::Sum)?.wait()?;
    Ok(total.get(0).double_value().sqrt())
}
