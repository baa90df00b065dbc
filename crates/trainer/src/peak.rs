//! What model FLOPs utilisation is a fraction of: the devices' peak.

/// Dense bf16 operations per second, with fp32 sums, as NVIDIA's data sheets have them (docs/monitoring.md names them); fp16
/// where there is no bf16. The first name that a device's own contains counts.
const PEAKS: [(&str, f64); 12] = [
    ("B200", 2250e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("A10", 125e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("RTX 5090", 209.5e12),
    ("RTX 4090", 165.2e12),
    ("T4", 65e12),
];

/// Operations per second of a device of this name, in bf16; `None` for one that is not in the table.
pub fn of_device(name: &str) -> Option<f64> {
    // Laptops' chips have the names of faster ones.
    if name.contains("Laptop") || name.contains("Max-Q") {
        return None;
    }
    let contains = |known: &str| {
        name.match_indices(known).any(|(at, _)| {
            let next = name[at + known.len()..].chars().next();
            let before = name[..at].chars().next_back();
            let is_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
            // GH200 and GB200 are an H200 and a B200 beside a processor.
            !is_word(next) && (!is_word(before) || before == Some('G'))
        })
    };
    let found = PEAKS.iter().find(|(known, _)| contains(known));
    found.map(|(_, peak)| *peak)
}

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
    fn devices_are_known_by_the_names_that_their_drivers_give() {
        for (name, tera) in [
            ("Tesla T4", Some(65.0)),
            ("NVIDIA A100-SXM4-80GB", Some(312.0)),
            ("NVIDIA H100 80GB HBM3", Some(989.0)),
            ("NVIDIA H100 PCIe", Some(756.0)),
            ("NVIDIA H200", Some(989.0)),
            ("NVIDIA GH200 480GB", Some(989.0)),
            ("NVIDIA B200", Some(2250.0)),
            ("NVIDIA L40S", Some(362.0)),
            ("NVIDIA L4", Some(121.0)),
            ("NVIDIA A10G", None),
            ("NVIDIA A10", Some(125.0)),
            ("NVIDIA GeForce RTX 4090", Some(165.2)),
            ("NVIDIA GeForce RTX 5090", Some(209.5)),
            ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
            ("NVIDIA L40", None),
            ("NVIDIA RTX A1000", None),
            ("", None),
        ] {
            let expected = tera.map(|tera: f64| tera * 1e12);
            assert_eq!(of_device(name), expected, "{name}");
        }
    }

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
