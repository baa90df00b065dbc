//! What training a model costs before there is anything to train on: the memory of a rank and the time of a step, for every way to
//! cut the model over the devices, from its description alone.
//!
//! Nothing here reads a file, opens libtorch or knows a process group: every function is arithmetic over sizes.
//!
//! ```
//! use serde_json::json;
//! use tandem_model::{ModelConfig, ModuleTree};
//! use tandem_parallel::{Plan, Precision};
//! use tandem_plan::{CutChoice, Device, Kernels, Question, search};
//!
//! let json = json!({
//!     "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 32, "hidden_size": 4096,
//!     "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
//!     "vocab_size": 128256, "max_position_embeddings": 8192,
//! });
//! let config = ModelConfig::from_json(json.as_object().ok_or("no object")?)?;
//! let device = Device::named("h100")?;
//! let found = search(&Question {
//!     config: &config, plan: &Plan::declared(&ModuleTree::new(&config)), adapters: None, devices: 8, device: &device, kernels: Kernels::Fused,
//!     precision: Precision::bf16(), seq_length: 8192, rows: 16, head_chunk_rows: 512,
//!     cuts: &CutChoice::ALL, tp_size: None, expert_parallel: None, sequence_parallel: None, recompute: None, batch_size: None,
//! })?;
//! // 8 billion parameters with their optimizer's states fit into 8 x 80 GB where they are cut, and into none of them whole.
//! assert!(found[0].fits && found[0].memory.total() < 80_000_000_000);
//! assert!(found.iter().all(|it| !it.fits || it.settings.mesh.tp_size() > 1 || it.cut.zero_stage() != Some(0)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod activations;
mod buffers;
mod compiled;
mod device;
mod explain;
pub mod flops;
mod group;
mod links;
mod memory;
mod place;
pub mod scale;
mod search;
mod settings;
mod share;
mod talk;
mod time;
mod work;

pub use compiled::{CompiledLayer, Kernel};
pub use device::{Device, DeviceError, Link};
pub use explain::{duration, reasons, recompute_name};
pub use group::Group;
pub use memory::Memory;
pub use place::Place;
pub use search::{Candidate, CutChoice, NoCandidate, Question, search};
pub use settings::Settings;
pub use share::Share;
pub use talk::{Collective, Verb, of_step};
pub use time::{Conversation, Kernels, StepTime};
