//! The operations of a decoder as explicit forward and backward functions, and the device that they run on. Each takes
//! [`tandem_kernels`] where its tensors are plain ones on the CPU, else libtorch, which only [`tandem_torch`] knows.
//!
//! Nothing here records an autograd graph (no tensor ever requires a gradient): each operation has a function
//! for its output and one for its gradients, and the caller says what is kept between the two.
//! Matrices are row-major; activations are `[tokens, features]`.
//!
//! ```
//! use tandem_tensor::{Accumulate, Device, Kind, Tensor, linear};
//!
//! // Two tokens of two features, and a layer with three outputs: weights are `[out, in]`.
//! let x = Tensor::from_slice(&[1f32, 2., 3., 4.]).view([2, 2]);
//! let weight = Tensor::from_slice(&[1f32, 0., 0., 1., 1., 1.]).view([3, 2]);
//! let y = linear::forward(&x, &weight, None);
//! assert_eq!(tandem_tensor::cpu::read_f32(&y), [1., 2., 3., 3., 4., 7.]);
//!
//! // The gradient of the sum of all outputs. That of the weight goes into a buffer, which may hold another's already.
//! let d_y = Tensor::ones([2, 3], (Kind::Float, Device::Cpu));
//! let d_x = linear::backward_input(&d_y, &weight);
//! assert_eq!(tandem_tensor::cpu::read_f32(&d_x), [2., 2., 2., 2.]);
//! let d_weight = Tensor::zeros([3, 2], (Kind::Float, Device::Cpu));
//! linear::backward_weight(&d_weight, &d_y, &x, Accumulate::First);
//! linear::backward_weight(&d_weight, &d_y, &x, Accumulate::Add);
//! assert_eq!(tandem_tensor::cpu::read_f32(&d_weight), [8., 12., 8., 12., 8., 12.]);
//! ```

pub mod adamw;
pub mod attention;
pub mod check;
pub mod cpu;
pub mod cross_entropy;
pub mod device;
pub mod dropout;
pub mod embedding;
pub mod experts;
mod factor;
pub mod fingerprint;
pub mod gemm_rate;
pub mod glu;
pub mod linear;
mod matmul;
pub mod memory;
pub mod rms_norm;
pub mod rope;
pub mod scratch;
pub mod sum_of_squares;

pub use device::{DeviceChoice, DeviceError};
pub use factor::Factor;
pub use tandem_kernels::{Accumulate, random};
/// Which libtorch this process computes with.
pub use tandem_torch as torch;
pub use tandem_torch::{Device, HostElement, Kind, Tensor};
