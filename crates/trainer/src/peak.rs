//! What model FLOPs utilisation is a fraction of: the devices' peak.

/// The peak of all devices of a run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Peak {
    /// Floating point operations per second, all devices together.
    pub flops: f64,
    /// The devices' name; without one, the rate is what products of matrices were measured to reach.
    pub device: Option<String>,
}

impl Peak {
    /// Whose peak it is.
    pub fn of(&self) -> &str {
        self.device.as_deref().unwrap_or(MEASURED)
    }

    /// A line for the reader.
    pub fn line(&self, ranks: usize) -> String {
        let each = self.flops / ranks.max(1) as f64 / 1e12;
        match &self.device {
            Some(name) => format!(
                "mfu       model FLOPs over {each:.0} TFLOP/s a device, the bf16 peak of {name}"
            ),
            None => format!(
                "mfu       model FLOPs over {each:.2} TFLOP/s a worker, {MEASURED} on this machine"
            ),
        }
    }

    /// The fraction that `flops` operations in `seconds` are. More than was measured cannot be the truth: then the measurement
    /// was disturbed, and what was reached takes its place.
    pub fn utilisation(&mut self, flops: f64, seconds: f64) -> f64 {
        let rate = flops / seconds;
        if self.device.is_none() && rate > self.flops && rate.is_finite() {
            self.flops = rate;
        }
        rate / self.flops
    }
}

/// What stands in for a peak that nobody knows.
const MEASURED: &str = "the rate of matrix products measured";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_too_low_is_not_a_peak() {
        let mut measured = Peak {
            flops: 100.0,
            device: None,
        };
        assert_eq!(measured.utilisation(50.0, 1.0), 0.5);
        assert_eq!(measured.utilisation(136.0, 1.0), 1.0);
        assert_eq!(measured.utilisation(68.0, 1.0), 0.5);
        // A data sheet is right, and whoever is beyond it has counted wrongly.
        let mut known = Peak {
            device: Some("NVIDIA H100".into()),
            ..measured
        };
        assert_eq!(known.utilisation(272.0, 1.0), 2.0);
    }
}
