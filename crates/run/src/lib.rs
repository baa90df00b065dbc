//! A run: what it is ([`spec`]), how it is started ([`start`]), and what each of its workers does ([`worker`]).
//!
//! Nothing here knows a command line. Whoever starts a run says so with a [`spec::RunSpec`], and gets back the exit code
//! or a [`failure::Failure`].
//!
//! ```
//! use tandem_run::spec::{Dtype, Fsdp, Strategy};
//!
//! let fsdp = Fsdp { autocast: true, reshard_after_forward: true, reduce_dtype: Dtype::Fp32 };
//! let strategy = Strategy::Fsdp(fsdp);
//! assert_eq!(strategy.entry_point(), "train_fsdp");
//! assert!(strategy.check(Dtype::Bf16).is_ok());
//!
//! // What cannot be is refused, with what to do instead and the exit code of a wrong command line.
//! let failure = strategy.check(Dtype::Fp32).unwrap_err();
//! assert_eq!(failure.exit_code, 2);
//! assert!(failure.message.contains("leave --autocast out"));
//! ```

pub mod adapter;
pub mod auto_mesh;
pub mod engine;
pub mod environment;
mod eval_data;
pub mod evaluation;
mod examples;
pub mod facts;
pub mod failure;
mod identity;
pub mod kept_spec;
pub mod libtorch;
mod limits;
pub mod log;
mod model_files;
pub mod place;
mod prepare;
pub mod preview;
mod progress;
pub mod ranks;
mod resume;
mod role;
pub mod session;
mod show;
pub mod spec;
pub mod start;
pub mod storage;
mod trained_model;
pub mod weights;
pub mod worker;
