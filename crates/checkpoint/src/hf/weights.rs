//! Reading a model's weights.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use tandem_mesh::ShardSlice;

use super::index::Index;
use super::{INDEX_FILE, SINGLE_FILE, WeightsError, tensor_list};
use crate::header::Entry;
use crate::names::FileName;
use crate::tensor_file::TensorFile;

/// The tensors of a Hugging Face model folder. Only headers are in memory; [`HfWeights::read`] fetches what a rank needs.
#[derive(Debug)]
pub struct HfWeights {
    folder: PathBuf,
    files: Vec<TensorFile>,
    /// Tensor name to position in `files`.
    owners: HashMap<String, usize>,
}

impl HfWeights {
    /// Opens `model.safetensors`, or else the files that `model.safetensors.index.json` names, in the order of
    /// preference of transformers.
    ///
    /// # Errors
    /// Nothing to open, a header that does not add up, an index that names what is not there, or a tensor in two files.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let folder = folder.as_ref();
        let single = folder.join(SINGLE_FILE);
        if single.is_file() {
            return Self::from_files(folder, vec![TensorFile::open(&single)?]);
        }
        let index_path = folder.join(INDEX_FILE);
        if !index_path.is_file() {
            return Err(no_weights(folder));
        }
        let index = Index::read(&index_path)?;
        let mut names: Vec<&FileName> = index.weight_map.values().collect();
        names.sort();
        names.dedup();
        let mut files = Vec::with_capacity(names.len());
        for &name in &names {
            let path = folder.join(name);
            if !path.is_file() {
                let tensor = index.weight_map.iter().find(|(_, file)| *file == name);
                return Err(WeightsError::IndexedFileMissing {
                    index: index_path,
                    file: name.to_string(),
                    tensor: tensor.map(|(tensor, _)| tensor.clone()).unwrap_or_default(),
                });
            }
            files.push(TensorFile::open(&path)?);
        }
        for (tensor, name) in &index.weight_map {
            let has_it = names
                .binary_search(&name)
                .is_ok_and(|position| files[position].entry(tensor).is_ok());
            if !has_it {
                return Err(WeightsError::IndexedTensorMissing {
                    index: index_path,
                    file: name.to_string(),
                    tensor: tensor.clone(),
                });
            }
        }
        Self::from_files(folder, files)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Names of all tensors, file by file in the order of their bytes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries().map(|(_, entry)| entry.name.as_str())
    }

    /// Shape of the tensor `name`.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn shape(&self, name: &str) -> Result<&[usize], WeightsError> {
        Ok(&self.locate(name)?.1.shape)
    }

    /// Kind of the elements of the tensor `name`.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn dtype(&self, name: &str) -> Result<Dtype, WeightsError> {
        Ok(self.locate(name)?.1.dtype)
    }

    /// Checks that the tensors are exactly `expected` (name and shape), but for extra ones that `ignorable` names.
    ///
    /// # Errors
    /// [`WeightsError::NotTheModel`] with all that is missing, extra or mis-shaped.
    pub fn expect(
        &self,
        expected: &[(String, Vec<usize>)],
        ignorable: &dyn Fn(&str) -> bool,
    ) -> Result<(), WeightsError> {
        tensor_list::compare(self, expected, ignorable)
    }

    /// Reads `slice` of the tensor `name` as `f32`; only the ranges that the slice touches are read.
    ///
    /// # Errors
    /// As [`TensorFile::read`].
    ///
    /// # Panics
    /// When `out` has another number of elements than `slice`.
    pub fn read(
        &self,
        name: &str,
        slice: &ShardSlice,
        out: &mut [f32],
    ) -> Result<(), WeightsError> {
        self.locate(name)?.0.read(name, slice, out)
    }

    /// The tensor `name` and the file that holds it.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn locate(&self, name: &str) -> Result<(&TensorFile, &Entry), WeightsError> {
        let Some(&position) = self.owners.get(name) else {
            return Err(WeightsError::NoSuchTensor {
                file: self.folder.clone(),
                tensor: name.to_owned(),
            });
        };
        let file = &self.files[position];
        Ok((file, file.entry(name)?))
    }

    /// All tensors with their files.
    pub fn entries(&self) -> impl Iterator<Item = (&TensorFile, &Entry)> {
        let of_file = |file: &TensorFile| file.entries().len();
        debug_assert_eq!(
            self.files.iter().map(of_file).sum::<usize>(),
            self.owners.len()
        );
        self.files
            .iter()
            .flat_map(|file| file.entries().iter().map(move |entry| (file, entry)))
    }

    fn from_files(folder: &Path, files: Vec<TensorFile>) -> Result<Self, WeightsError> {
        let mut owners: HashMap<String, usize> = HashMap::new();
        for (position, file) in files.iter().enumerate() {
            for entry in file.entries() {
                if let Some(other) = owners.insert(entry.name.clone(), position) {
                    return Err(WeightsError::InTwoFiles {
                        tensor: entry.name.clone(),
                        first: files[other].path().to_owned(),
                        second: file.path().to_owned(),
                    });
                }
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            files,
            owners,
        })
    }
}

fn no_weights(folder: &Path) -> WeightsError {
    let has_pickle = ["pytorch_model.bin", "pytorch_model.bin.index.json"]
        .iter()
        .any(|name| folder.join(name).exists());
    let hint = if !folder.is_dir() {
        ": it is not a folder"
    } else if has_pickle {
        "; convert its pytorch_model.bin, for example with `save_pretrained(..., safe_serialization=True)`"
    } else {
        ""
    };
    WeightsError::NoWeights {
        folder: folder.to_owned(),
        hint,
    }
}
