//! SIGHUP in the processes that a test starts, whoever started the test.

use signal_hook::consts::SIGHUP;
use signal_hook::flag::register;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Once};
use tandem_launch::stop_signals::hang_up_is_ignored;

/// From now on children hear a SIGHUP, also where the tests run under nohup: they would inherit that it is ignored, but
/// what is handled is as by default once another program is executed.
pub fn is_heard_by_children() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if hang_up_is_ignored() {
            register(SIGHUP, Arc::new(AtomicBool::new(false))).expect("SIGHUP can be handled");
        }
    });
}
