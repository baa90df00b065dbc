//! Opening libtorch: what is loaded is tried before anyone relies on it.

use std::sync::OnceLock;

use crate::error::TorchError;
use crate::library::{Torch, loaded};
use crate::locate::Surroundings;
use crate::operators;

/// Operators that the libtorch of this process lacks, or has in another form. Tried once.
static BROKEN: OnceLock<Vec<String>> = OnceLock::new();

/// Finds, loads and checks libtorch; or returns the one that this process has already, whatever `surroundings` say.
///
/// # Errors
/// There is none, it does not load, it is too old or incomplete, or parts of another one are loaded.
pub fn open(surroundings: &Surroundings) -> Result<&'static Torch, TorchError> {
    let torch = loaded(surroundings)?;
    match BROKEN.get_or_init(operators::broken).as_slice() {
        [] => Ok(torch),
        broken => Err(TorchError::Incomplete {
            folder: torch.libraries().to_path_buf(),
            missing: broken.to_vec(),
        }),
    }
}
