//! From a dataset's name to the batches of one data parallel rank.
//!
//! The path of data, a module each:
//!
//! ```text
//! hub        name -> local files                     local path, or Hugging Face hub through its cache
//! source     files -> documents (strings)            text, JSON, CSV, parquet; one at a time
//! example    document -> tokens, trained or not      text, conversations, prompts with completions
//! chat       conversation -> text                    the model's chat template
//! tokenizer  text -> tokens
//! cache      all documents -> one file of tokens     built once in parallel, then memory-mapped
//! dataset    tokens -> rows of `seq_length`          packed, or one document a row
//! mixture    several datasets -> one                  by weight
//! sampler    (seed, epoch, n) -> row                 a permutation that is never stored
//! loader     rows -> micro-batches of this rank      built ahead by a thread
//! ```
//!
//! ```
//! use tandem_data::{EpochLimit, Position, Sampler};
//!
//! // Ten rows, four in a step: the last of an epoch's three steps has the two that are left.
//! let sampler = Sampler::of_all(10, 42, 4)?.limited(EpochLimit { epochs: 2, steps_per_epoch: None });
//! assert_eq!((sampler.steps_per_epoch(), sampler.total_steps()), (3, 6));
//!
//! // Every row comes once in an epoch, in an order that depends on the seed and the epoch alone.
//! let mut position = Position { epoch: 0, sample: 0 };
//! let mut rows = Vec::new();
//! while let Some(start) = sampler.next_batch(position).filter(|start| start.epoch == 0) {
//!     rows.extend(sampler.samples(start, 0..sampler.global_batch()));
//!     position = sampler.after(start);
//! }
//! rows.sort();
//! assert_eq!(rows, (0..10).collect::<Vec<_>>());
//! # Ok::<_, tandem_data::SamplerError>(())
//! ```
//!
//! Nothing here knows tensors, models or process groups. The order of data depends on the seed alone, never on the
//! mesh, so a run continues at the exact next sample on any other mesh.

mod batch;
mod cache;
pub mod chat;
mod dataset;
mod error;
mod example;
pub mod hub;
mod label;
mod limits;
mod loader;
mod lock;
mod mixture;
mod panics;
mod permutation;
mod progress;
mod row_layout;
mod sampler;
mod search;
mod share;
mod source;
mod tokenizer;

pub use batch::{Batch, BatchSource};
pub use cache::{CacheError, Token, TokenCache, Verify};
pub use dataset::{Rows, TokenDataset};
pub use error::{DataError, DatasetError, LoaderError};
pub use example::{Encoded, Encoder, ExampleError, ExampleKind, LossOn};
pub use hub::{Hub, HubError, Weights};
pub use label::IGNORED_LABEL;
pub use loader::{Loader, LoaderOptions};
pub use mixture::{Mixture, MixtureError, Part};
pub use permutation::Permutation;
pub use progress::Progress;
pub use row_layout::{Packing, RowLayout};
pub use sampler::{EpochLimit, Position, Sampler, SamplerError};
pub use share::{Share, ShareError};
pub use source::{DatasetOptions, Documents, Format, SelectError, Source, SourceError, file_list};
pub use tokenizer::{Tokenizer, TokenizerError};
