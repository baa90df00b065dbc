//! Numbers of a step that must be finite.

use tandem_comm::all_gather_numbers;

use crate::engine::Engine;
use crate::error::TrainError;

/// Every rank sees the same `value`, so all of them stop here together; a second collective finds who was first. Only then
/// a rank looks at its own part.
pub(crate) fn refuse_non_finite(
    engine: &Engine,
    what: &'static str,
    value: f64,
    own_is_finite: impl FnOnce() -> bool,
    step: u64,
) -> Result<(), TrainError> {
    if value.is_finite() {
        return Ok(());
    }
    let own = [i64::from(!own_is_finite())];
    let all = all_gather_numbers(engine.world.as_ref(), &own, engine.device)?;
    let ranks = (0..all.len()).filter(|&rank| all[rank] == [1]).collect();
    Err(TrainError::NotFinite {
        what,
        value,
        step,
        ranks,
    })
}
