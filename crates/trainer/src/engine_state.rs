//! Parameters and optimizer states between an engine and checkpoints.

use std::time::{Duration, Instant};

use tandem_checkpoint::{Reader, Role, Snapshot, TensorSpec};
use tandem_mesh::ShardSlice;
use tandem_model::ParamSpec;
use tandem_parallel::{FlatUnit, OptimizerState, OwnedPiece, WeightSource};
use tandem_tensor::cpu;

use crate::engine::Engine;
use crate::error::TrainError;

/// What is kept of every parameter, by both names.
const STATES: [(OptimizerState, Role); 3] = [
    (OptimizerState::Param, Role::Param),
    (OptimizerState::ExpAvg, Role::ExpAvg),
    (OptimizerState::ExpAvgSq, Role::ExpAvgSq),
];

impl Engine {
    /// What a checkpoint of this model must hold.
    pub fn tensor_specs(&self) -> Vec<TensorSpec> {
        let roles: Vec<Role> = STATES.iter().map(|(_, role)| role.clone()).collect();
        self.trained_tree()
            .parameters()
            .map(|spec| TensorSpec {
                name: spec.name.clone(),
                shape: spec.shape.clone(),
                roles: roles.clone(),
            })
            .collect()
    }

    /// What this rank answers for, where it lies: over all ranks, every element once.
    pub(crate) fn state_views(&self) -> StateViews {
        let of_state = |(state, role): (OptimizerState, Role)| {
            let of_unit = move |unit: &FlatUnit| unit.pieces(state);
            let trained = self.units.iter().filter(|unit| unit.is_trained());
            let pieces = trained.flat_map(of_unit);
            pieces.map(move |piece| (role.clone(), piece))
        };
        StateViews(STATES.into_iter().flat_map(of_state).collect())
    }

    /// Waits until the state that is being saved is copied, and may change. Returns for how long.
    pub(crate) fn wait_until_copied(&self) -> Duration {
        match self.copying.take() {
            None => Duration::ZERO,
            Some(copying) => {
                let begun = Instant::now();
                copying.wait();
                begun.elapsed()
            }
        }
    }

    /// Reads this rank's part of the state, whatever mesh and strategy wrote it. No rank waits for another here; when all
    /// have read, [`Engine::publish`] makes the parameters usable. `progress` is told units done and in all.
    ///
    /// # Errors
    /// When the checkpoint cannot be read or is not of this model.
    pub fn read_state(
        &mut self,
        reader: &Reader,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), TrainError> {
        let total = self.units.len() as u64;
        for (done, unit) in self.units.iter_mut().enumerate() {
            if !unit.is_trained() {
                continue;
            }
            for (state, role) in STATES {
                unit.load_state(state, &FromCheckpoint { reader, role })?;
            }
            progress(done as u64 + 1, total);
        }
        Ok(())
    }

    /// Reads this rank's part of the parameters alone, whatever mesh and strategy wrote them; for evaluation. Where the model is
    /// frozen, these are the adapters'.
    ///
    /// # Errors
    /// As [`Engine::read_state`].
    pub fn load_parameters(&mut self, reader: &Reader) -> Result<(), TrainError> {
        let source = FromCheckpoint {
            reader,
            role: Role::Param,
        };
        match self.is_frozen() {
            true => self.load_adapters(&source),
            false => self.load(&source),
        }
    }

    /// Brings the compute copies of the parameters up to date with the master weights, on all ranks together.
    ///
    /// # Errors
    /// When a peer fails.
    pub fn publish(&mut self) -> Result<(), TrainError> {
        for unit in self.units.iter_mut().filter(|unit| unit.is_trained()) {
            unit.publish()?;
        }
        Ok(())
    }
}

/// Views of the state, for another thread to copy while nobody changes it.
pub(crate) struct StateViews(Vec<(Role, OwnedPiece)>);

impl StateViews {
    /// Copies everything.
    pub fn copy_to(self, snapshot: &mut Snapshot) {
        let Self(pieces) = self;
        snapshot.reserve(pieces.iter().map(|(_, piece)| piece.slice.numel()).sum());
        for (role, piece) in pieces {
            snapshot.push(&piece.tensor, role, piece.slice, |out| {
                cpu::copy_f32(&piece.values, out);
            });
        }
    }
}

/// One role of a checkpoint as a source of parameters.
struct FromCheckpoint<'a> {
    reader: &'a Reader,
    role: Role,
}

impl WeightSource for FromCheckpoint<'_> {
    fn read(
        &self,
        param: &ParamSpec,
        slice: &ShardSlice,
        out: &mut [f32],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.reader.read(&param.name, &self.role, slice, out)?)
    }
}
