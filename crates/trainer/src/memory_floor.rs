//! The other floor under a step's time: the bytes that an update must move, at the rate at which this machine moves them.

use tandem_parallel::FlatUnit;
use tandem_tensor::device::synchronize;
use tandem_tensor::{Accumulate, Device, Kind, Tensor, linear};

use crate::engine::Engine;
use crate::stopwatch::Seconds;
use crate::units;

/// Bytes between memory and processor that a step of one micro-batch cannot avoid on this rank, besides the operands of its matrix
/// products.
///
/// Every gradient is written. For what this rank updates, gradients are read for their norm and again for the update, and
/// master weights and two moments are read and written, all fp32; and the parameters are written in the compute kind.
///
/// Over a column of several ranks, whoever sums a gradient reads that of each rank and writes the sum, of which the norm can be
/// taken at the same time. What other ranks own of the parameters is read from them and written here, each time that it is gathered.
pub fn bytes(engine: &Engine) -> u64 {
    let units = engine.units.iter().enumerate();
    units
        .map(|(index, unit)| of_unit(unit, gathers(engine, index)))
        .sum()
}

/// How often a step gathers the parameters of the unit `index`, where this rank does not have them all.
fn gathers(engine: &Engine, index: usize) -> u64 {
    let unit = &engine.units[index];
    let is_kept = unit.kept_parameters().is_some();
    if is_kept {
        // After its update.
        return u64::from(unit.is_trained());
    }
    let layers = units::of_layer(0)..units::of_layer(engine.layers.len());
    let of_experts = unit.layout().experts_of.map(units::of_layer);
    let place = of_experts.unwrap_or(index);
    // The last layer stays for backward, as the embedding and the head are needed once.
    let again = engine.strategy.reshard_after_forward && place + 1 < layers.end;
    1 + u64::from(again && layers.contains(&place))
}

fn of_unit(unit: &FlatUnit, gathers: u64) -> u64 {
    let size = |kind: Kind| kind.elt_size_in_bytes() as u64;
    let (whole, owned) = (unit.layout().numel as u64, unit.owned().len() as u64);
    let ranks = unit.column().size() as u64;
    let precision = unit.precision();
    let (param, wire) = (size(precision.param), size(precision.reduce));
    let gathered = gathers * 2 * param * (whole - owned);
    if !unit.is_trained() {
        return gathered;
    }
    let summed = match ranks {
        // Read for the norm.
        1 => 4 * owned,
        _ => {
            let part = whole.div_ceil(ranks);
            let joined = if owned == whole {
                2 * wire * (whole - part)
            } else {
                0
            };
            (ranks * wire + 4) * part + joined
        }
    };
    let compute = match precision.param {
        // The master weights are what computes.
        Kind::Float => 0,
        _ => param,
    };
    gathered + 4 * whole + summed + (4 + 3 * (4 + 4) + compute) * owned
}

/// How long this rank takes to move a byte in `a += b` over vectors much longer than the caches, the best of `repeats` runs.
///
/// Ranks share the memory, and in a step all of them move bytes at the same time. So they `meet` before each run: of ranks that
/// measure one after the other, each would have all of it.
///
/// # Errors
/// Those of `meet`.
pub fn seconds_per_byte<E>(
    device: Device,
    repeats: usize,
    meet: impl Fn() -> Result<(), E>,
) -> Result<Seconds, E> {
    const ELEMENTS: i64 = 32 << 20;
    const BYTES: f64 = 3.0 * 4.0 * ELEMENTS as f64;
    let filled = |value: f64| Tensor::full([ELEMENTS], value, (Kind::Float, device));
    let (a, b) = (filled(1.0), filled(1e-3));
    let add = || linear::store(&a, &b, Accumulate::Add);
    let once = || {
        meet()?;
        Ok(Seconds::of(&|| synchronize(device), &add))
    };
    // Warms up.
    once()?;
    let mut best = once()?;
    for _ in 1..repeats {
        best = best.least(once()?);
    }
    Ok(best * (1.0 / BYTES))
}
