//! How values of a spec are written that other crates have: by their names on the command line.

use serde::{Serialize, Serializer};
use tandem_checkpoint::ScoreOrder;
use tandem_comm::Transport;
use tandem_data::{ExampleKind, Packing};
use tandem_model::Recompute;
use tandem_tensor::DeviceChoice;
use tandem_trainer::WeightDecayOn;

/// What rows are.
pub fn example_kind<S: Serializer>(
    kind: &Option<ExampleKind>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    kind.map(ExampleKind::name).serialize(serializer)
}

/// How documents are packed.
pub fn packing<S: Serializer>(packing: &Option<Packing>, serializer: S) -> Result<S::Ok, S::Error> {
    packing.map(Packing::name).serialize(serializer)
}

/// One name as it has always been written.
pub fn one_or_list<S: Serializer>(names: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    match names {
        [one] => one.serialize(serializer),
        several => several.serialize(serializer),
    }
}

/// Where to compute.
pub fn device<S: Serializer>(device: &DeviceChoice, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match device {
        DeviceChoice::Auto => "auto",
        DeviceChoice::Cpu => "cpu",
        DeviceChoice::Cuda => "cuda",
    })
}

/// What backward computes again.
pub fn recompute<S: Serializer>(
    choice: &Option<Recompute>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let name = choice.map(|choice| match choice {
        Recompute::None => "none",
        Recompute::Light => "light",
        Recompute::Full => "full",
    });
    name.serialize(serializer)
}

/// What decays.
pub fn weight_decay_on<S: Serializer>(
    on: &WeightDecayOn,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match on {
        WeightDecayOn::All => "all",
        WeightDecayOn::Matrices => "matrices",
    })
}

/// How data move.
pub fn transport<S: Serializer>(transport: &Transport, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match transport {
        Transport::Auto => "auto",
        Transport::Shm => "shm",
        Transport::Tcp => "tcp",
        Transport::Staged => "staged",
    })
}

/// What is better.
pub fn score_order<S: Serializer>(order: &ScoreOrder, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match order {
        ScoreOrder::Max => "max",
        ScoreOrder::Min => "min",
    })
}
