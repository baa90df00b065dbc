//! What is said of object storage in a build without it.

use std::sync::Arc;

use super::{Store, StoreError};

/// As the function of this name that the feature `object-storage` brings, which this one stands in for.
///
/// # Errors
/// Always.
pub(super) fn open_remote(
    location: &str,
    _options: impl IntoIterator<Item = (String, String)>,
) -> Result<Arc<dyn Store>, StoreError> {
    Err(StoreError::refused(
        location,
        "this program was built without object storage: build it with `cargo build --release --features object-storage`, \
         or give a folder",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_refused_with_the_way_to_have_it() {
        let error = open_remote("s3://bucket/runs", []).unwrap_err().to_string();
        assert!(
            error.contains("s3://bucket/runs") && error.contains("--features object-storage"),
            "{error}"
        );
    }
}
