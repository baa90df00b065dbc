//! Reading a model's weights.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use tandem_mesh::ShardSlice;

use super::index::Index;
use super::tensor_file::TensorFile;
use super::{INDEX_FILE, SINGLE_FILE, WeightsError};
use crate::header::Entry;
use crate::names::FileName;

/// The tensors of a Hugging Face model folder. Only headers are in memory; [`HfWeights::read`] fetches what a rank needs.
#[derive(Debug)]
pub struct HfWeights {
    folder: PathBuf,
    files: Vec<TensorFile>,
    /// What the tensors of each file are called here: as in the file, unless `fit_names` has changed it.
    names: Vec<Vec<String>>,
    /// Tensor name to position in `files`, and in the file.
    places: HashMap<String, (usize, usize)>,
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

    /// Opens the one file `name` in `folder`.
    ///
    /// # Errors
    /// It cannot be read, or its header does not add up.
    pub fn open_file(folder: impl AsRef<Path>, name: &str) -> Result<Self, WeightsError> {
        let folder = folder.as_ref();
        Self::from_files(folder, vec![TensorFile::open(&folder.join(name))?])
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Names of all tensors, file by file in the order of their bytes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries().map(|(name, ..)| name)
    }

    /// Whether there is a tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
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

    /// Calls the tensor `old` `new` from now on, unless there is one of that name.
    pub fn rename(&mut self, old: &str, new: &str) {
        if self.has(new) {
            return;
        }
        if let Some(place) = self.places.remove(old) {
            self.names[place.0][place.1] = new.to_owned();
            self.places.insert(new.to_owned(), place);
        }
    }

    /// Whether the tensors `a` and `b` have the same shape and values.
    ///
    /// # Errors
    /// As [`HfWeights::read`].
    pub fn are_equal(&self, a: &str, b: &str) -> Result<bool, WeightsError> {
        const WINDOW: usize = 1 << 20;
        if self.shape(a)? != self.shape(b)? {
            return Ok(false);
        }
        let whole = ShardSlice::whole(self.shape(a)?);
        let elements = whole.numel();
        let mut values = [
            vec![0.0; WINDOW.min(elements)],
            vec![0.0; WINDOW.min(elements)],
        ];
        for start in (0..elements).step_by(WINDOW) {
            let end = elements.min(start + WINDOW);
            let slice = whole.clone().with_flat(start..end);
            for (name, out) in [a, b].into_iter().zip(&mut values) {
                self.read(name, &slice, &mut out[..end - start])?;
            }
            let bits = |values: &Vec<f32>| -> Vec<u32> {
                values[..end - start]
                    .iter()
                    .map(|value| value.to_bits())
                    .collect()
            };
            if bits(&values[0]) != bits(&values[1]) {
                return Ok(false);
            }
        }
        Ok(true)
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
        let (file, entry) = self.locate(name)?;
        file.read(&entry.name, slice, out)
    }

    /// The tensor `name` and the file that holds it.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn locate(&self, name: &str) -> Result<(&TensorFile, &Entry), WeightsError> {
        let Some(&(file, position)) = self.places.get(name) else {
            return Err(WeightsError::NoSuchTensor {
                file: self.folder.clone(),
                tensor: name.to_owned(),
            });
        };
        let file = &self.files[file];
        Ok((file, &file.entries()[position]))
    }

    /// All tensors: what they are called here, their files, and what is there.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &TensorFile, &Entry)> {
        self.files
            .iter()
            .zip(&self.names)
            .flat_map(|(file, names)| {
                let entries = names.iter().zip(file.entries());
                entries.map(move |(name, entry)| (name.as_str(), file, entry))
            })
    }

    /// Calls the tensors of each file `names` from now on.
    ///
    /// # Errors
    /// Two of them have one name.
    pub(super) fn set_file_names(&mut self, names: Vec<Vec<String>>) -> Result<(), WeightsError> {
        self.places = places(&self.files, &names)?;
        self.names = names;
        Ok(())
    }

    /// What the tensors of each file are called.
    pub(super) fn file_names(&self) -> impl Iterator<Item = &[String]> {
        self.names.iter().map(Vec::as_slice)
    }

    fn from_files(folder: &Path, files: Vec<TensorFile>) -> Result<Self, WeightsError> {
        let of_file = |file: &TensorFile| -> Vec<String> {
            let entries = file.entries().iter();
            entries.map(|entry| entry.name.clone()).collect()
        };
        let names: Vec<Vec<String>> = files.iter().map(of_file).collect();
        Ok(Self {
            places: places(&files, &names)?,
            folder: folder.to_owned(),
            files,
            names,
        })
    }
}

/// Where the tensors are.
fn places(
    files: &[TensorFile],
    names: &[Vec<String>],
) -> Result<HashMap<String, (usize, usize)>, WeightsError> {
    let mut places = HashMap::new();
    for (file, names) in names.iter().enumerate() {
        for (position, name) in names.iter().enumerate() {
            if let Some((other, _)) = places.insert(name.clone(), (file, position)) {
                return Err(WeightsError::InTwoFiles {
                    tensor: name.clone(),
                    first: files[other].path().to_owned(),
                    second: files[file].path().to_owned(),
                });
            }
        }
    }
    Ok(places)
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
