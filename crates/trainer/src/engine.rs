//! Everything one rank trains with, put together from the model's config, a strategy and the mesh.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use tandem_checkpoint::Copying;
use tandem_comm::ProcessGroup;
use tandem_mesh::{Coords, DeviceMesh, partition};
use tandem_model::config::RopeConfig;
use tandem_model::lora::LoraConfig;
use tandem_model::{
    AdapterDims, DecoderLayer, Embedding, Head, ModelConfig, ModuleTree, Recompute, RopeTable,
    WholeBlocks,
};
use tandem_parallel::{
    BufferPool, ExpertGroup, FlatUnit, ShardingLevel, Strategy, TpGroup, TpSlices, UnitSetup,
    WeightSource, layouts,
};
use tandem_tensor::Device;
use tandem_tensor::attention::AttentionSpec;
use tandem_tensor::cross_entropy::Bend;
use tandem_tensor::scratch::Scratch;
use tandem_tensor::torch::recorder;

use crate::error::TrainError;
use crate::feed::Feed;
use crate::gemm_floor::{AttentionSizes, Dimensions, LayerSizes};
use crate::profile::{self, Activity, Profiler};

/// What an engine is built from.
pub struct EngineSetup {
    /// Whether it trains; for evaluation alone, it has neither gradients nor optimizer states.
    pub trains: bool,
    /// The model.
    pub config: ModelConfig,
    /// Its adapters, which are trained in the place of the model, and the seed of their dropout.
    pub lora: Option<(LoraConfig, u64)>,
    /// How it is cut.
    pub strategy: Strategy,
    /// The mesh.
    pub mesh: DeviceMesh,
    /// All ranks.
    pub world: Arc<dyn ProcessGroup>,
    /// This rank's row.
    pub tp: Arc<dyn ProcessGroup>,
    /// This rank's column.
    pub dp: Arc<dyn ProcessGroup>,
    /// Where the plan spreads experts over ranks, these.
    pub experts: Option<ExpertRanks>,
    /// Where to compute.
    pub device: Device,
    /// Tokens per row of a batch.
    pub seq: usize,
    /// Cut the residual stream over the row by token.
    pub sequence_parallel: bool,
    /// What happens to activations.
    pub recompute: Recompute,
    /// Rows whose logits exist at the same time.
    pub head_chunk_rows: usize,
}

/// Where the experts of a mixture are, from one rank.
#[derive(Clone)]
pub struct ExpertRanks {
    /// The ranks over which they are spread.
    pub group: Arc<dyn ProcessGroup>,
    /// The ranks that have the same ones.
    pub replicas: Arc<dyn ProcessGroup>,
}

/// One rank's model, sharded, with its groups.
pub struct Engine {
    /// The model.
    pub config: ModelConfig,
    /// How it is cut.
    pub strategy: Strategy,
    /// This rank's place.
    pub coords: Coords,
    /// All ranks.
    pub world: Arc<dyn ProcessGroup>,
    /// This rank's row.
    pub tp: TpGroup,
    /// This rank's column.
    pub dp: Arc<dyn ProcessGroup>,
    /// The ranks with the same experts as this one, where experts are spread over ranks.
    pub expert_replicas: Option<Arc<dyn ProcessGroup>>,
    /// Where to compute.
    pub device: Device,
    /// Tokens per row of a batch.
    pub seq: usize,
    /// What happens to activations.
    pub recompute: Recompute,
    /// Unit 0 is the embedding, 1.. are the layers, and then the head where it is not tied. Behind them are the experts of layers,
    /// where these are spread over ranks; and then the adapters of layers, where there are any: then only these are trained.
    pub units: Vec<FlatUnit>,
    /// Buffers that units borrow.
    pub pool: BufferPool,
    /// Who writes down what happens when, if anybody.
    pub profiler: Option<Arc<Profiler>>,
    /// Set while a save copies parameters and moments: they must not change before.
    pub(crate) copying: Cell<Option<Copying>>,
    pub(crate) embedding: Embedding,
    pub(crate) layers: Vec<DecoderLayer>,
    pub(crate) head: Head,
    pub(crate) adapters: Option<Adapters>,
    pub(crate) feed: Feed,
}

/// What is trained in the place of the model.
pub(crate) struct Adapters {
    /// Their parameters: a unit for each layer.
    pub(crate) tree: ModuleTree,
    /// For each layer, its unit of the engine and this rank's slice of it; `None` where it has no adapters.
    pub(crate) layers: Vec<Option<(usize, AdapterDims)>>,
    /// Of the dropout.
    pub(crate) seed: u64,
}

impl Engine {
    /// Fails when a collective failed that was waited for, so that numbers which were read on the host may be no results
    /// ([`ProcessGroup::check`]).
    pub(crate) fn check_groups(&self) -> Result<(), TrainError> {
        for group in [&self.tp.group, &self.dp, &self.world] {
            group.check()?;
        }
        if let Some(experts) = &self.tp.experts {
            experts.check()?;
        }
        if let Some(replicas) = &self.expert_replicas {
            replicas.check()?;
        }
        Ok(())
    }

    /// Allocates this rank's shards; parameters are zero until [`Engine::load`].
    ///
    /// # Errors
    /// When the plan or the mesh does not suit the model.
    pub fn new(setup: EngineSetup) -> Result<Self, TrainError> {
        let EngineSetup {
            trains,
            config,
            lora,
            strategy,
            mesh,
            world,
            tp,
            dp,
            experts,
            device,
            seq,
            sequence_parallel,
            recompute,
            head_chunk_rows,
        } = setup;
        let unsuitable = |error: &dyn std::error::Error| TrainError::Unsuitable(error.to_string());
        let coords = mesh.coords(world.rank());
        let tree = ModuleTree::new(&config);
        strategy.plan.check(&tree).map_err(|e| unsuitable(&e))?;
        let slices = TpSlices::new(&config, mesh.tp_size()).map_err(|e| unsuitable(&e))?;
        let expert_ranks = strategy.plan.expert_ranks();
        let (mut expert_rank, mut spread_over) = (0, 1);
        if let Some(ranks) = &experts {
            (expert_rank, spread_over) = (ranks.group.rank(), ranks.group.size());
        }
        if spread_over != expert_ranks {
            return Err(TrainError::Unsuitable(format!(
                "the plan spreads experts over {expert_ranks} ranks, but the group for them has {spread_over}"
            )));
        }
        let unit_layouts = layouts(
            &config,
            &tree,
            &strategy.plan,
            &slices,
            (coords.tp_rank, expert_rank),
            sequence_parallel,
        );
        let levels = strategy.level.of_units(&unit_layouts);
        let (base_trains, base_precision) = match lora {
            Some(_) => (false, strategy.precision.frozen()),
            None => (trains, strategy.precision),
        };
        let unit_setup = |column: &Arc<_>, level, trains, precision| UnitSetup {
            trains,
            dp: Arc::clone(column),
            tp: Arc::clone(&tp),
            level,
            precision,
            device,
        };
        let plan = &strategy.plan;
        let whole_blocks = |layer: usize| plan.whole_blocks(&config, layer);
        let dims = |layer: usize| {
            let experts = config.experts.as_ref().filter(|_| expert_ranks > 1);
            let experts = experts.map(|it| partition(it.rule.experts, expert_ranks, expert_rank));
            let own = slices.layer_dims(&config, layer, coords.tp_rank, experts);
            own.with_whole(&config, layer, whole_blocks(layer))
        };
        let layers = config
            .sliding_window
            .iter()
            .zip(rope_tables(&config, seq, device))
            .enumerate()
            .map(|(index, (window, rope))| DecoderLayer {
                dims: dims(index),
                whole: whole_blocks(index),
                rope,
                attention: AttentionSpec {
                    scale: config.attention_scale,
                    sliding_window: window.map(|keys| keys as i64),
                    soft_cap: config.attention_soft_cap,
                },
                norm: config.norm,
                activation: config.activation,
                residual_scale: config.residual_scale,
                matmul: strategy.precision.matmul,
                seq,
            })
            .collect();
        let vocab = &slices.vocab[coords.tp_rank];
        let vocab = vocab.start as i64..vocab.end as i64;
        let mut units: Vec<FlatUnit> = unit_layouts
            .into_iter()
            .zip(levels)
            .map(|(layout, level)| {
                let column = match (&experts, layout.experts_of) {
                    (Some(ranks), Some(_)) => &ranks.replicas,
                    _ => &dp,
                };
                FlatUnit::new(
                    layout,
                    unit_setup(column, level, base_trains, base_precision),
                )
            })
            .collect();
        let adapters = match lora {
            None => None,
            Some((lora, seed)) => {
                let adapter_tree =
                    ModuleTree::adapters(&config, &lora).map_err(|e| unsuitable(&e))?;
                let adapter_layouts = layouts(
                    &config,
                    &adapter_tree,
                    &strategy.plan,
                    &slices,
                    (coords.tp_rank, expert_rank),
                    sequence_parallel,
                );
                let mut of_layers = Vec::with_capacity(config.num_layers);
                for (layer, layout) in adapter_layouts.into_iter().enumerate() {
                    let WholeBlocks { attention, mlp } = whole_blocks(layer);
                    let first = |is_whole: bool, own: usize| if is_whole { 0 } else { own };
                    let first_head = slices.q_heads[coords.tp_rank].start;
                    let starts = (
                        first(attention, first_head * config.head_dim),
                        first(mlp, slices.intermediate[coords.tp_rank].start),
                    );
                    // The embedding is before the layers.
                    let (unit, own) = (&tree.units[1 + layer], dims(layer));
                    let width = |axis| own.width(axis);
                    let dims = AdapterDims::new(&lora, unit, own.hidden, &width, starts);
                    of_layers.push((!dims.is_empty()).then_some((units.len(), dims)));
                    if layout.numel > 0 {
                        // They are small: every rank of the column has them whole.
                        let level = strategy.level.min(ShardingLevel::Optimizer);
                        let setup = unit_setup(&dp, level, trains, strategy.precision);
                        units.push(FlatUnit::new(layout, setup));
                    }
                }
                Some(Adapters {
                    tree: adapter_tree,
                    layers: of_layers,
                    seed,
                })
            }
        };
        Ok(Self {
            feed: Feed::new(device),
            units,
            adapters,
            pool: BufferPool::new(device),
            profiler: None,
            copying: Cell::new(None),
            embedding: Embedding {
                vocab: vocab.clone(),
                residual: strategy.precision.residual,
                scale: config.embedding_scale.for_table(base_precision.param),
            },
            layers,
            head: Head {
                vocab,
                norm: config.norm,
                bend: Bend {
                    scale: config.logits_scale as f32,
                    soft_cap: config.logits_soft_cap.map(|cap| cap as f32),
                },
                z_loss: 0.0,
                matmul: strategy.precision.matmul,
                chunk_rows: head_chunk_rows,
                scratch: Scratch::default(),
            },
            tp: TpGroup {
                group: tp,
                sequence_parallel,
                experts: experts
                    .as_ref()
                    .map(|ranks| Arc::new(ExpertGroup::new(Arc::clone(&ranks.group), device))),
            },
            expert_replicas: experts.map(|ranks| ranks.replicas),
            config,
            strategy,
            coords,
            world,
            dp,
            device,
            seq,
            recompute,
        })
    }

    /// Sets all parameters of the model, less its adapters.
    ///
    /// # Errors
    /// When the source cannot give one.
    pub fn load(&mut self, source: &dyn WeightSource) -> Result<(), TrainError> {
        let base = self.base_units();
        for unit in &mut self.units[..base] {
            unit.load(source)?;
        }
        Ok(())
    }

    /// Sets all parameters of the adapters.
    ///
    /// # Errors
    /// When the source cannot give one.
    pub fn load_adapters(&mut self, source: &dyn WeightSource) -> Result<(), TrainError> {
        let base = self.base_units();
        for unit in &mut self.units[base..] {
            unit.load(source)?;
        }
        Ok(())
    }

    /// What is trained, with its names and shapes: the model, or its adapters.
    pub fn trained_tree(&self) -> ModuleTree {
        match &self.adapters {
            Some(adapters) => adapters.tree.clone(),
            None => ModuleTree::new(&self.config),
        }
    }

    /// From now on, `coefficient` times the auxiliary loss keeps experts in balance; 0 is none. Without experts it means nothing.
    pub fn set_balance(&mut self, coefficient: f64) {
        if let Some(experts) = &mut self.config.experts {
            experts.balance = (coefficient > 0.0).then_some(coefficient);
        }
    }

    /// From now on, `z_loss` times the square of each token's logarithm of the sum of all `e^logit` is a part of what the
    /// gradient is of. The loss that is reported stays the cross entropy.
    pub fn set_z_loss(&mut self, z_loss: f64) {
        self.head.z_loss = z_loss;
    }

    /// Sizes of what this rank computes.
    pub fn dimensions(&self) -> Dimensions {
        let mut layers: Vec<(LayerSizes, usize)> = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let adapters = self.adapters.as_ref();
            let adapters = adapters.and_then(|all| all.layers[index].as_ref());
            let sizes = LayerSizes {
                dims: layer.dims.clone(),
                adapters: adapters.map_or([0; 4], |(_, dims)| dims.adapters()),
                rank: adapters.map_or(0, |(_, dims)| dims.rank()),
                attention: (self.device == Device::Cpu).then_some(AttentionSizes {
                    seq: layer.seq,
                    window: layer.attention.sliding_window.map(|keys| keys as usize),
                }),
            };
            match layers.iter_mut().find(|(found, _)| *found == sizes) {
                Some((_, count)) => *count += 1,
                None => layers.push((sizes, 1)),
            }
        }
        Dimensions {
            layers,
            vocab: (self.head.vocab.end - self.head.vocab.start) as usize,
            head_chunk_rows: self.head.chunk_rows,
            routers: match self.tp.experts {
                Some(_) => self.tp.group.size(),
                None => 1,
            },
            is_frozen: self.is_frozen(),
        }
    }

    /// Does `work`, which a profiler, if there is one, writes down as `activity`; so does who records operators.
    pub(crate) fn during<T>(&mut self, activity: Activity, work: impl FnOnce(&mut Self) -> T) -> T {
        let _span = profile::span(&self.profiler, activity);
        recorder::part(activity.kind(), || work(self))
    }
}

/// For each layer, the cosines and sines of its positions: one table for all layers that embed them alike.
fn rope_tables(config: &ModelConfig, seq: usize, device: Device) -> Vec<Option<Rc<RopeTable>>> {
    let mut made: Vec<(&RopeConfig, Rc<RopeTable>)> = Vec::new();
    let mut table = |rope| {
        if let Some((_, table)) = made.iter().find(|(of, _)| *of == rope) {
            return Rc::clone(table);
        }
        let table = Rc::new(RopeTable::new(rope, config.rotary_dim, seq, device));
        made.push((rope, Rc::clone(&table)));
        table
    };
    let layers = config.rope.iter();
    layers.map(|rope| rope.as_ref().map(&mut table)).collect()
}
