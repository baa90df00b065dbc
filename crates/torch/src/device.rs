//! Where tensors are.

use crate::abi::Codes;

/// A place where tensors are and operations run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Device {
    /// Host memory and the processor.
    Cpu,
    /// The CUDA device of this number, among those that this process sees.
    Cuda(usize),
}

impl Device {
    /// True for any CUDA device.
    pub fn is_cuda(self) -> bool {
        matches!(self, Self::Cuda(_))
    }

    /// The device's type and index as libtorch counts them.
    pub(crate) fn code(self, codes: &Codes) -> (i32, i32) {
        match self {
            Self::Cpu => (codes.cpu, 0),
            Self::Cuda(_) if crate::pretend::is_on() => (codes.cpu, 0),
            Self::Cuda(index) => (codes.cuda, i32::try_from(index).unwrap_or(i32::MAX)),
        }
    }
}
