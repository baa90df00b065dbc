//! Parameters and optimizer states between an engine and checkpoints.

use tandem_checkpoint::{Reader, Role, Snapshot, TensorSpec};
use tandem_mesh::ShardSlice;
use tandem_model::{ModuleTree, ParamSpec};
use tandem_parallel::{OptimizerState, WeightSource};
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
        ModuleTree::new(&self.config)
            .parameters()
            .map(|spec| TensorSpec {
                name: spec.name.clone(),
                shape: spec.shape.clone(),
                roles: roles.clone(),
            })
            .collect()
    }

    /// Copies what this rank answers for to `snapshot`: over all ranks, every element once.
    pub fn copy_state(&self, snapshot: &mut Snapshot) {
        let pieces = || {
            STATES.iter().flat_map(|(state, role)| {
                let of_unit = |unit: &tandem_parallel::FlatUnit| unit.pieces(*state);
                self.units
                    .iter()
                    .flat_map(of_unit)
                    .map(move |piece| (role.clone(), piece))
            })
        };
        snapshot.reserve(pieces().map(|(_, piece)| piece.slice.numel()).sum());
        for (role, piece) in pieces() {
            snapshot.push(&piece.tensor, role, piece.slice, |out| {
                cpu::copy_f32(&piece.values, out);
            });
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
            for (state, role) in STATES {
                unit.load_state(state, &FromCheckpoint { reader, role })?;
            }
            progress(done as u64 + 1, total);
        }
        Ok(())
    }

    /// Brings the compute copies of the parameters up to date with the master weights, on all ranks together.
    ///
    /// # Errors
    /// When a peer fails.
    pub fn publish(&mut self) -> Result<(), TrainError> {
        for unit in &mut self.units {
            unit.publish()?;
        }
        Ok(())
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
