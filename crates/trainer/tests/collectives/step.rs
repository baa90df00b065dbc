//! One step and one evaluation of a small model, and the sizes that they have.

use std::path::Path;
use std::sync::Arc;

use tandem_comm::World;
use tandem_data::Rows;
use tandem_mesh::DeviceMesh;
use tandem_model::config::QkNorm;
use tandem_model::lora::{LoraConfig, LoraTargets};
use tandem_model::{ModelConfig, ModuleTree, Recompute};
use tandem_parallel::{FlatUnit, Plan, Precision, RandomInit, ShardingLevel, Strategy};
use tandem_tensor::Device;
use tandem_trainer::{
    Engine, EngineSetup, EvalSet, ExpertRanks, MicroBatch, UpdateRule, evaluate, train_step,
};

use crate::table::{Sizes, UnitSizes};

pub const SEQ: usize = 16;
pub const ROWS: usize = 2;
pub const CHUNK_ROWS: usize = 8;

/// Of all matrices; where experts are, of the attention's, since experts can have none.
pub fn adapters(config: &ModelConfig) -> LoraConfig {
    let attention = ["q_proj", "k_proj", "v_proj", "o_proj"].map(String::from);
    LoraConfig {
        r: 3,
        alpha: 4.0,
        dropout: 0.1,
        use_rslora: false,
        targets: match config.experts {
            Some(_) => LoraTargets::Named(attention.into()),
            None => LoraTargets::AllLinear,
        },
    }
}

/// Rows to evaluate.
struct Numbers(u64);

impl Rows for Numbers {
    fn len(&self) -> u64 {
        self.0
    }

    fn seq_length(&self) -> usize {
        SEQ
    }

    fn fill(&self, sample: u64, input_ids: &mut [i64], labels: &mut [i64], mask: &mut [u8]) {
        for (at, id) in input_ids.iter_mut().enumerate() {
            *id = (at as i64 * 7 + sample as i64 * 13) % 500;
        }
        labels.copy_from_slice(input_ids);
        mask.fill(1);
    }
}

/// What a step depends on.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// A folder of tests-data/golden.
    pub model: &'static str,
    pub tp: usize,
    pub dp: usize,
    /// Ranks over which experts are spread.
    pub ep: usize,
    pub level: ShardingLevel,
    pub precision: Precision,
    pub sequence_parallel: bool,
    pub recompute: Recompute,
    pub reshard_after_forward: bool,
    pub micro_batches: usize,
    /// Whether all matrices have adapters, which are trained in their place.
    pub lora: bool,
}

impl Case {
    /// The model.
    pub fn config(&self) -> ModelConfig {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests-data/golden");
        ModelConfig::from_dir(&golden.join(self.model)).unwrap()
    }

    /// This rank's engine, with random weights.
    pub fn engine(&self, world: &World) -> Engine {
        let config = self.config();
        let mesh = DeviceMesh::new(self.tp, self.dp).unwrap();
        let group = |name: &str, ranks: &[usize]| world.new_group(name, ranks).unwrap();
        let everyone: Vec<usize> = (0..mesh.world_size()).collect();
        let tree = ModuleTree::new(&config);
        let plan = Plan::declared(&tree).with_spread_experts(&config, &tree, self.ep);
        let experts = (self.ep > 1).then(|| ExpertRanks {
            group: group("ep", &mesh.expert_group(world.rank(), self.ep)),
            replicas: group("edp", &mesh.expert_replicas(world.rank(), self.ep)),
        });
        let mut engine = Engine::new(EngineSetup {
            trains: true,
            lora: self.lora.then(|| (adapters(&config), 1)),
            strategy: Strategy {
                name: "fsdp",
                plan: plan.unwrap(),
                level: self.level,
                precision: self.precision,
                reshard_after_forward: self.reshard_after_forward,
            },
            mesh,
            world: group("world", &everyone),
            tp: group("tp", &mesh.tp_group(world.rank())),
            dp: group("dp", &mesh.dp_group(world.rank())),
            experts,
            device: Device::Cpu,
            seq: SEQ,
            sequence_parallel: self.sequence_parallel,
            recompute: self.recompute,
            head_chunk_rows: CHUNK_ROWS,
            config,
        })
        .unwrap();
        let weights = RandomInit {
            seed: 1,
            initializer_range: engine.config.initializer_range,
        };
        engine.load(&weights).unwrap();
        engine.load_adapters(&weights).unwrap();
        engine
    }

    /// One step, until all that it has started is done.
    pub fn step(&self, engine: &mut Engine) {
        self.step_by(engine, &UpdateRule::USUAL);
    }

    /// The same with an update of one's own.
    pub fn step_by(&self, engine: &mut Engine, rule: &UpdateRule) {
        let column = engine.coords.dp_rank as u64;
        let micro_batches: Vec<MicroBatch> = (0..self.micro_batches as u64)
            .map(|index| {
                let seed = column * 100 + index;
                let ids = (0..(ROWS * SEQ) as u64).map(|i| ((i * 7 + seed * 13) % 400) as i64);
                let ids: Vec<i64> = ids.collect();
                MicroBatch::new(&ids, &ids, SEQ, seed, Device::Cpu)
            })
            .collect();
        let report = train_step(engine, &micro_batches, 1e-3, rule, 1).unwrap();
        assert!(report.loss.is_finite() && report.grad_norm > 0.0);
        for unit in &mut engine.units {
            // Whoever cuts its parameters gathers them when the next step begins.
            if unit.kept_parameters().is_some() {
                unit.unshard(&mut engine.pool).unwrap();
            }
        }
    }

    /// An evaluation of as many batches as a step has micro-batches; the last rank of a column has no row in its last one.
    pub fn evaluate(&self, engine: &mut Engine) {
        let batches = (self.dp * self.micro_batches) as u64;
        let rows = Numbers(batches * ROWS as u64 - if self.dp > 1 { ROWS as u64 } else { 1 });
        let targets = rows.len() * (SEQ as u64 - 1);
        let set = EvalSet {
            rows: Arc::new(rows),
            batch_size: ROWS,
            max_batches: 0,
        };
        let result = evaluate(engine, &set, 1, &mut |_| Ok(true)).unwrap();
        let result = result.expect("nobody has stopped it");
        assert_eq!(result.eval_tokens, targets);
        assert!(result.eval_loss > 1.0 && result.eval_loss.is_finite());
    }

    /// What the tables' symbols mean here.
    pub fn sizes(&self, engine: &Engine) -> Sizes {
        let (layers, tokens) = (engine.config.num_layers, ROWS * SEQ);
        let layouts: Vec<_> = engine.units.iter().map(|it| it.layout().clone()).collect();
        let is_base = |unit: &&FlatUnit| !self.lora || !unit.is_trained();
        let base = engine.units.iter().filter(is_base).count();
        let mut levels = self.level.of_units(&layouts[..base]);
        levels.resize(layouts.len(), self.level.min(ShardingLevel::Optimizer));
        let units = layouts.iter().zip(levels).enumerate();
        let Precision {
            param,
            matmul,
            residual,
            reduce,
        } = self.precision;
        let mut words = Vec::new();
        match self.recompute {
            Recompute::None => {}
            Recompute::Light => words.push("light"),
            Recompute::Full => words.push("full"),
        }
        if engine.config.qk_norm == Some(QkNorm::AcrossHeads) {
            words.push("across");
        }
        if self.reshard_after_forward {
            words.push("reshard");
        }
        let experts = engine.config.experts.as_ref();
        if let Some(experts) = experts {
            words.push("experts");
            if experts.balance.is_some() && self.micro_batches > 1 {
                words.push("ahead");
            }
        }
        words.push(if self.ep > 1 { "spread" } else { "cut" });
        let of_layer = experts.map_or(0, |experts| experts.rule.experts);
        let choices = experts.map_or(0, |experts| experts.rule.top_k) * tokens;
        let of_all_layers = experts.map_or(0, |experts| experts.rule.experts * layers);
        Sizes {
            numbers: [
                ("m", self.micro_batches),
                ("L", layers),
                ("C", tokens / CHUNK_ROWS),
                ("R", CHUNK_ROWS),
                ("E", of_all_layers),
                ("X", of_layer),
                ("S", choices * self.ep / self.tp),
                ("ep", self.ep),
                ("T", tokens),
                ("H", engine.config.hidden_size),
                ("tp", self.tp),
                ("p", param.elt_size_in_bytes()),
                ("c", matmul.elt_size_in_bytes()),
                ("r", residual.elt_size_in_bytes()),
                ("g", reduce.elt_size_in_bytes()),
            ]
            .into(),
            words,
            groups: [
                ("tp", self.tp),
                ("dp", self.dp),
                ("world", self.tp * self.dp),
                ("ep", self.ep),
                ("edp", self.tp * self.dp / self.ep),
            ]
            .into(),
            sequence_parallel: self.sequence_parallel && self.tp > 1,
            units: units
                .map(|(index, (layout, level))| UnitSizes {
                    level: match level {
                        _ if layout.experts_of.is_none() && self.dp == 1 => 0,
                        _ if layout.experts_of.is_some() && self.tp * self.dp == self.ep => 0,
                        ShardingLevel::Replicated => 0,
                        ShardingLevel::Optimizer => 1,
                        ShardingLevel::Gradients => 2,
                        ShardingLevel::Parameters => 3,
                    },
                    unit: layout.numel,
                    partial: layout
                        .replicas
                        .iter()
                        .filter(|replica| replica.partial_gradient)
                        .map(|replica| replica.len)
                        .sum(),
                    is_layer: (1..=layers).contains(&index),
                    is_experts: layout.experts_of.is_some(),
                    is_trained: engine.units[index].is_trained(),
                })
                .collect(),
        }
    }
}
