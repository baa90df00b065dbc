//! The batches of a recorded case, which are read whole: numbers of tokens.

use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors};
use tandem_run::failure::{Failure, Outcome};

/// An i64 tensor of a file.
#[derive(Debug, Clone)]
pub struct Integers {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub values: Vec<i64>,
}

/// Reads the i64 tensors `names`.
pub fn read_integers<const N: usize>(path: &Path, names: [&str; N]) -> Outcome<[Integers; N]> {
    with_file(path, |file| {
        let mut found = Vec::with_capacity(N);
        for name in names {
            let view = file
                .tensor(name)
                .map_err(|error| in_file(path, name, error))?;
            if view.dtype() != Dtype::I64 {
                return Err(in_file(
                    path,
                    name,
                    format!("its type is {:?}, not I64", view.dtype()),
                ));
            }
            let values = view
                .data()
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
                .collect();
            found.push(Integers {
                shape: view.shape().to_vec(),
                values,
            });
        }
        found
            .try_into()
            .map_err(|_| in_file(path, "", "tensors are missing"))
    })
}

/// Whether a file has a tensor of this name.
pub fn has(path: &Path, name: &str) -> Outcome<bool> {
    with_file(path, |file| Ok(file.tensor(name).is_ok()))
}

fn with_file<T>(path: &Path, use_file: impl FnOnce(&SafeTensors<'_>) -> Outcome<T>) -> Outcome<T> {
    let bytes = std::fs::read(path)
        .map_err(|error| Failure::other(format!("cannot read {}: {error}", path.display())))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| Failure::other(format!("{}: {error}", path.display())))?;
    use_file(&file)
}

fn in_file(path: &Path, tensor: &str, problem: impl std::fmt::Display) -> Failure {
    Failure::other(format!("{}: tensor {tensor:?}: {problem}", path.display()))
}
