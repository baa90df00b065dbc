//! Tokenizing a dataset into its cache.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::format::{HEADER_BYTES, Header};
use super::pipeline::{self, Encoded};
use super::{CacheError, TokenCache, Verify, key};
use crate::example::{Encoder, ExampleError};
use crate::lock::FileLock;
use crate::progress::Progress;
use crate::source::Source;

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
    let mut read = 0;
    let mut first_refusal = None;
    pipeline::run(source, encoder, rayon::current_num_threads(), |encoded| {
        writer.push(&encoded)?;
        let refusal = encoded.first_refusal;
        first_refusal = first_refusal
            .take()
            .or(refusal.map(|(document, error)| (read + document, error)));
        match encoded.failure {
            Some((_, ExampleError::Tokenizer(error))) => return Err(error.into()),
            Some((document, source)) => {
                return Err(CacheError::Example {
                    document: read + document,
                    source,
                });
            }
            None => {}
        }
        read += encoded.read;
        let (done, total) = encoded.progress;
        progress.update(done, total);
        Ok(())
    })?;
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

    pub(super) fn push(&mut self, encoded: &Encoded) -> Result<(), CacheError> {
        let before = self.tokens;
        self.tokens += encoded.tokens.len() as u64;
        self.trained += encoded.trained;
        self.refused += encoded.refused;
        self.documents += encoded.ends.len() as u64;
        let ends: Vec<u64> = encoded.ends.iter().map(|end| before + end).collect();
        self.append(bytemuck::cast_slice(&encoded.tokens))
            .and_then(|()| self.ends.write_all(bytemuck::cast_slice(&ends)))
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
