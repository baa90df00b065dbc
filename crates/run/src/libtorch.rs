//! The libtorch that a run computes with: there, loadable, and with the devices that are asked for.

use tandem_tensor::DeviceChoice;
use tandem_tensor::torch::{self, NEWEST_TESTED, Surroundings, Torch};

use crate::failure::{Failure, Outcome};

/// A libtorch that was found to serve.
#[derive(Clone, Copy)]
pub struct Libtorch(&'static Torch);

impl Libtorch {
    /// Loads it, and looks whether as many of the wanted devices are here as this host has workers. What is wrong is said
    /// before anything is started.
    pub fn ready(device: DeviceChoice, local_workers: usize) -> Outcome<Self> {
        let usage = |error: &dyn std::fmt::Display| Failure::usage(error.to_string());
        let torch = torch::open(&Surroundings::read()).map_err(|error| usage(&error))?;
        if device == DeviceChoice::Cuda {
            let last = local_workers.saturating_sub(1);
            device.select(last).map_err(|error| usage(&error))?;
        }
        Ok(Self(torch))
    }

    /// Release, kind and origin, such as `2.15.0 (CPU) in /opt/torch/lib, from the variable LIBTORCH`.
    pub fn describe(self) -> String {
        let kind = match self.0.has_cuda_part() {
            true => "CUDA",
            false => "CPU",
        };
        format!(
            "{} ({kind}) in {}, from {}",
            self.0.version(),
            self.0.libraries().display(),
            self.0.origin()
        )
    }

    /// What a user should know about the choice, a sentence each.
    pub fn notes(self) -> Vec<String> {
        let mut notes = self.0.passed_over().to_vec();
        if self.0.version().is_untested() {
            notes.push(format!(
                "libtorch {} is newer than {NEWEST_TESTED}, the newest that Tandem was tested with; it has all functions",
                self.0.version()
            ));
        }
        notes
    }
}
