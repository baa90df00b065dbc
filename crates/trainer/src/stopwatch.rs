//! How long something takes at best, by two clocks.

use std::ops::{Add, Mul};
use std::time::Instant;

use tandem_tensor::memory::processor_seconds;

/// Seconds of the same work by two clocks. On a busy machine the first also counts what others do meanwhile; the second says
/// nothing of a device that computes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Seconds {
    /// That passed.
    pub wall: f64,
    /// That processors worked for this process.
    pub processor: f64,
}

impl Seconds {
    /// Of one run. `wait` returns when the device has done what `run` has given it to do.
    pub(crate) fn of(wait: &dyn Fn(), run: &dyn Fn()) -> Self {
        let (start, worked) = (Instant::now(), processor_seconds());
        run();
        wait();
        Self {
            wall: start.elapsed().as_secs_f64(),
            processor: processor_seconds() - worked,
        }
    }

    /// Of the best of `repeats` runs by each clock, after one that warms up.
    pub(crate) fn of_best(repeats: usize, wait: &dyn Fn(), run: &dyn Fn()) -> Self {
        let once = || Self::of(wait, run);
        once();
        (1..repeats).fold(once(), |best, _| best.least(once()))
    }

    /// The less by each clock.
    pub(crate) fn least(self, other: Self) -> Self {
        Self {
            wall: self.wall.min(other.wall),
            processor: self.processor.min(other.processor),
        }
    }
}

impl Add for Seconds {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            wall: self.wall + other.wall,
            processor: self.processor + other.processor,
        }
    }
}

impl Mul<f64> for Seconds {
    type Output = Self;

    fn mul(self, factor: f64) -> Self {
        Self {
            wall: self.wall * factor,
            processor: self.processor * factor,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::time::Duration;

    /// Else, the time of a launch would be taken for that of the work.
    #[test]
    fn the_device_is_waited_for_before_the_clocks_are_read() {
        let log = RefCell::new(String::new());
        let seconds = Seconds::of_best(
            2,
            &|| {
                std::thread::sleep(Duration::from_millis(20));
                log.borrow_mut().push_str("wait ");
            },
            &|| log.borrow_mut().push_str("run "),
        );
        assert_eq!(log.take(), "run wait run wait run wait ");
        assert!(seconds.wall >= 2e-2, "{seconds:?}");
        assert!(
            seconds.processor < seconds.wall,
            "sleep is no work: {seconds:?}"
        );
    }
}
