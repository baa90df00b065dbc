//! The other floor under a step's time: the bytes that an update must move, at the rate at which this machine moves them.

use std::time::Instant;

use tandem_tensor::device::synchronize;
use tandem_tensor::{Accumulate, Device, Kind, Tensor, linear};

use crate::engine::Engine;

/// Bytes between memory and processor that a step cannot avoid on this rank, besides the operands of its matrix products.
///
/// Every gradient is written. For what this rank updates, gradients are read for their norm and again for the update, and
/// master weights and two moments are read and written, all fp32; and the parameters are written in the compute kind.
pub fn bytes(engine: &Engine) -> u64 {
    let compute = match engine.strategy.precision.param {
        // The master weights are what computes.
        Kind::Float => 0,
        kind => kind.elt_size_in_bytes() as u64,
    };
    let per_owned = 2 * 4 + 3 * (4 + 4) + compute;
    let of_unit = |whole: u64, owned: u64| 4 * whole + per_owned * owned;
    engine
        .units
        .iter()
        .filter(|unit| unit.is_trained())
        .map(|unit| of_unit(unit.layout().numel as u64, unit.owned().len() as u64))
        .sum()
}

/// Bytes per second that this rank moves in `a += b` over vectors much longer than the caches, the best of `repeats` runs.
/// All ranks measure at the same time, as they share the memory.
pub fn rate(device: Device, repeats: usize) -> f64 {
    const ELEMENTS: i64 = 32 << 20;
    const BYTES: f64 = 3.0 * 4.0 * ELEMENTS as f64;
    let filled = |value: f64| Tensor::full([ELEMENTS], value, (Kind::Float, device));
    let (a, b) = (filled(1.0), filled(1e-3));
    synchronize(device);
    let seconds = (0..repeats.max(1)).map(|_| {
        let start = Instant::now();
        linear::store(&a, &b, Accumulate::Add);
        synchronize(device);
        start.elapsed().as_secs_f64()
    });
    BYTES / seconds.fold(f64::INFINITY, f64::min)
}
