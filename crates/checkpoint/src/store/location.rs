//! From what the user wrote as `--storage_path` to a store.

use std::path::Path;
use std::sync::Arc;

#[cfg(not(feature = "object-storage"))]
use super::not_built::open_remote;
#[cfg(feature = "object-storage")]
use super::remote::open_remote;
use super::{LocalStore, Store, StoreError};

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
/// A scheme that is not known, object storage in a build without it, or settings that the object store refuses. Nothing is
/// contacted yet.
pub fn open_store(
    location: &str,
    options: impl IntoIterator<Item = (String, String)>,
) -> Result<Arc<dyn Store>, StoreError> {
    if let Some(path) = local_path(location) {
        return Ok(Arc::new(LocalStore::new(path)));
    }
    let (scheme, _) = location.split_once("://").unwrap_or_default();
    if !REMOTE_SCHEMES.contains(&scheme) {
        let problem = format!(
            "{scheme}:// is not known; give a folder, or a URL that begins with s3://, gs:// or az://"
        );
        return Err(StoreError::refused(location, problem));
    }
    open_remote(location, options)
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
        for url in ["s3://bucket/runs", "gs://bucket/runs", "az://bucket/runs"] {
            // Azure's own variable, without which a bucket's name says too little.
            let account = ("AZURE_STORAGE_ACCOUNT_NAME".to_owned(), "us".to_owned());
            let remote = open_store(&format!("{url}/"), [account]).unwrap();
            assert_eq!(remote.locate("a/b"), format!("{url}/a/b"));
        }
        let error = open_store("ftp://host/runs", none())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("ftp://") && error.contains("s3://"),
            "{error}"
        );
    }
}
