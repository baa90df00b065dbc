//! The operations of a decoder as explicit forward and backward functions, and the device that they run on. Each takes
//! [`tandem_kernels`] where its tensors are plain ones on the CPU, else libtorch, which only [`tandem_torch`] knows.
//!
//! Nothing here records an autograd graph (no tensor ever requires a gradient): each operation has a function
//! for its output and one for its gradients, and the caller says what is kept between the two.
//! Matrices are row-major; activations are `[tokens, features]`.

pub mod adamw;
pub mod attention;
pub mod cpu;
pub mod cross_entropy;
pub mod device;
pub mod embedding;
pub mod fingerprint;
pub mod gemm_rate;
pub mod linear;
mod matmul;
pub mod memory;
pub mod rms_norm;
pub mod rope;
pub mod scratch;
pub mod sum_of_squares;
pub mod swiglu;

pub use device::{DeviceChoice, DeviceError};
pub use tandem_kernels::random;
/// Which libtorch this process computes with.
pub use tandem_torch as torch;
pub use tandem_torch::{Device, HostElement, Kind, Tensor};
