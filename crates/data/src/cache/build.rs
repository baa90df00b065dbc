//! Tokenizing a dataset into its cache.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use tempfile::NamedTempFile;

use super::format::{HEADER_BYTES, Header};
use super::{CacheError, TokenCache, UNTRAINED, Verify, key};
use crate::example::{Encoded, Encoder, ExampleError};
use crate::lock::FileLock;
use crate::progress::Progress;
use crate::source::{Documents, Source};

/// Text that is read before it is tokenized by all threads: enough to keep them busy, little enough to hold.
const CHUNK_BYTES: usize = 8 << 20;

/// The suffix of files that are not finished.
const UNFINISHED: &str = ".tmp";

/// See [`TokenCache::build_or_open`].
pub(super) fn build_or_open(
    source: &Source,
    encoder: &Encoder,
    cache_dir: &Path,
    progress: &mut dyn Progress,
) -> Result<TokenCache, CacheError> {
    let key = key::key(source, encoder)?;
    let name = key.to_hex();
    let lock_path = cache_dir.join(format!("{name}.lock"));
    let task = "tokenizing the same dataset";
    let _lock = FileLock::acquire(&lock_path, task).map_err(io_error("lock", &lock_path))?;

    let path = cache_dir.join(format!("{name}.tokens"));
    let tokenizer = encoder.tokenizer();
    match TokenCache::open(&path, Verify::Full).and_then(|cache| cache.within(tokenizer)) {
        Ok(cache) => return Ok(cache),
        Err(CacheError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        Err(error @ CacheError::Damaged { .. }) => tracing::warn!("{error}; building it again"),
        Err(error) => return Err(error),
    }
    remove_unfinished(cache_dir, &name)?;
    let writer = Writer::new(cache_dir, &name)?;
    progress.begin("tokenizing");
    let header = Header {
        eos_id: tokenizer.eos_id(),
        pad_id: tokenizer.pad_id(),
        separator: u64::from(!encoder.ends_documents()),
        kind: encoder.kind() as u8,
        key: *key.as_bytes(),
        ..Header::default()
    };
    tokenize(source, encoder, writer, progress)?.finish(header, &path)?;
    TokenCache::open(&path, Verify::Header)
}

fn tokenize(
    source: &Source,
    encoder: &Encoder,
    mut writer: Writer,
    progress: &mut dyn Progress,
) -> Result<Writer, CacheError> {
    let mut documents = source.documents()?;
    let mut read = 0;
    let mut first_refusal = None;
    loop {
        let chunk = next_chunk(&mut documents)?;
        if chunk.is_empty() {
            break;
        }
        // Collecting keeps the order, so the file does not depend on the number of threads.
        let encoded: Vec<Result<Encoded, ExampleError>> =
            chunk.par_iter().map(|text| encoder.encode(text)).collect();
        for (text, encoded) in chunk.iter().zip(encoded) {
            read += 1;
            match encoded {
                // Special tokens around nothing are not a document.
                Ok(encoded) if text.is_empty() || encoded.tokens.is_empty() => {}
                Ok(encoded) => writer.push(encoded)?,
                Err(error) if error.is_refusal() => {
                    writer.refused += 1;
                    first_refusal.get_or_insert((read, error));
                }
                Err(ExampleError::Tokenizer(error)) => return Err(error.into()),
                Err(source) => {
                    return Err(CacheError::Example {
                        document: read,
                        source,
                    });
                }
            }
        }
        let (done, total) = documents.progress();
        progress.update(done, total);
    }
    let place = source.place();
    match first_refusal {
        Some((document, source)) if writer.documents == 0 => {
            return Err(CacheError::AllRefused {
                place: place.into(),
                refused: writer.refused,
                document,
                source,
            });
        }
        _ => {}
    }
    if writer.documents == 0 {
        return Err(CacheError::Empty {
            place: place.into(),
            documents: read,
        });
    }
    if writer.trained == 0 {
        return Err(CacheError::NothingTrained {
            place: place.into(),
            documents: writer.documents,
        });
    }
    Ok(writer)
}

fn next_chunk(documents: &mut Documents<'_>) -> Result<Vec<String>, CacheError> {
    let (mut chunk, mut bytes) = (Vec::new(), 0);
    while bytes < CHUNK_BYTES {
        let Some(document) = documents.next().transpose()? else {
            break;
        };
        // A document costs memory even when it is empty.
        bytes += document.len() + size_of::<String>();
        chunk.push(document);
    }
    Ok(chunk)
}

/// Removes what a killed process may have left. Its lock is ours now, so nobody writes to it.
fn remove_unfinished(cache_dir: &Path, name: &str) -> Result<(), CacheError> {
    let list = io_error("list", cache_dir);
    for entry in fs::read_dir(cache_dir).map_err(&list)? {
        let entry = entry.map_err(&list)?;
        let file_name = entry.file_name();
        let file_name = file_name.to_string_lossy();
        if file_name.starts_with(name) && file_name.ends_with(UNFINISHED) {
            let path = entry.path();
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
    }
    Ok(())
}

/// Writes a cache beside its place and moves it there when it is complete.
pub(super) struct Writer {
    dir: PathBuf,
    file: BufWriter<NamedTempFile>,
    /// Ends of documents, which go behind the tokens when their number is known.
    ends: BufWriter<File>,
    body: blake3::Hasher,
    documents: u64,
    tokens: u64,
    trained: u64,
    refused: u64,
}

impl Writer {
    pub(super) fn new(dir: &Path, name: &str) -> Result<Self, CacheError> {
        let create = io_error("create a token cache in", dir);
        let mut file = tempfile::Builder::new()
            .prefix(&format!("{name}."))
            .suffix(UNFINISHED)
            // What the umask leaves of this: a cache may be shared by the users of a machine.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(dir)
            .map_err(&create)?;
        file.write_all(&[0; HEADER_BYTES]).map_err(&create)?;
        Ok(Self {
            dir: dir.into(),
            file: BufWriter::with_capacity(1 << 20, file),
            ends: BufWriter::new(tempfile::tempfile_in(dir).map_err(&create)?),
            body: blake3::Hasher::new(),
            documents: 0,
            tokens: 0,
            trained: 0,
            refused: 0,
        })
    }

    pub(super) fn push(&mut self, document: Encoded) -> Result<(), CacheError> {
        let Encoded {
            mut tokens,
            trained,
        } = document;
        for (token, is_trained) in tokens.iter_mut().zip(&trained) {
            if *is_trained {
                self.trained += 1;
            } else {
                *token |= UNTRAINED;
            }
        }
        self.tokens += tokens.len() as u64;
        self.documents += 1;
        let end = self.tokens.to_ne_bytes();
        self.append(bytemuck::cast_slice(&tokens))
            .and_then(|()| self.ends.write_all(&end))
            .map_err(io_error("write a token cache to", &self.dir))
    }

    /// Completes the file and gives it its name. `header` needs no counts and no checksum.
    pub(super) fn finish(mut self, header: Header, path: &Path) -> Result<(), CacheError> {
        let dir = self.dir.clone();
        self.append_ends()
            .and_then(|()| self.persist(header, path))
            .map_err(io_error("write a token cache to", &dir))
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.body.update(bytes);
        self.file.write_all(bytes)
    }

    fn append_ends(&mut self) -> io::Result<()> {
        if !self.tokens.is_multiple_of(2) {
            self.append(&[0; 4])?;
        }
        self.ends.flush()?;
        let mut ends = self.ends.get_ref().try_clone()?;
        ends.seek(SeekFrom::Start(0))?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match ends.read(&mut buffer)? {
                0 => return Ok(()),
                count => self.append(&buffer[..count])?,
            }
        }
    }

    fn persist(self, header: Header, path: &Path) -> io::Result<()> {
        let header = Header {
            documents: self.documents,
            tokens: self.tokens,
            trained: self.trained,
            refused: self.refused,
            body: *self.body.finalize().as_bytes(),
            ..header
        };
        let mut file = self
            .file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&header.to_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        // The name is durable only when the folder is.
        File::open(&self.dir)?.sync_all()
    }
}

fn io_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> CacheError + use<> {
    let path = path.to_owned();
    move |source| CacheError::Io {
        action,
        path: path.clone(),
        source,
    }
}
