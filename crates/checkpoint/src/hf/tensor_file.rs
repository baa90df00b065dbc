//! One safetensors file, read by positions.
//!
//! Positioned reads, not a memory map: a file that is truncated while it is mapped kills the process with SIGBUS, while a
//! read returns an error that can name the file. Only the needed ranges are read either way, and the page cache serves both.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use safetensors::Dtype;
use tandem_mesh::ShardSlice;

use super::WeightsError;
use crate::element;
use crate::header::{Entry, Header, HeaderError, LENGTH_BYTES};
use crate::read_plan::{Block, blocks};

/// From here on several threads read and convert.
const PARALLEL_ELEMENTS: usize = 1 << 20;

/// The kinds that have an [`element::float_size`].
const FLOAT_KINDS: &str = "f64, f32, f16 or bf16";

/// An open safetensors file whose header was checked.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    header: Header,
    positions: HashMap<String, usize>,
}

impl TensorFile {
    /// Opens `path` and checks its header against its size.
    ///
    /// # Errors
    /// The file cannot be read, or its header does not add up ([`HeaderError`]).
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let io_error = |source| WeightsError::Io {
            action: "read",
            file: path.to_owned(),
            source,
        };
        let header_error = |problem| WeightsError::Header {
            file: path.to_owned(),
            problem,
        };
        // Opening a pipe would wait for ever.
        if !path.metadata().map_err(io_error)?.is_file() {
            return Err(io_error(io::Error::other("it is not a regular file")));
        }
        let file = File::open(path).map_err(io_error)?;
        let size = file.metadata().map_err(io_error)?.len();
        if size < LENGTH_BYTES as u64 {
            return Err(header_error(HeaderError::TooShort { size }));
        }
        let mut first = [0; LENGTH_BYTES];
        file.read_exact_at(&mut first, 0).map_err(io_error)?;
        let length = Header::length(first, size).map_err(header_error)?;
        let mut json = vec![0; length];
        file.read_exact_at(&mut json, LENGTH_BYTES as u64)
            .map_err(io_error)?;
        let header = Header::parse(&json, size).map_err(header_error)?;
        let positions = header
            .entries
            .iter()
            .enumerate()
            .map(|(position, entry)| (entry.name.clone(), position))
            .collect();
        Ok(Self {
            path: path.to_owned(),
            file,
            header,
            positions,
        })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its tensors, in the order of their bytes.
    pub fn entries(&self) -> &[Entry] {
        &self.header.entries
    }

    /// The tensor `name`.
    ///
    /// # Errors
    /// The file has none of this name.
    pub fn entry(&self, name: &str) -> Result<&Entry, WeightsError> {
        let position = self.positions.get(name);
        position
            .map(|&position| &self.header.entries[position])
            .ok_or_else(|| WeightsError::NoSuchTensor {
                file: self.path.clone(),
                tensor: name.to_owned(),
            })
    }

    /// Reads `slice` of the floating-point tensor `name` (f64, f32, f16 or bf16) as `f32`.
    ///
    /// # Errors
    /// No such tensor, another shape than the slice's, not a floating-point kind, or a failed read.
    ///
    /// # Panics
    /// When `out` has another number of elements than `slice`.
    pub fn read(
        &self,
        name: &str,
        slice: &ShardSlice,
        out: &mut [f32],
    ) -> Result<(), WeightsError> {
        assert_eq!(out.len(), slice.numel(), "buffer for a slice of {name}");
        let entry = self.entry(name)?;
        if entry.shape != slice.global_shape {
            return Err(WeightsError::Shape {
                file: self.path.clone(),
                tensor: name.to_owned(),
                expected: slice.global_shape.clone(),
                found: entry.shape.clone(),
            });
        }
        let Some(element_bytes) = element::float_size(entry.dtype) else {
            return Err(self.wrong_kind(entry, FLOAT_KINDS));
        };
        let mut rest = out;
        let mut work = Vec::new();
        for block in blocks(slice, element_bytes) {
            let (part, behind) = rest.split_at_mut(block.kept());
            rest = behind;
            work.push((block, part));
        }
        let read = |(block, part): (Block, &mut [f32])| {
            self.read_block(entry, element_bytes, &block, part)
        };
        if slice.numel() < PARALLEL_ELEMENTS {
            work.into_iter().try_for_each(read)
        } else {
            work.into_par_iter().try_for_each(read)
        }
    }

    /// Reads the elements `range` of a floating-point tensor, row by row as one, as `f64`: no kind loses anything.
    ///
    /// # Errors
    /// As [`TensorFile::read`].
    ///
    /// # Panics
    /// When `range` is outside the tensor.
    pub fn read_f64(&self, name: &str, range: Range<usize>) -> Result<Vec<f64>, WeightsError> {
        let entry = self.entry(name)?;
        let elements = entry.shape.iter().product();
        assert!(
            range.start <= range.end && range.end <= elements,
            "elements {range:?} of {name}, which has {elements}"
        );
        let Some(element_bytes) = element::float_size(entry.dtype) else {
            return Err(self.wrong_kind(entry, FLOAT_KINDS));
        };
        let mut bytes = vec![0; range.len() * element_bytes];
        let position = entry.bytes.start + (range.start * element_bytes) as u64;
        self.read_bytes(entry, position, &mut bytes)?;
        Ok(element::decode_f64(entry.dtype, &bytes))
    }

    fn read_block(
        &self,
        entry: &Entry,
        element_bytes: usize,
        block: &Block,
        out: &mut [f32],
    ) -> Result<(), WeightsError> {
        let position = entry.bytes.start + (block.elements.start * element_bytes) as u64;
        if entry.dtype == Dtype::F32 && block.runs.len() == 1 {
            return self.read_bytes(entry, position, bytemuck::cast_slice_mut(out));
        }
        let mut bytes = vec![0; block.elements.len() * element_bytes];
        self.read_bytes(entry, position, &mut bytes)?;
        let mut rest = out;
        for run in &block.runs {
            let (part, behind) = rest.split_at_mut(run.len);
            rest = behind;
            let start = (run.source - block.elements.start) * element_bytes;
            let end = start + run.len * element_bytes;
            element::decode(entry.dtype, &bytes[start..end], part);
        }
        Ok(())
    }

    fn read_bytes(&self, entry: &Entry, position: u64, out: &mut [u8]) -> Result<(), WeightsError> {
        self.file.read_exact_at(out, position).map_err(|source| {
            // The header was checked when the file was opened, so the file has changed since.
            let source = match source.kind() {
                io::ErrorKind::UnexpectedEof => {
                    io::Error::new(source.kind(), "the file became shorter while it was read")
                }
                _ => source,
            };
            WeightsError::ReadTensor {
                file: self.path.clone(),
                tensor: entry.name.clone(),
                source,
            }
        })
    }

    fn wrong_kind(&self, entry: &Entry, wanted: &'static str) -> WeightsError {
        WeightsError::Kind {
            file: self.path.clone(),
            tensor: entry.name.clone(),
            found: entry.dtype,
            wanted,
        }
    }
}
