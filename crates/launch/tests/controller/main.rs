//! The controller with real processes as workers (`fake_worker`): what it reports, and that nobody is left.

#[path = "../../fake_worker/script.rs"]
mod script;

mod bench;
mod failures;
mod hang_up;
mod restarts;
mod scripts;
mod signals;
mod starting;
