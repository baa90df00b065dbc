//! SIGHUP in the processes that a test starts, whoever started the test.

use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Once};

use signal_hook::consts::SIGHUP;
use signal_hook::flag::register;
use tandem_launch::stop_signals::hang_up_is_ignored;

/// From now on children hear a SIGHUP, also where the tests run under nohup: they would inherit that it is ignored, but
/// what is handled is as by default once another program is executed.
pub fn is_heard_by_children() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if hang_up_is_ignored() {
            register(SIGHUP, Arc::new(AtomicBool::new(false))).unwrap();
        }
    });
}

/// `command` as nohup starts it, with another output.
pub fn ignored(command: &Command) -> Command {
    let mut nohup = Command::new("sh");
    nohup.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]);
    nohup.arg(command.get_program()).args(command.get_args());
    nohup.stdin(Stdio::null());
    nohup
}

#[test]
fn a_child_can_be_hung_up_on() {
    is_heard_by_children();
    let status = Command::new("sh").args(["-c", "kill -s HUP $$"]).status();
    assert_eq!(status.unwrap().code(), None, "it was killed");
}

#[test]
fn a_child_can_be_hung_up_on_by_a_suite_under_nohup() {
    let mut suite = Command::new(std::env::current_exe().unwrap());
    suite.args(["--exact", "hang_up::a_child_can_be_hung_up_on"]);
    let output = ignored(&suite).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
}
