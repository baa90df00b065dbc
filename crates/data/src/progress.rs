//! How long work reports that it goes on, without deciding how that is shown.

/// Listens to a download or to tokenizing.
pub trait Progress {
    /// A new piece of work begins, for example `model.safetensors`. Its counts start from zero.
    fn begin(&mut self, what: &str) {
        let _ = what;
    }

    /// `done_bytes` of about `total_bytes` are done.
    fn update(&mut self, done_bytes: u64, total_bytes: u64);
}

/// For callers who do not show anything.
impl Progress for () {
    fn update(&mut self, _done_bytes: u64, _total_bytes: u64) {}
}
