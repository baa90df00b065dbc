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
//! sampler    (seed, epoch, n) -> row                 a permutation that is never stored
//! loader     rows -> micro-batches of this rank      built ahead by a thread
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
mod loader;
mod lock;
mod panic_message;
mod permutation;
mod progress;
mod recorded;
mod sampler;
mod search;
mod share;
mod source;
mod tokenizer;

pub use batch::{Batch, BatchSource, IGNORED_LABEL};
pub use cache::{CacheError, Token, TokenCache, Verify};
pub use dataset::{DatasetError, Rows, TokenDataset};
pub use error::DataError;
pub use example::{Encoded, Encoder, ExampleError, ExampleKind, LossOn};
pub use hub::{Hub, HubError, Weights};
pub use loader::{Loader, LoaderError, LoaderOptions};
pub use permutation::Permutation;
pub use progress::Progress;
pub use recorded::{RecordedArrays, RecordedBatches, RecordedError};
pub use sampler::{EpochLimit, Position, Sampler, SamplerError};
pub use share::{Share, ShareError};
pub use source::{DatasetOptions, Documents, Format, SelectError, Source, SourceError, file_list};
pub use tokenizer::{Tokenizer, TokenizerError};
