//! A stack for templates, which are parsed, shown, compared and dropped as deep as they and their values are nested.

use std::panic::resume_unwind;
use std::thread::{self, Builder};

/// Enough for the deepest that a template of the largest size is, or makes with its fuel: a million levels, each of less
/// than a kilobyte. It is reserved and not taken; only what is used becomes memory.
const STACK_BYTES: usize = 1 << 30;

/// Does `work` with such a stack. Where the system has none to give, with the one that there is.
pub(crate) fn with_deep_stack<T: Send>(work: impl Fn() -> T + Sync) -> T {
    thread::scope(|scope| {
        let thread = Builder::new().name("template".into());
        match thread.stack_size(STACK_BYTES).spawn_scoped(scope, &work) {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(_) => work(),
        }
    })
}
