//! What a checkpoint holds, and whether it still holds it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::digest::Digest;
use crate::error::CheckpointError;
use crate::header::{Header, LENGTH_BYTES};
use crate::manifest::{FileRecord, Manifest};
use crate::piece::Role;
use crate::reader::Reader;

/// Bytes that are read and hashed at a time.
const WINDOW_BYTES: usize = 4 << 20;

/// What a checkpoint holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Contents {
    /// Tensors by name, with their global shapes.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// Elements of each role, all tensors together.
    pub elements: BTreeMap<Role, u64>,
    /// Bytes of all files but the manifest.
    pub bytes: u64,
    /// The files.
    pub files: Vec<FileRecord>,
}

/// One file, read from end to end.
#[derive(Debug)]
pub struct FileCheck {
    /// The file.
    pub file: FileRecord,
    /// What is wrong with it: nothing, if it is empty.
    pub problems: Vec<CheckpointError>,
}

impl Manifest {
    /// A summary.
    pub fn contents(&self) -> Contents {
        let mut elements = BTreeMap::new();
        for tensor in self.tensors.values() {
            for role in tensor.roles.keys() {
                *elements.entry(role.clone()).or_default() +=
                    tensor.shape.iter().product::<usize>() as u64;
            }
        }
        Contents {
            shapes: self
                .tensors
                .iter()
                .map(|(name, tensor)| (name.clone(), tensor.shape.clone()))
                .collect(),
            elements,
            bytes: self.files.iter().map(|file| file.bytes).sum(),
            files: self.files.clone(),
        }
    }
}

impl Reader {
    /// Reads all files and holds every byte against the manifest. `progress` is told the bytes of every read.
    ///
    /// A file that is damaged is no error of this call: its [`FileCheck`] says which tensors are hit.
    pub fn verify(&self, mut progress: impl FnMut(u64)) -> Vec<FileCheck> {
        let files = &self.manifest().files;
        files
            .iter()
            .map(|file| FileCheck {
                file: file.clone(),
                problems: self.check_file(file, &mut progress),
            })
            .collect()
    }

    fn check_file(
        &self,
        record: &FileRecord,
        progress: &mut impl FnMut(u64),
    ) -> Vec<CheckpointError> {
        match self.hash(record, progress) {
            Err(error) => vec![error],
            Ok(digest) if digest == record.blake3 => {
                self.check_header(record).err().into_iter().collect()
            }
            Ok(_) => {
                let mut problems = self.damaged_chunks(record);
                if problems.is_empty() {
                    problems.push(self.damaged_file(record, "its header was changed".to_owned()));
                }
                problems
            }
        }
    }

    fn hash(
        &self,
        record: &FileRecord,
        progress: &mut impl FnMut(u64),
    ) -> Result<Digest, CheckpointError> {
        let file = self.file(&record.name)?;
        let mut hasher = blake3::Hasher::new();
        let mut window = vec![0; WINDOW_BYTES];
        let mut position = 0;
        while position < record.bytes {
            let length = (record.bytes - position).min(WINDOW_BYTES as u64);
            let window = &mut window[..length as usize];
            file.read_at(position, window)?;
            hasher.update(window);
            position += length;
            progress(length);
        }
        Ok(Digest::finish(&hasher))
    }

    fn damaged_chunks(&self, record: &FileRecord) -> Vec<CheckpointError> {
        let pieces = self.manifest().pieces();
        pieces
            .filter(|(_, _, _, piece)| piece.file == record.name)
            .flat_map(|(tensor, _, role, piece)| {
                let mut bytes = Vec::new();
                (0..piece.chunks.len()).filter_map(move |index| {
                    bytes.resize(self.chunk_length(piece, index), 0);
                    self.read_chunk(tensor, role, piece, index, &mut bytes)
                        .err()
                })
            })
            .collect()
    }

    /// Whether the safetensors header says of every piece what the manifest says.
    fn check_header(&self, record: &FileRecord) -> Result<(), CheckpointError> {
        let file = self.file(&record.name)?;
        let mut first = [0; LENGTH_BYTES];
        file.read_at(0, &mut first)?;
        let damaged =
            |error| self.damaged_file(record, format!("its header is not valid: {error}"));
        let length = Header::length(first, record.bytes).map_err(damaged)?;
        let mut json = vec![0; length];
        file.read_at(LENGTH_BYTES as u64, &mut json)?;
        let header = Header::parse(&json, record.bytes).map_err(damaged)?;
        let begins: BTreeMap<&str, u64> = header
            .entries
            .iter()
            .map(|entry| (entry.name.as_str(), entry.bytes.start))
            .collect();
        for (_, _, _, piece) in self.manifest().pieces().filter(|p| p.3.file == record.name) {
            if begins.get(piece.key.as_str()) != Some(&piece.begin) {
                let problem = format!("the manifest has {:?} elsewhere than its header", piece.key);
                return Err(self.damaged_file(record, problem));
            }
        }
        Ok(())
    }

    fn damaged_file(&self, record: &FileRecord, problem: String) -> CheckpointError {
        CheckpointError::Damaged {
            location: self.locate(&record.name),
            problem,
        }
    }
}
