//! What `tandem_plan` reckons that ranks say in a step.

use tandem_mesh::DeviceMesh;
use tandem_model::ModuleTree;
use tandem_parallel::Plan;
use tandem_plan::{Collective, Group, Settings, Share, Verb, of_step};

use crate::step::{self, Case};
use crate::table::Collectives;

/// What the first rank of a row says in a step of `case`.
pub fn step(case: &Case) -> Collectives {
    let config = case.config();
    let tree = ModuleTree::new(&config);
    let plan = Plan::declared(&tree).with_spread_experts(&config, &tree, case.ep);
    let lora = step::adapters(&config);
    let adapters = case
        .lora
        .then(|| ModuleTree::adapters(&config, &lora).unwrap());
    let adapters = adapters.as_ref().map(|tree| (&lora, tree));
    let share = Share::new(
        &config,
        &plan.unwrap(),
        case.tp,
        case.sequence_parallel,
        adapters,
    )
    .unwrap();
    let settings = Settings {
        mesh: DeviceMesh::new(case.tp, case.dp).unwrap(),
        level: case.level,
        precision: case.precision,
        reshard_after_forward: case.reshard_after_forward,
        sequence_parallel: case.sequence_parallel,
        recompute: case.recompute,
        seq_length: step::SEQ,
        batch_size: step::ROWS,
        micro_batches: case.micro_batches,
        head_chunk_rows: step::CHUNK_ROWS,
    };
    let mut said = Collectives::new();
    for (collective, times) in of_step(&share, &settings) {
        let Collective { group, verb, bytes } = collective;
        let group = match group {
            Group::Tp => "tp",
            Group::Dp => "dp",
            Group::Ep => "ep",
            Group::Edp => "edp",
        };
        let verb = match verb {
            Verb::AllReduce => "all_reduce",
            Verb::AllGather => "all_gather",
            Verb::ReduceScatter => "reduce_scatter",
            Verb::AllToAll => "all_to_all",
        };
        let key = (group.to_owned(), verb.to_owned(), bytes as usize);
        if times > 0 {
            *said.entry(key).or_default() += times as usize;
        }
    }
    said
}

/// Of what a rank said, what costs something: without agreements on a few numbers.
pub fn large(mut said: Collectives, case: &Case) -> Collectives {
    let few = [
        ("tp", "all_gather", 8 * case.tp),
        ("dp", "all_reduce", 16),
        ("dp", "all_reduce", 8),
    ];
    for (group, verb, bytes) in few {
        let key = (group.to_owned(), verb.to_owned(), bytes);
        if let Some(times) = said.get_mut(&key) {
            *times -= 1;
        }
    }
    said.retain(|(group, ..), times| group != "world" && *times > 0);
    said
}
