//! One safetensors file from tensors in memory: adapters, and the models of tests.

use std::io::{self, Write};
use std::path::Path;

use tandem_files::PartialFile;

use super::WeightsError;
use crate::element::FloatKind;
use crate::header::Header;

/// A tensor in memory.
#[derive(Debug, Clone, Copy)]
pub struct NamedTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [usize],
    /// Its elements, row-major.
    pub data: &'a [f32],
}

/// Writes one safetensors file, which appears whole and durable, or not at all.
///
/// # Errors
/// A file that cannot be written, or a tensor whose data do not fill its shape.
pub fn write_safetensors(
    path: &Path,
    tensors: &[NamedTensor<'_>],
    kind: FloatKind,
) -> Result<(), WeightsError> {
    let header_error = |problem| WeightsError::Header {
        file: path.to_owned(),
        problem,
    };
    for tensor in tensors {
        let elements: usize = tensor.shape.iter().product();
        if elements != tensor.data.len() {
            return Err(WeightsError::Shape {
                file: path.to_owned(),
                tensor: tensor.name.to_owned(),
                expected: tensor.shape.to_vec(),
                found: vec![tensor.data.len()],
            });
        }
    }
    let specs = tensors.iter().map(|t| (t.name, kind.dtype(), t.shape));
    let (first, _) = Header::encode(specs).map_err(header_error)?;
    let write = || -> io::Result<()> {
        let mut file = PartialFile::create(path)?;
        file.write_all(&first)?;
        for tensor in tensors {
            let mut bytes = Vec::new();
            kind.encode(tensor.data, &mut bytes);
            file.write_all(&bytes)?;
        }
        file.finish()
    };
    write().map_err(|source| WeightsError::Io {
        action: "write",
        file: path.to_owned(),
        source,
    })
}
