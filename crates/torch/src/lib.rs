//! The only crate that knows libtorch: it opens it when the program runs, and offers the few tensors and operations that
//! Tandem needs.
//!
//! Nothing of libtorch is there when this crate is compiled, no header and no library. [`open`] finds a `libtorch_cpu.so`
//! ([`Surroundings`] says where it looks), loads it, and looks up C functions by name: those of PyTorch's stable ABI
//! (`torch/csrc/stable/c/shim.h`), of AOTInductor (`torch/csrc/inductor/aoti_torch/c/shim.h`) and the ones generated for each
//! operator (`c_shim_cpu.h`, `c_shim_cuda.h`); operators without such a function go through the dispatcher by name. So one
//! program runs with every release from [`OLDEST`] on. PyTorch keeps the C functions for two years; it promises nothing for
//! operators called by name, which is why [`open`] tries each of them once.
//!
//! Whoever does not call [`open`] gets the same library at the first operation, and a panic where [`open`] has an error.
//!
//! # Errors and panics
//! An operation that libtorch refuses is a mistake of the caller (shapes, kinds) or a lack of memory: it panics with
//! libtorch's own message. Before release 2.13 libtorch hands out no message but prints it on standard error, where it then
//! stands above ours.
//!
//! # Example
//! ```
//! use tandem_torch::{Device, Kind, Surroundings, Tensor};
//!
//! let torch = tandem_torch::open(&Surroundings::read())?;
//! println!("libtorch {}, from {}", torch.version(), torch.origin());
//! let x = Tensor::full([2, 3], 1.5, (Kind::Float, Device::Cpu));
//! assert_eq!((&x + &x).sum(Kind::Double).double_value(), 18.0);
//! # Ok::<_, tandem_torch::TorchError>(())
//! ```

mod abi;
mod arithmetic;
pub mod attention;
mod compare;
mod create;
pub mod cuda;
mod device;
mod dispatch;
mod error;
mod fused;
mod grouped;
mod host;
mod idle;
mod index;
mod kind;
mod library;
mod locate;
mod open;
mod operators;
pub mod pretend;
mod product;
pub mod recorder;
mod reduce;
mod scalar;
mod stand_in;
mod tensor;
mod version;
mod view;

pub use device::Device;
pub use error::TorchError;
pub use fused::{AdamW, AdamWGuard};
pub use grouped::has_grouped_products;
pub use host::HostElement;
pub use idle::let_idle_threads_sleep;
pub use kind::Kind;
pub use library::{Torch, set_num_threads};
pub use locate::{Found, Origin, Surroundings, find};
pub use open::open;
pub use scalar::Scalar;
pub use tensor::{Shape, Tensor};
pub use version::{NEWEST_TESTED, OLDEST, Version};
