//! What Ray Train is asked for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Serialize;

/// The cluster, and what of it each worker gets.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Ray {
    /// The cluster, `HOST:PORT`; `auto` finds one, `local` starts one.
    #[schemars(length(min = 1))]
    pub address: String,
    /// Every worker gets a GPU.
    pub use_gpu: bool,
    /// What a worker takes of its node, by Ray's names.
    #[schemars(extend(
        "additionalProperties" = {"type": "number", "minimum": 0},
        "x-expected" = r#"amounts by name, such as {"CPU": 4, "GPU": 1}"#
    ))]
    pub resources_per_worker: Option<BTreeMap<String, f64>>,
    /// How workers are spread over nodes.
    pub placement_strategy: Option<PlacementStrategy>,
    /// The kind of GPU, in Ray's words.
    #[schemars(length(min = 1))]
    pub accelerator_type: Option<String>,
    /// The labels that nodes must have.
    #[schemars(extend("x-expected" = r#"values by label, such as {"ray.io/accelerator-type": "H100"}"#))]
    pub label_selector: Option<BTreeMap<String, String>>,
    /// Seconds to wait for a busy cluster.
    #[schemars(
        with = "Option<f64>",
        extend("exclusiveMinimum" = 0, "x-expected" = "a number of seconds above 0")
    )]
    pub resource_timeout_s: Option<u64>,
    /// The workers' program, where nodes cannot find it by its name.
    #[serde(skip)]
    pub binary: Option<PathBuf>,
}

/// How Ray spreads workers over nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[schemars(inline)]
pub enum PlacementStrategy {
    /// On few nodes.
    Pack,
    /// On many nodes.
    Spread,
    /// On one node, or not at all.
    StrictPack,
    /// Each on a node of its own, or not at all.
    StrictSpread,
}
