//! Getting parameters and optimizer states into and out of a unit, by name and slice.

use std::ops::Range;

use tandem_mesh::{ShardSlice, partition_aligned};
use tandem_tensor::{Kind, Tensor, cpu};

use super::{FlatUnit, OWNED_ALIGN, intersect};
use crate::error::ParallelError;
use crate::layout::LocalParam;
use crate::weights::WeightSource;

/// Elements that are loaded at a time: an embedding in fp32, twice, would be the most memory that a rank ever needs.
const PIECE: usize = 4 << 20;

/// The three fp32 numbers that training keeps for every parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptimizerState {
    /// The master weight.
    Param,
    /// AdamW's first moment.
    ExpAvg,
    /// AdamW's second moment.
    ExpAvgSq,
    /// The gradient of the last step, before clipping; for inspection.
    Gradient,
}

/// A part of a parameter that this rank, and no other, answers for.
#[derive(Debug)]
pub struct OwnedPiece {
    /// Hugging Face's name.
    pub tensor: String,
    /// Which elements of the whole tensor.
    pub slice: ShardSlice,
    /// Their values, flat fp32, on the unit's device: a view, not a copy.
    pub values: Tensor,
}

impl FlatUnit {
    /// Fills the parameters from `source` and zeroes nothing else.
    ///
    /// # Errors
    /// When the source cannot give a parameter, or a peer fails.
    pub fn load(&mut self, source: &dyn WeightSource) -> Result<(), ParallelError> {
        for param in &self.layout.params {
            // Whoever keeps the whole buffer reads all of its row's slice; otherwise only what it owns.
            let wanted = match self.full {
                Some(_) => param.span(),
                None => intersect(&param.span(), &self.owned),
            };
            for start in wanted.clone().step_by(PIECE) {
                let piece = start..wanted.end.min(start + PIECE);
                self.load_piece(source, param, &piece)?;
            }
        }
        if let Some(shard) = self.separate_compute_copy() {
            shard.copy_(&self.master);
        }
        Ok(())
    }

    /// Fills the elements `piece` of the buffer, which are some of `param`'s.
    fn load_piece(
        &self,
        source: &dyn WeightSource,
        param: &LocalParam,
        piece: &Range<usize>,
    ) -> Result<(), ParallelError> {
        let values = read(source, param, piece)?;
        if let Some(full) = &self.full {
            let values = Tensor::from_slice(&values);
            full.narrow(0, piece.start as i64, piece.len() as i64)
                .copy_(&values);
        }
        let mine = intersect(piece, &self.owned);
        if !mine.is_empty() {
            let part = &values[mine.start - piece.start..mine.end - piece.start];
            self.write(&self.master, &mine, part);
        }
        Ok(())
    }

    /// Puts values into the elements `mine` of the unit's buffer, of which `state` is the owned part.
    fn write(&self, state: &Tensor, mine: &Range<usize>, values: &[f32]) {
        let start = mine.start - self.owned.start;
        match state.kind() {
            Kind::Float => cpu::write_f32(state, start, values),
            _ => state
                .narrow(0, start as i64, mine.len() as i64)
                .copy_(&Tensor::from_slice(values)),
        }
    }

    /// Fills one state of the owned range from `source`. After [`OptimizerState::Param`], call [`Self::publish`].
    ///
    /// # Errors
    /// When the source cannot give a slice.
    pub fn load_state(
        &mut self,
        state: OptimizerState,
        source: &dyn WeightSource,
    ) -> Result<(), ParallelError> {
        for param in &self.layout.params {
            let mine = intersect(&param.span(), &self.owned);
            if mine.is_empty() {
                continue;
            }
            let values = read(source, param, &mine)?;
            self.write(self.state(state), &mine, &values);
        }
        Ok(())
    }

    /// Brings the compute copies of all ranks of the column up to date with the master weights.
    ///
    /// # Errors
    /// When a peer fails.
    pub fn publish(&mut self) -> Result<(), ParallelError> {
        if let Some(shard) = self.separate_compute_copy() {
            shard.copy_(&self.master);
        }
        self.start_refresh()?;
        if let Some(work) = self.gathering.take() {
            work.wait()?;
        }
        Ok(())
    }

    /// This rank's pieces: over the mesh, every element of every parameter appears once.
    pub fn pieces(&self, state: OptimizerState) -> Vec<OwnedPiece> {
        let dp = &self.setup.dp;
        let share = partition_aligned(self.layout.numel, dp.size(), dp.rank(), OWNED_ALIGN);
        self.layout
            .params
            .iter()
            .filter_map(|param| {
                let counted = param.offset + param.counted.start..param.offset + param.counted.end;
                let mine = intersect(&counted, &share);
                (!mine.is_empty()).then(|| OwnedPiece {
                    tensor: param.spec.name.clone(),
                    slice: local(param, &mine),
                    values: self.state(state).narrow(
                        0,
                        (mine.start - self.owned.start) as i64,
                        mine.len() as i64,
                    ),
                })
            })
            .collect()
    }

    fn state(&self, state: OptimizerState) -> &Tensor {
        match state {
            OptimizerState::Param => &self.master,
            OptimizerState::ExpAvg => &self.exp_avg,
            OptimizerState::ExpAvgSq => &self.exp_avg_sq,
            OptimizerState::Gradient => &self.gradient_shard,
        }
    }

    /// The whole buffer in the compute kind where this rank keeps it.
    pub fn kept_parameters(&self) -> Option<&Tensor> {
        self.full.as_ref().filter(|_| !self.cuts_parameters())
    }
}

/// The part `flat` (of the unit's buffer) of a parameter, as a slice of the whole tensor.
fn local(param: &LocalParam, flat: &Range<usize>) -> ShardSlice {
    param
        .slice
        .clone()
        .with_flat(flat.start - param.offset..flat.end - param.offset)
}

fn read(
    source: &dyn WeightSource,
    param: &LocalParam,
    flat: &Range<usize>,
) -> Result<Vec<f32>, ParallelError> {
    let mut values = vec![0.0; flat.len()];
    source
        .read(&param.spec, &local(param, flat), &mut values)
        .map_err(|source| ParallelError::Weights {
            tensor: param.spec.name.clone(),
            source,
        })?;
    Ok(values)
}
