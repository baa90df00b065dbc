//! The table at the top of `train_step.rs` against what ranks say to each other in a step, and that of `evaluate.rs` against an
//! evaluation: nothing happens that it does not list, and all that it lists happens, as often and with as many bytes. And what
//! `tandem_plan` reckons with, likewise.
//!
//! The ranks are threads here: what counts is what they say, not that they are processes.

#![allow(clippy::unwrap_used)] // a failed helper is a failed test

mod decay;
mod many;
mod planned;
mod step;
mod table;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tandem_comm::{Observer, OperationEvent, RunSecret, Transport, World, WorldConfig};
use tandem_model::Recompute;
use tandem_parallel::{Precision, ShardingLevel};

use step::Case;
use table::{Collectives, Row, Sizes};

/// The texts that people read.
const TRAIN_STEP: &str = include_str!("../../src/train_step.rs");
const EVALUATE: &str = include_str!("../../src/evaluate.rs");

/// Collectives of one rank since the last look.
#[derive(Default)]
struct Recorder(Mutex<Collectives>);

impl Observer for Recorder {
    fn operation(&self, event: &OperationEvent) {
        let group = event.group.to_string();
        let key = (group, event.collective.to_string(), event.bytes);
        *self.0.lock().unwrap().entry(key).or_default() += 1;
    }

    fn waited(&self, _group: &Arc<str>, _start: Instant, _end: Instant) {}
}

impl Recorder {
    fn take(&self) -> Collectives {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// Runs `body` as every rank of a world of `size`.
fn as_ranks(size: usize, body: impl Fn(&World) + Sync) {
    let port = {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listener.local_addr().unwrap().port()
    };
    let connect = |rank| {
        World::connect(&WorldConfig {
            rank,
            world_size: size,
            local_rank: rank,
            local_world_size: size,
            master_addr: "127.0.0.1".to_owned(),
            master_port: port,
            master_fd: None,
            timeout: Duration::from_secs(300),
            network_interface: None,
            transport: Transport::Tcp,
            secret: RunSecret::guessable("a test"),
        })
    };
    thread::scope(|scope| {
        for rank in 0..size {
            let (connect, body) = (&connect, &body);
            scope.spawn(move || body(&connect(rank).unwrap()));
        }
    });
}

/// Every level on every mesh, and whatever else changes what is said.
fn cases() -> Vec<Case> {
    use ShardingLevel::{Gradients, Optimizer, Parameters, Replicated};
    let mut cases = Vec::new();
    for (tp, dp) in [(1, 1), (2, 1), (1, 2), (2, 2)] {
        for level in [Replicated, Optimizer, Gradients, Parameters] {
            let case = Case {
                model: "qwen2_tied",
                tp,
                dp,
                ep: 1,
                level,
                precision: Precision::autocast(),
                sequence_parallel: false,
                recompute: Recompute::Light,
                reshard_after_forward: true,
                micro_batches: 2,
                lora: false,
            };
            cases.push(case);
            // Adapters in the place of a model.
            for sequence_parallel in [false, tp > 1] {
                cases.push(Case {
                    model: "qwen2_untied",
                    lora: true,
                    precision: Precision::bf16(),
                    sequence_parallel,
                    ..case
                });
            }
            // Norms of q and k: their gradients are partial.
            cases.push(Case {
                model: "qwen3_qknorm",
                precision: Precision::fp32(),
                ..case
            });
            // A head of its own, and (with sequence parallelism) all norms partial.
            cases.push(Case {
                model: "qwen2_untied",
                precision: Precision::bf16(),
                sequence_parallel: tp > 1,
                reshard_after_forward: false,
                micro_batches: 3,
                ..case
            });
        }
    }
    // q and k normalised over heads of several ranks.
    for recompute in [Recompute::Light, Recompute::Full] {
        cases.push(Case {
            model: "olmo2",
            recompute,
            sequence_parallel: recompute == Recompute::Full,
            micro_batches: 1,
            ..cases[cases.len() - 1]
        });
    }
    // Experts that a loss keeps in balance, which takes a look ahead where there are several micro-batches.
    for micro_batches in [1, 2] {
        cases.push(Case {
            model: "qwen3_moe_aux",
            recompute: Recompute::Light,
            sequence_parallel: micro_batches == 2,
            micro_batches,
            ..cases[cases.len() - 1]
        });
    }
    // Experts that are spread: over a row, over columns, over half a mesh and over all of it.
    for (tp, dp, ep) in [
        (2, 1, 2),
        (1, 2, 2),
        (2, 2, 2),
        (2, 2, 4),
        (4, 1, 2),
        (1, 4, 2),
    ] {
        let of_experts = Case {
            model: "qwen3_moe_aux",
            lora: false,
            ..cases[cases.len() - 1]
        };
        for level in [Replicated, Optimizer, Gradients, Parameters] {
            for (recompute, sequence_parallel) in
                [(Recompute::Light, tp > 1), (Recompute::Full, false)]
            {
                cases.push(Case {
                    tp,
                    dp,
                    ep,
                    level,
                    recompute,
                    sequence_parallel,
                    reshard_after_forward: true,
                    micro_batches: 1 + usize::from(level >= Gradients),
                    ..of_experts
                });
            }
        }
        // And below adapters.
        cases.push(Case {
            tp,
            dp,
            ep,
            lora: true,
            ..of_experts
        });
    }
    for recompute in [Recompute::None, Recompute::Full] {
        for sequence_parallel in [false, true] {
            cases.push(Case {
                sequence_parallel,
                recompute,
                model: "qwen2_untied",
                micro_batches: 1,
                lora: false,
                tp: 2,
                dp: 2,
                ep: 1,
                level: Parameters,
                ..cases[cases.len() - 1]
            });
        }
    }
    cases
}

/// A table, and which of its rows were seen.
struct Checked {
    rows: Vec<Row>,
    used: Mutex<Vec<bool>>,
}

impl Checked {
    fn new(text: &str) -> Self {
        let rows = table::parse(text);
        let used = Mutex::new(vec![false; rows.len()]);
        Self { rows, used }
    }

    /// What the table lists in a case.
    fn listed(&self, sizes: &Sizes) -> Collectives {
        let mut listed = BTreeMap::new();
        for (index, row) in self.rows.iter().enumerate() {
            self.used.lock().unwrap()[index] |= row.add_to(sizes, &mut listed);
        }
        listed
    }

    fn assert_all_used(self) {
        let used = self.used.into_inner().unwrap();
        let rows = self.rows.iter().zip(used);
        let unused: Vec<&Row> = rows
            .filter_map(|(row, used)| (!used).then_some(row))
            .collect();
        assert!(unused.is_empty(), "in no case: {unused:#?}");
    }
}

#[test]
fn a_step_and_an_evaluation_say_what_their_tables_list_and_nothing_else() {
    tandem_tensor::device::set_threads(1);
    let (step, evaluation) = (Checked::new(TRAIN_STEP), Checked::new(EVALUATE));
    as_ranks(4, |world| {
        let recorder = Arc::new(Recorder::default());
        assert!(world.observe(recorder.clone()));
        for case in cases() {
            // The ranks that are not in this mesh wait for nobody.
            if world.rank() >= case.tp * case.dp {
                continue;
            }
            let mut engine = case.engine(world);
            let sizes = case.sizes(&engine);
            // What an update leaves to be gathered beside the next step is waited for, not counted in that.
            recorder.take();
            case.step(&mut engine);
            let said = recorder.take();
            let rank = world.rank();
            assert_eq!(said, step.listed(&sizes), "a step, rank {rank} of {case:?}");
            if engine.coords.tp_rank == 0 {
                let said = planned::large(said, &case);
                assert_eq!(said, planned::step(&case), "the plan of {case:?}");
            }
            case.evaluate(&mut engine);
            let said = recorder.take();
            let listed = evaluation.listed(&sizes);
            assert_eq!(said, listed, "an evaluation, rank {rank} of {case:?}");
        }
    });
    step.assert_all_used();
    evaluation.assert_all_used();
}

#[test]
fn the_files_of_the_tables_do_what_they_say() {
    for row in [table::parse(TRAIN_STEP), table::parse(EVALUATE)].concat() {
        let (krate, file) = row.file.split_once('/').expect("a crate and a file");
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let path = crates.join(krate).join("src").join(file);
        let text = std::fs::read_to_string(&path);
        let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let calls = row.calls();
        assert!(
            calls.iter().any(|call| text.contains(call)),
            "{} calls none of {calls:?}",
            row.file
        );
    }
}
