//! Everything one rank trains with, put together from the model's config, a strategy and the mesh.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use tandem_checkpoint::Copying;
use tandem_comm::ProcessGroup;
use tandem_mesh::{Coords, DeviceMesh};
use tandem_model::{
    DecoderLayer, Embedding, Head, HeadTensors, LayerTensors, ModelConfig, ModuleTree, Recompute,
    RopeTable,
};
use tandem_parallel::{
    BufferPool, FlatUnit, Strategy, TpGroup, TpSlices, UnitSetup, WeightSource, layouts,
};
use tandem_tensor::attention::AttentionSpec;
use tandem_tensor::scratch::Scratch;
use tandem_tensor::{Device, Tensor};

use crate::error::TrainError;
use crate::profile::Profiler;

/// What an engine is built from.
pub struct EngineSetup {
    /// The model.
    pub config: ModelConfig,
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
    /// Where to compute.
    pub device: Device,
    /// Tokens per row of a batch.
    pub seq: usize,
    /// What happens to activations.
    pub recompute: Recompute,
    /// Unit 0 is the embedding, 1.. are the layers, and the last is the head where it is not tied.
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
}

impl Engine {
    /// Allocates this rank's shards; parameters are zero until [`Engine::load`].
    ///
    /// # Errors
    /// When the plan or the mesh does not suit the model.
    pub fn new(setup: EngineSetup) -> Result<Self, TrainError> {
        let EngineSetup {
            config,
            strategy,
            mesh,
            world,
            tp,
            dp,
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
        let unit_layouts = layouts(
            &config,
            &tree,
            &strategy.plan,
            &slices,
            coords.tp_rank,
            sequence_parallel,
        );
        let levels = strategy.level.of_units(&unit_layouts);
        let unit_setup = |level| UnitSetup {
            dp: Arc::clone(&dp),
            tp: Arc::clone(&tp),
            level,
            precision: strategy.precision,
            device,
        };
        let rope = Rc::new(RopeTable::new(&config.rope, config.head_dim, seq, device));
        let dims = slices.layer_dims(&config, coords.tp_rank);
        let scale = 1.0 / (config.head_dim as f64).sqrt();
        let layers = config
            .sliding_window
            .iter()
            .map(|window| DecoderLayer {
                dims: dims.clone(),
                rope: Rc::clone(&rope),
                attention: AttentionSpec {
                    scale,
                    sliding_window: window.map(|keys| keys as i64),
                },
                eps: config.rms_norm_eps,
                matmul: strategy.precision.matmul,
                seq,
            })
            .collect();
        let vocab = &slices.vocab[coords.tp_rank];
        let vocab = vocab.start as i64..vocab.end as i64;
        Ok(Self {
            units: unit_layouts
                .into_iter()
                .zip(levels)
                .map(|(layout, level)| FlatUnit::new(layout, unit_setup(level)))
                .collect(),
            pool: BufferPool::new(device),
            profiler: None,
            copying: Cell::new(None),
            embedding: Embedding {
                vocab: vocab.clone(),
                residual: strategy.precision.residual,
            },
            layers,
            head: Head {
                vocab,
                eps: config.rms_norm_eps,
                matmul: strategy.precision.matmul,
                chunk_rows: head_chunk_rows,
                scratch: Scratch::default(),
            },
            tp: TpGroup {
                group: tp,
                sequence_parallel,
            },
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

    /// Sets all parameters.
    ///
    /// # Errors
    /// When the source cannot give one.
    pub fn load(&mut self, source: &dyn WeightSource) -> Result<(), TrainError> {
        for unit in &mut self.units {
            unit.load(source)?;
        }
        Ok(())
    }

    /// The unit that holds the output head.
    pub(crate) fn head_unit(&self) -> usize {
        if self.config.tie_word_embeddings {
            0
        } else {
            self.units.len() - 1
        }
    }

    /// The embedding's rows in unit 0's buffer, `[local vocabulary, hidden]`.
    pub(crate) fn table(&self, flat: &Tensor) -> Tensor {
        let rows = self.embedding.vocab.end - self.embedding.vocab.start;
        let hidden = self.config.hidden_size as i64;
        flat.narrow(0, 0, rows * hidden).view([rows, hidden])
    }

    pub(crate) fn head_tensors(&self, flat: &Tensor) -> HeadTensors {
        let rows = (self.head.vocab.end - self.head.vocab.start) as usize;
        let tied = self.config.tie_word_embeddings;
        match HeadTensors::view(flat, self.config.hidden_size, rows, tied) {
            Some(tensors) => tensors,
            None => unreachable!("the layout and the head's views have one order"),
        }
    }

    pub(crate) fn layer_tensors(&self, layer: usize, flat: &Tensor) -> LayerTensors {
        match LayerTensors::view(flat, &self.layers[layer].dims) {
            Some(tensors) => tensors,
            None => unreachable!("the layout and the layer's views have one order"),
        }
    }
}
