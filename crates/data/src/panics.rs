//! Libraries that panic at some input: what they say becomes an error.

use std::any::Any;
use std::cell::Cell;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether this thread's panics become errors, so that nobody needs to be told of them.
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs something that may panic; that becomes its error message. What it was working on is not used after that.
pub(crate) fn guarded<T, E: Display>(work: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let told = take_hook();
        set_hook(Box::new(move |panic| {
            if !IS_GUARDED.get() {
                told(panic);
            }
        }));
    });
    let was_guarded = IS_GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    IS_GUARDED.set(was_guarded);
    result
        .map_err(|panic| panic_message(panic.as_ref()))?
        .map_err(|error| error.to_string())
}

/// The text that the panic was raised with.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("no reason given").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error() {
        let said = guarded(|| -> Result<(), String> { panic!("at byte {}", 7) });
        assert_eq!(said, Err("at byte 7".into()));
        assert_eq!(guarded(|| Err::<(), _>("no")), Err("no".into()));
        assert_eq!(guarded(|| Ok::<_, String>(1)), Ok(1));
        assert!(!IS_GUARDED.get());
    }
}
