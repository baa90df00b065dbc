//! From what the user wrote as `--storage_path` to a store.

use std::io;
use std::path::Path;
use std::sync::Arc;

use url::Url;

use super::{LocalStore, RemoteStore, Store, StoreError, StoreErrorKind};

/// Schemes of object storage.
const REMOTE_SCHEMES: [&str; 8] = ["s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss"];

/// The folder that `location` is, unless it is the URL of object storage.
pub fn local_path(location: &str) -> Option<&Path> {
    match location.split_once("://") {
        None => Some(Path::new(location)),
        Some(("file", path)) => Some(Path::new(path)),
        Some(_) => None,
    }
}

/// The store at `location`: a folder, a `file://` URL, or the URL of a bucket with a prefix (`s3://`, `gs://`, `az://`).
///
/// `options` are what the object store needs to know, by the names of the usual environment variables
/// (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT`, `GOOGLE_SERVICE_ACCOUNT`, `AZURE_STORAGE_ACCOUNT_NAME`, ...); others are passed
/// over, so the whole environment can be given.
///
/// # Errors
/// A scheme that is not known, or settings that the object store refuses. Nothing is contacted yet.
pub fn open_store(
    location: &str,
    options: impl IntoIterator<Item = (String, String)>,
) -> Result<Arc<dyn Store>, StoreError> {
    let refused = |source: Box<dyn std::error::Error + Send + Sync>| StoreError {
        operation: "open the storage at",
        location: location.to_owned(),
        kind: StoreErrorKind::Other,
        source,
    };
    if let Some(path) = local_path(location) {
        return Ok(Arc::new(LocalStore::new(path)));
    }
    let (scheme, _) = location.split_once("://").unwrap_or_default();
    if !REMOTE_SCHEMES.contains(&scheme) {
        let problem = format!(
            "{scheme}:// is not known; give a folder, or a URL that begins with s3://, gs:// or az://"
        );
        return Err(refused(problem.into()));
    }
    let url = Url::parse(location).map_err(|error| refused(error.into()))?;
    let (objects, prefix) =
        object_store::parse_url_opts(&url, options).map_err(|error| refused(error.into()))?;
    let store = RemoteStore::new(objects.into(), prefix, location)
        .map_err(|error: io::Error| refused(error.into()))?;
    Ok(Arc::new(store))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_buckets_are_told_apart() {
        let none = || std::iter::empty::<(String, String)>();
        let local = open_store("runs/today", none()).unwrap();
        assert_eq!(local.locate("a/b"), "runs/today/a/b");
        let local = open_store("file:///runs", none()).unwrap();
        assert_eq!(local.locate("a"), "/runs/a");
        assert_eq!(local_path("file:///runs"), Some(Path::new("/runs")));
        assert_eq!(local_path("s3://bucket/runs"), None);
        let remote = open_store("s3://bucket/runs/", none()).unwrap();
        assert_eq!(remote.locate("a/b"), "s3://bucket/runs/a/b");
        let error = open_store("ftp://host/runs", none())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("ftp://") && error.contains("s3://"),
            "{error}"
        );
    }
}
