//! This project's own kernels on the CPU: the operations of a decoder, and the reduction of ranks' memory, over plain slices.
//!
//! Slices in, slices out: whoever has tensors makes slices of them, and no library of tensors is needed to build or test
//! this crate. A kernel fills memory that its caller provides. Sizes are checked; what does not fit panics. Matrices are
//! row-major, and activations are `[tokens, features]`.
//!
//! ```
//! use tandem_kernels::glu::{self, Activation};
//! use tandem_kernels::rms_norm::{self, Norm};
//!
//! // Two tokens with three features each, normalised to a mean square of 1.
//! let x = [3.0f32, -4.0, 5.0, 0.1, 0.1, 0.1];
//! let weight = [1.0, 1.0, 1.0];
//! let (mut y, mut rstd) = ([0f32; 6], [0.0; 2]);
//! rms_norm::forward(&x, Norm::new(&weight, 1e-6), &mut y, &mut rstd);
//! let mean_square = |row: &[f32]| row.iter().map(|y| y * y).sum::<f32>() / 3.0;
//! assert!((mean_square(&y[..3]) - 1.0).abs() < 1e-5);
//!
//! // One token whose gate is 0 and 2, and whose up projection is 7 and 1.
//! let mut product = [0f32; 2];
//! glu::forward(Activation::Silu, &[0.0f32, 2.0, 7.0, 1.0], 2, &mut product);
//! assert_eq!(product[0], 0.0);
//! assert!((product[1] - 1.761_594).abs() < 1e-6);
//! ```
//!
//! Kernels are plain loops that are compiled once per instruction set, or (the products of bf16 matrices and attention)
//! written for one. They run on the threads of the rayon pool that they are called in. **The result is the same, bit for bit,
//! on any number of threads.** Arithmetic is fp32 inside, and a result is rounded once where nothing else is said. On processors
//! with AVX512-BF16, most bf16 results that are smaller than every normal number are 0: their own instruction rounds so.

pub mod accumulate;
pub mod adamw;
#[cfg(target_arch = "x86_64")]
mod aligned;
#[cfg(target_arch = "x86_64")]
pub mod attention;
#[cfg(target_arch = "x86_64")]
pub mod avx512_bf16;
pub mod cross_entropy;
mod dispatch;
pub mod dropout;
pub mod element;
pub mod embedding;
mod exp;
pub mod experts;
pub mod glu;
mod instruction_set;
mod lanes;
pub mod linear;
#[cfg(target_arch = "x86_64")]
pub mod matmul;
pub mod random;
pub mod reduce;
pub mod rms_norm;
pub mod rope;
pub mod router;
pub mod sum_of_squares;
mod tanh;
#[cfg(test)]
mod testing;
mod vocab;

pub use accumulate::Accumulate;
pub use element::Element;
