//! What a person sees of a run, and what its controller hears.

pub mod display;
pub mod outcome;
pub mod progress;
pub mod reporter;
pub mod screen;
pub mod summary;
