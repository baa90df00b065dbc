//! Object storage, through the `object_store` crate.

use std::fmt;
use std::io;
use std::sync::Arc;

use object_store::path::Path;
use object_store::{
    Error, ObjectStore, ObjectStoreExt, PutMode as RemotePutMode, PutOptions, UpdateVersion,
    WriteMultipart,
};
use rustls::crypto::ring;
use tokio::runtime::{Builder, Runtime};
use url::Url;

use super::{Listed, PutMode, ReadAt, Store, StoreError, StoreErrorKind, Upload, Version, join};

/// Parts of an upload that are in flight together: one connection does not fill the line.
const PARTS_IN_FLIGHT: usize = 4;

/// Reads that are in flight together, for the same reason.
const READS_IN_FLIGHT: usize = 16;

/// Parts are at least this long: every one costs a round trip.
const MIN_PART_BYTES: u64 = 8 << 20;

/// S3 takes at most ten thousand parts.
const MAX_PARTS: u64 = 9_000;

/// The store at the URL of a bucket with a prefix; `options` are those of [`open_store`](super::open_store).
///
/// # Errors
/// Settings that the object store refuses. Nothing is contacted yet.
pub(super) fn open_remote(
    location: &str,
    options: impl IntoIterator<Item = (String, String)>,
) -> Result<Arc<dyn Store>, StoreError> {
    // The HTTP client takes the process's cryptography. Where there is one already, it is as good.
    let _ = ring::default_provider().install_default();
    let url = Url::parse(location).map_err(|error| StoreError::refused(location, error))?;
    let (objects, prefix) = object_store::parse_url_opts(&url, options)
        .map_err(|error| StoreError::refused(location, error))?;
    let store = RemoteStore::new(objects.into(), prefix, location)
        .map_err(|error| StoreError::refused(location, error))?;
    Ok(Arc::new(store))
}

/// Objects below one prefix of a bucket.
///
/// Uploads are in parts, several at once, and become an object when the last part is there. One that is cut off leaves no
/// object, but its parts may stay until the bucket's lifecycle rules remove them.
#[derive(Clone)]
pub struct RemoteStore {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    /// What the prefix is called in messages, such as `s3://bucket/runs`.
    name: String,
    runtime: Arc<Runtime>,
}

impl RemoteStore {
    /// The objects of `objects` below `prefix`; `name` is what messages call it.
    ///
    /// # Errors
    /// The threads that talk to the storage cannot be started.
    pub fn new(
        objects: Arc<dyn ObjectStore>,
        prefix: Path,
        name: impl Into<String>,
    ) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("object-store")
            .enable_all()
            .build()?;
        Ok(Self {
            objects,
            prefix,
            name: name.into().trim_end_matches('/').to_owned(),
            runtime: Arc::new(runtime),
        })
    }

    fn path(&self, path: &str) -> Path {
        Path::from(join(self.prefix.as_ref(), path))
    }

    fn failed(&self, operation: &'static str, path: &str, error: Error) -> StoreError {
        failed(operation, self.locate(path), error)
    }
}

impl fmt::Debug for RemoteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RemoteStore").field(&self.name).finish()
    }
}

impl Store for RemoteStore {
    fn locate(&self, path: &str) -> String {
        join(&self.name, path)
    }

    fn create(&self, path: &str, size: u64) -> Result<Box<dyn Upload>, StoreError> {
        let object = self.path(path);
        let upload = self
            .runtime
            .block_on(self.objects.put_multipart(&object))
            .map_err(|error| self.failed("create", path, error))?;
        let part_bytes = MIN_PART_BYTES.max(size.div_ceil(MAX_PARTS));
        Ok(Box::new(RemoteUpload {
            parts: Some(WriteMultipart::new_with_chunk_size(
                upload,
                part_bytes as usize,
            )),
            location: self.locate(path),
            runtime: self.runtime.clone(),
        }))
    }

    fn put(&self, path: &str, bytes: &[u8], mode: PutMode) -> Result<(), StoreError> {
        let object = self.path(path);
        let put = |mode| {
            let options = PutOptions::from(mode);
            let put = self
                .objects
                .put_opts(&object, bytes.to_vec().into(), options);
            self.runtime.block_on(put)
        };
        let result = match mode {
            PutMode::Replace => put(RemotePutMode::Overwrite),
            PutMode::CreateNew => match put(RemotePutMode::Create) {
                // Not every S3-compatible service knows conditional writes; without them a look must do.
                Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => {
                    match self.runtime.block_on(self.objects.head(&object)) {
                        Err(Error::NotFound { .. }) => put(RemotePutMode::Overwrite),
                        Err(error) => Err(error),
                        Ok(_) => Err(Error::AlreadyExists {
                            path: object.to_string(),
                            source: "it is there already".into(),
                        }),
                    }
                }
                result => result,
            },
        };
        result
            .map(|_| ())
            .map_err(|error| self.failed("write", path, error))
    }

    fn read_version(&self, path: &str) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        let object = self.path(path);
        let read = async {
            let found = self.objects.get(&object).await?;
            let version = Version {
                e_tag: found.meta.e_tag.clone(),
                number: found.meta.version.clone(),
            };
            Ok::<_, Error>((found.bytes().await?.to_vec(), version))
        };
        match self.runtime.block_on(read) {
            Ok(found) => Ok(Some(found)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("read", path, error)),
        }
    }

    fn put_version(
        &self,
        path: &str,
        bytes: &[u8],
        expected: Option<&Version>,
    ) -> Result<Version, StoreError> {
        let mode = match expected {
            None => RemotePutMode::Create,
            Some(version) => RemotePutMode::Update(UpdateVersion {
                e_tag: version.e_tag.clone(),
                version: version.number.clone(),
            }),
        };
        let object = self.path(path);
        let put = self
            .objects
            .put_opts(&object, bytes.to_vec().into(), PutOptions::from(mode));
        let written = self
            .runtime
            .block_on(put)
            .map_err(|error| self.failed("write", path, error))?;
        Ok(Version {
            e_tag: written.e_tag,
            number: written.version,
        })
    }

    fn open(&self, path: &str) -> Result<Box<dyn ReadAt>, StoreError> {
        let object = self.path(path);
        let meta = self
            .runtime
            .block_on(self.objects.head(&object))
            .map_err(|error| self.failed("open", path, error))?;
        Ok(Box::new(RemoteFile {
            store: self.clone(),
            path: path.to_owned(),
            object,
            size: meta.size,
        }))
    }

    fn concurrent_reads(&self) -> usize {
        READS_IN_FLIGHT
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        let prefix = self.path(folder);
        let found = self
            .runtime
            .block_on(self.objects.list_with_delimiter(Some(&prefix)))
            .map_err(|error| self.failed("list", folder, error))?;
        let name = |path: &Path| path.filename().map(str::to_owned);
        let files = found.objects.iter().filter_map(|object| {
            Some(Listed {
                name: name(&object.location)?,
                size: Some(object.size),
                is_link: false,
            })
        });
        let folders = found.common_prefixes.iter().filter_map(|prefix| {
            Some(Listed {
                name: name(prefix)?,
                size: None,
                is_link: false,
            })
        });
        let mut listed: Vec<Listed> = files.chain(folders).collect();
        listed.sort();
        Ok(listed)
    }

    fn delete(&self, path: &str) -> Result<(), StoreError> {
        let object = self.path(path);
        match self.runtime.block_on(self.objects.delete(&object)) {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("delete", path, error)),
        }
    }

    fn delete_folder(&self, folder: &str, chosen: &dyn Fn(&str) -> bool) -> Result<(), StoreError> {
        for listed in self.list(folder)? {
            if listed.is_file() && chosen(&listed.name) {
                self.delete(&join(folder, &listed.name))?;
            }
        }
        Ok(())
    }
}

struct RemoteUpload {
    /// `None` once finished.
    parts: Option<WriteMultipart>,
    location: String,
    runtime: Arc<Runtime>,
}

impl Upload for RemoteUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let Some(parts) = &mut self.parts else {
            return Ok(());
        };
        self.runtime
            .block_on(async {
                parts.wait_for_capacity(PARTS_IN_FLIGHT).await?;
                parts.write(bytes);
                Ok::<(), Error>(())
            })
            .map_err(|error| failed("write", self.location.clone(), error))
    }

    fn finish(mut self: Box<Self>) -> Result<(), StoreError> {
        let Some(parts) = self.parts.take() else {
            return Ok(());
        };
        self.runtime
            .block_on(parts.finish())
            .map(|_| ())
            .map_err(|error| failed("write", self.location.clone(), error))
    }
}

impl Drop for RemoteUpload {
    fn drop(&mut self) {
        if let Some(parts) = self.parts.take() {
            let _ = self.runtime.block_on(parts.abort());
        }
    }
}

struct RemoteFile {
    store: RemoteStore,
    path: String,
    object: Path,
    size: u64,
}

impl ReadAt for RemoteFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, position: u64, out: &mut [u8]) -> Result<(), StoreError> {
        if out.is_empty() {
            return Ok(());
        }
        let range = position..position + out.len() as u64;
        let read = self.store.objects.get_range(&self.object, range);
        let bytes = self
            .store
            .runtime
            .block_on(read)
            .map_err(|error| self.store.failed("read", &self.path, error))?;
        if bytes.len() != out.len() {
            return Err(StoreError {
                operation: "read",
                location: self.store.locate(&self.path),
                kind: StoreErrorKind::TooShort,
                source: format!("{} bytes came instead of {}", bytes.len(), out.len()).into(),
            });
        }
        out.copy_from_slice(&bytes);
        Ok(())
    }
}

fn failed(operation: &'static str, location: String, error: Error) -> StoreError {
    let kind = match &error {
        Error::NotFound { .. } => StoreErrorKind::NotFound,
        Error::AlreadyExists { .. } | Error::Precondition { .. } => StoreErrorKind::AlreadyExists,
        Error::NotImplemented { .. } | Error::NotSupported { .. } => StoreErrorKind::Unsupported,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => StoreErrorKind::Denied,
        _ => StoreErrorKind::Other,
    };
    StoreError {
        operation,
        location,
        kind,
        source: Box::new(error),
    }
}
