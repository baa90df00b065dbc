//! The safetensors files of a recorded case: small, so they are read and written whole.

use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use tandem_run::failure::{Failure, Outcome};

use super::verdict::Tensors;

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

/// Reads all fp32 tensors whose name starts with `prefix`, under their names without it.
pub fn read_floats(path: &Path, prefix: &str) -> Outcome<Tensors> {
    with_file(path, |file| {
        let mut tensors = Tensors::new();
        for (full_name, view) in file.tensors() {
            let Some(name) = full_name.strip_prefix(prefix) else {
                continue;
            };
            if view.dtype() != Dtype::F32 {
                let message = format!("its type is {:?}, not F32", view.dtype());
                return Err(in_file(path, &full_name, message));
            }
            let values = view
                .data()
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect();
            tensors.insert(name.to_owned(), values);
        }
        Ok(tensors)
    })
}

/// A tensor to write.
#[derive(Debug, Clone)]
pub struct Floats {
    /// Its name in the file.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub values: Vec<f32>,
}

/// Writes fp32 tensors as one file, which appears whole or not at all.
pub fn write_floats(path: &Path, tensors: &[Floats]) -> Outcome<()> {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|t| t.values.iter().flat_map(|v| v.to_le_bytes()).collect())
        .collect();
    let mut views = Vec::with_capacity(tensors.len());
    for (tensor, bytes) in tensors.iter().zip(&bytes) {
        let view = TensorView::new(Dtype::F32, tensor.shape.clone(), bytes)
            .map_err(|error| in_file(path, &tensor.name, error))?;
        views.push((tensor.name.as_str(), view));
    }
    let file = serialize(views, None).map_err(|error| in_file(path, "", error))?;
    tandem_files::write_whole(path, &file)
        .map_err(|error| Failure::other(format!("cannot write {}: {error}", path.display())))
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
