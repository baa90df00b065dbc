//! One safetensors file, written tensor by tensor: adapters, what a replay computes, the models of tests.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

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
    let announced = tensors.iter().map(|t| (t.name, t.shape));
    let mut file = SafetensorsWriter::create(path, announced, kind)?;
    for tensor in tensors {
        file.write(tensor.name, tensor.data)?;
    }
    file.finish()
}

/// One safetensors file whose tensors are announced first and then come one after the other, so that only one of them need be
/// in memory. It takes its name when it is whole; dropped before that, it leaves nothing.
#[derive(Debug)]
pub struct SafetensorsWriter {
    path: PathBuf,
    file: BufWriter<PartialFile>,
    kind: FloatKind,
    /// Name and shape of those that are still to come, the next one last.
    due: Vec<(String, Vec<usize>)>,
}

impl SafetensorsWriter {
    /// Begins the file with `tensors` (name and shape), in their order.
    ///
    /// # Errors
    /// A file that cannot be written, or more tensors than a header can name.
    pub fn create<'a>(
        path: &Path,
        tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>,
        kind: FloatKind,
    ) -> Result<Self, WeightsError> {
        let tensors: Vec<_> = tensors.into_iter().collect();
        let specs = tensors
            .iter()
            .map(|&(name, shape)| (name, kind.dtype(), shape));
        let (first, _) = Header::encode(specs).map_err(|problem| WeightsError::Header {
            file: path.to_owned(),
            problem,
        })?;
        let begin = || {
            let mut file = BufWriter::new(PartialFile::create(path)?);
            file.write_all(&first)?;
            Ok(file)
        };
        let file = begin().map_err(|source| cannot_write(path, source))?;
        let owned = |&(name, shape): &(&str, &[usize])| (name.to_owned(), shape.to_vec());
        Ok(Self {
            path: path.to_owned(),
            file,
            kind,
            due: tensors.iter().rev().map(owned).collect(),
        })
    }

    /// Writes the next tensor, which must be `name`.
    ///
    /// # Errors
    /// Another tensor is due, `data` do not fill its shape, or the file cannot be written.
    pub fn write(&mut self, name: &str, data: &[f32]) -> Result<(), WeightsError> {
        let Some((_, shape)) = self.due.pop_if(|(due, _)| due == name) else {
            let due = self.due.last().map(|(due, _)| due.as_str());
            return Err(
                self.unannounced(&format!("tensor {name:?} was written when {due:?} was due"))
            );
        };
        if shape.iter().product::<usize>() != data.len() {
            return Err(WeightsError::Shape {
                file: self.path.clone(),
                tensor: name.to_owned(),
                expected: shape,
                found: vec![data.len()],
            });
        }
        let mut bytes = Vec::new();
        self.kind.encode(data, &mut bytes);
        let written = self.file.write_all(&bytes);
        written.map_err(|source| cannot_write(&self.path, source))
    }

    /// Makes the file durable and gives it its name.
    ///
    /// # Errors
    /// Tensors are missing, or the file cannot be written.
    pub fn finish(self) -> Result<(), WeightsError> {
        if let Some((name, _)) = self.due.last() {
            return Err(self.unannounced(&format!("tensor {name:?} was announced but not written")));
        }
        let file = self.file.into_inner().map_err(|error| error.into_error());
        file.and_then(PartialFile::finish)
            .map_err(|source| cannot_write(&self.path, source))
    }

    fn unannounced(&self, problem: &str) -> WeightsError {
        WeightsError::Unannounced {
            folder: self.path.clone(),
            problem: problem.to_owned(),
        }
    }
}

fn cannot_write(path: &Path, source: io::Error) -> WeightsError {
    WeightsError::Io {
        action: "write",
        file: path.to_owned(),
        source,
    }
}
