//! What other crates do for long, as events.

use tandem_data::Progress;
use tandem_trainer::{EventSink, TrainEvent};

/// The data crate's progress as events.
pub struct Shown<'a> {
    sink: &'a mut dyn EventSink,
    what: String,
}

impl<'a> Shown<'a> {
    /// `sink` sees it.
    pub fn to(sink: &'a mut dyn EventSink) -> Self {
        Self {
            sink,
            what: String::new(),
        }
    }
}

impl Progress for Shown<'_> {
    fn begin(&mut self, what: &str) {
        what.clone_into(&mut self.what);
    }

    fn update(&mut self, done: u64, total: u64) {
        self.sink.event(TrainEvent::Progress {
            what: self.what.clone(),
            done,
            total,
        });
    }
}
