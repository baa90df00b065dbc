//! The tensors of a case and of a replay, read from their files a piece at a time: a model's need not fit into memory.

use std::ops::Range;
use std::path::Path;

use tandem_checkpoint::{Entry, HfWeights, TensorFile};
use tandem_run::failure::{Failure, Outcome};

/// Floating-point tensors by their names.
#[derive(Debug)]
pub struct Tensors {
    source: Source,
    /// What their names in the file begin with.
    prefix: &'static str,
}

#[derive(Debug)]
enum Source {
    File(TensorFile),
    Model(HfWeights),
}

impl Tensors {
    /// Those of a file whose names begin with `prefix`, under their names without it.
    ///
    /// # Errors
    /// The file cannot be read, or is no safetensors file.
    pub fn of_file(path: &Path, prefix: &'static str) -> Outcome<Self> {
        let file = TensorFile::open(path).map_err(Failure::other)?;
        let source = Source::File(file);
        Ok(Self { source, prefix })
    }

    /// The weights of a model.
    pub fn of_model(weights: HfWeights) -> Self {
        let source = Source::Model(weights);
        Self { source, prefix: "" }
    }

    /// Their names.
    pub fn names(&self) -> Vec<&str> {
        match &self.source {
            Source::Model(weights) => weights.names().collect(),
            Source::File(file) => {
                let names = file.entries().iter();
                names
                    .filter_map(|entry| entry.name.strip_prefix(self.prefix))
                    .collect()
            }
        }
    }

    /// How many elements a tensor has; `None` where there is none of this name.
    pub fn elements(&self, name: &str) -> Option<usize> {
        let (_, entry) = self.locate(name)?;
        Some(entry.shape.iter().product())
    }

    /// The elements `range` of a tensor that is there.
    ///
    /// # Errors
    /// The file cannot be read, or the tensor's numbers are no floating-point ones.
    pub fn read(&self, name: &str, range: Range<usize>) -> Outcome<Vec<f64>> {
        let Some((file, entry)) = self.locate(name) else {
            return Err(Failure::other(format!("there is no tensor {name:?}")));
        };
        file.read_f64(&entry.name, range).map_err(Failure::other)
    }

    fn locate(&self, name: &str) -> Option<(&TensorFile, &Entry)> {
        match &self.source {
            Source::Model(weights) => weights.locate(name).ok(),
            Source::File(file) => {
                let entry = file.entry(&format!("{}{name}", self.prefix)).ok()?;
                Some((file, entry))
            }
        }
    }
}
