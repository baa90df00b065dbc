//! The libtorch that a run computes with: there, loadable, and with the devices that are asked for.

use tandem_comm::Transport;
use tandem_tensor::DeviceChoice;
use tandem_tensor::device::Workers;
use tandem_tensor::torch::{self, NEWEST_TESTED, Surroundings, Torch};

use crate::failure::{Failure, Outcome};

/// The workers of a host whose ranks communicate over `transport`.
pub fn workers(count: usize, transport: Transport) -> Workers {
    Workers {
        count,
        may_share: transport == Transport::Staged,
    }
}

/// A libtorch that was found to serve.
#[derive(Clone, Copy)]
pub struct Libtorch(&'static Torch);

impl Libtorch {
    /// Loads it, and looks whether there are enough of the wanted devices here for this host's workers. What is wrong is said
    /// before anything is started.
    pub fn ready(device: DeviceChoice, workers: Workers) -> Outcome<Self> {
        let usage = |error: &dyn std::fmt::Display| Failure::usage(error.to_string());
        // Libraries that libtorch loads end the process where there is none.
        std::env::current_dir().map_err(|error| {
            Failure::usage(format!(
                "the folder that this was started in is gone ({error}): start it in one that is there"
            ))
        })?;
        let torch = torch::open(&Surroundings::read()).map_err(|error| usage(&error))?;
        if device == DeviceChoice::Cuda {
            device.select(0, workers).map_err(|error| usage(&error))?;
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
