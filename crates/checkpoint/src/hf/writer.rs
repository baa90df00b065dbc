//! Writing a whole model as a stream.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tandem_files::{sync_folder, sync_parent};
use tandem_mesh::ShardSlice;

use super::index::Index;
use super::{INDEX_FILE, SINGLE_FILE, WeightsError};
use crate::element::FloatKind;
use crate::header::Header;
use crate::names::FileName;

/// Elements that [`HfWriter`] holds at a time.
const WINDOW_ELEMENTS: usize = 4 << 20;

/// Writes a model folder tensor by tensor, holding a bounded part of one tensor at a time.
///
/// The folder is built beside its final place and renamed when it is whole; a writer that is dropped before
/// [`HfWriter::finish`] leaves nothing.
#[derive(Debug)]
pub struct HfWriter {
    folder: PathBuf,
    building: PathBuf,
    kind: FloatKind,
    shards: Vec<Shard>,
    /// Position of the next tensor: shard, and place in it.
    next: (usize, usize),
    open: Option<BufWriter<File>>,
    finished: bool,
}

/// The tensors of one file.
#[derive(Debug, Default)]
struct Shard {
    name: String,
    bytes: usize,
    tensors: Vec<(String, Vec<usize>)>,
}

impl HfWriter {
    /// Announces the tensors (name and shape) of the model that will be in `folder`, which must be absent or empty. Files
    /// hold at most `max_shard_bytes`, unless one tensor alone is larger.
    ///
    /// # Errors
    /// Something is in the way, a name appears twice, or the folder cannot be created.
    pub fn create(
        folder: &Path,
        tensors: Vec<(String, Vec<usize>)>,
        kind: FloatKind,
        max_shard_bytes: usize,
    ) -> Result<Self, WeightsError> {
        let is_free = match fs::read_dir(folder) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if !is_free {
            return Err(WeightsError::OutputExists {
                folder: folder.to_owned(),
            });
        }
        let mut names = HashSet::new();
        if let Some((name, _)) = tensors
            .iter()
            .find(|(name, _)| !names.insert(name.as_str()))
        {
            return Err(WeightsError::Unannounced {
                folder: folder.to_owned(),
                problem: format!("tensor {name:?} is announced twice"),
            });
        }
        let mut building = folder.as_os_str().to_owned();
        building.push(format!(".partial-{}", std::process::id()));
        let building = PathBuf::from(building);
        fs::create_dir_all(&building).map_err(|source| WeightsError::Io {
            action: "create",
            file: building.clone(),
            source,
        })?;
        Ok(Self {
            folder: folder.to_owned(),
            building,
            kind,
            shards: cut_into_shards(tensors, kind, max_shard_bytes),
            next: (0, 0),
            open: None,
            finished: false,
        })
    }

    /// Writes the next tensor, which must be `name`, asking `read` for one slice of it after the other.
    ///
    /// # Errors
    /// Another tensor is due, `read` failed, or the file cannot be written.
    pub fn write<E>(
        &mut self,
        name: &str,
        mut read: impl FnMut(&ShardSlice, &mut [f32]) -> Result<(), E>,
    ) -> Result<(), WeightsError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (shard, place) = self.next;
        let due = self.shards.get(shard).and_then(|s| s.tensors.get(place));
        let Some((_, shape)) = due.filter(|(due, _)| due == name) else {
            return Err(self.unannounced(format!(
                "tensor {name:?} was written when {} was due",
                due.map_or("none".to_owned(), |(due, _)| format!("{due:?}"))
            )));
        };
        let whole = ShardSlice::whole(shape);
        let elements = whole.numel();
        if self.open.is_none() {
            self.open = Some(self.begin_shard(shard)?);
        }
        let mut values = vec![0.0; elements.min(WINDOW_ELEMENTS)];
        let mut bytes = Vec::new();
        let mut start = 0;
        while start < elements {
            let end = elements.min(start + WINDOW_ELEMENTS);
            let slice = whole.clone().with_flat(start..end);
            read(&slice, &mut values[..end - start]).map_err(|error| WeightsError::Source {
                tensor: name.to_owned(),
                source: error.into(),
            })?;
            bytes.clear();
            self.kind.encode(&values[..end - start], &mut bytes);
            if let Some(file) = &mut self.open {
                file.write_all(&bytes)
                    .map_err(|source| self.cannot_write(shard, source))?;
            }
            start = end;
        }
        self.next.1 += 1;
        if self.next.1 == self.shards[shard].tensors.len() {
            self.end_shard(shard)?;
            self.next = (shard + 1, 0);
        }
        Ok(())
    }

    /// Adds a small file, such as config.json, to the folder.
    ///
    /// # Errors
    /// The name leads elsewhere or is taken, or the file cannot be written.
    pub fn add_file(&mut self, name: &str, bytes: &[u8]) -> Result<(), WeightsError> {
        let path = self.building.join(name);
        let write = || {
            FileName::new(name).map_err(io::Error::other)?;
            let mut file = File::create_new(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(|source| WeightsError::Io {
            action: "write",
            file: path.clone(),
            source,
        })
    }

    /// Writes the index, if there is more than one file, and gives the folder its name.
    ///
    /// # Errors
    /// Tensors are missing, or the folder cannot be written.
    pub fn finish(mut self) -> Result<(), WeightsError> {
        let (shard, place) = self.next;
        if let Some((name, _)) = self.shards.get(shard).and_then(|s| s.tensors.get(place)) {
            return Err(self.unannounced(format!("tensor {name:?} was announced but not written")));
        }
        if self.shards.len() > 1 {
            let index = self.index();
            let json = serde_json::to_vec_pretty(&index).map_err(|error| WeightsError::Index {
                file: self.folder.join(INDEX_FILE),
                problem: error.to_string(),
            })?;
            self.add_file(INDEX_FILE, &json)?;
        }
        let rename = || {
            sync_folder(&self.building)?;
            // The target was absent or empty when the writer began; an empty folder gives way to a rename.
            fs::rename(&self.building, &self.folder)?;
            sync_parent(&self.folder)
        };
        rename().map_err(|source| WeightsError::Io {
            action: "write",
            file: self.folder.clone(),
            source,
        })?;
        self.finished = true;
        Ok(())
    }

    fn begin_shard(&self, shard: usize) -> Result<BufWriter<File>, WeightsError> {
        let Shard { name, tensors, .. } = &self.shards[shard];
        let specs = tensors
            .iter()
            .map(|(name, shape)| (name.as_str(), self.kind.dtype(), shape.as_slice()));
        let path = self.building.join(name);
        let (first, _) = Header::encode(specs).map_err(|problem| WeightsError::Header {
            file: path.clone(),
            problem,
        })?;
        let begin = || {
            let mut file = BufWriter::new(File::create(&path)?);
            file.write_all(&first)?;
            Ok(file)
        };
        begin().map_err(|source| self.cannot_write(shard, source))
    }

    fn end_shard(&mut self, shard: usize) -> Result<(), WeightsError> {
        let Some(file) = self.open.take() else {
            return Ok(());
        };
        let end = || file.into_inner()?.sync_all();
        end().map_err(|source| self.cannot_write(shard, source))
    }

    fn index(&self) -> Index<String> {
        let total: usize = self.shards.iter().map(|shard| shard.bytes).sum();
        let weight_map = self
            .shards
            .iter()
            .flat_map(|shard| {
                let file = &shard.name;
                shard
                    .tensors
                    .iter()
                    .map(|(name, _)| (name.clone(), file.clone()))
            })
            .collect();
        Index {
            metadata: BTreeMap::from([("total_size".to_owned(), Value::from(total))]),
            weight_map,
        }
    }

    fn cannot_write(&self, shard: usize, source: io::Error) -> WeightsError {
        WeightsError::Io {
            action: "write",
            file: self.building.join(&self.shards[shard].name),
            source,
        }
    }

    fn unannounced(&self, problem: String) -> WeightsError {
        WeightsError::Unannounced {
            folder: self.folder.clone(),
            problem,
        }
    }
}

impl Drop for HfWriter {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_dir_all(&self.building);
        }
    }
}

/// Fills files in order, and names them as transformers does.
fn cut_into_shards(
    tensors: Vec<(String, Vec<usize>)>,
    kind: FloatKind,
    max_shard_bytes: usize,
) -> Vec<Shard> {
    let mut shards = vec![Shard::default()];
    for (name, shape) in tensors {
        let bytes = shape.iter().product::<usize>() * kind.size();
        let current = &shards[shards.len() - 1];
        if !current.tensors.is_empty() && current.bytes + bytes > max_shard_bytes {
            shards.push(Shard::default());
        }
        if let Some(shard) = shards.last_mut() {
            shard.bytes += bytes;
            shard.tensors.push((name, shape));
        }
    }
    let count = shards.len();
    for (shard, number) in shards.iter_mut().zip(1..) {
        shard.name = if count == 1 {
            SINGLE_FILE.to_owned()
        } else {
            format!("model-{number:05}-of-{count:05}.safetensors")
        };
    }
    shards
}
