//! A unit of the model as one flat buffer, cut over the data parallel group.
//!
//! Every rank of a data parallel column owns one contiguous range of each unit's buffer, at whatever element the cut
//! falls (the ragged shard of veScale-FSDP, arXiv 2602.22437), so gathering and scattering work in place. Master
//! weights and optimizer states exist for the owned range only; what else is kept depends on the sharding level:
//!
//! | level        | parameters | gradients        | after the last micro-batch      | after the update       |
//! |--------------|------------|------------------|---------------------------------|------------------------|
//! | `Replicated` | whole      | whole            | all-reduce                      | nothing                |
//! | `Optimizer`  | whole      | whole            | reduce-scatter                  | all-gather             |
//! | `Gradients`  | whole      | owned            | reduce-scatter each micro-batch | all-gather             |
//! | `Parameters` | owned      | owned            | reduce-scatter each micro-batch | all-gather before use  |
//!
//! A unit that has its buffers to itself is at level `Optimizer` at most: see [`ShardingLevel::of_units`]. One that is not trained
//! (the frozen model below adapters, or any in an evaluation) has its parameters in the compute kind alone, and nothing else.

mod state;

use std::ops::Range;
use std::sync::Arc;

use tandem_comm::{ProcessGroup, ReduceOp, Work};
use tandem_mesh::partition_aligned;
use tandem_tensor::adamw::{self, AdamWState, AdamWStep, UnreadNorm};
use tandem_tensor::sum_of_squares::SumOfSquares;
use tandem_tensor::{Accumulate, linear};
use tandem_tensor::{Device, Kind, Tensor};

use crate::buffer_pool::BufferPool;
use crate::error::ParallelError;
use crate::layout::UnitLayout;
use crate::sharding::{Precision, ShardingLevel};
use crate::weight_decay::WeightDecayOn;

pub use state::{OptimizerState, OwnedPiece};

/// Owned ranges start at multiples of this many elements: a cache line of bf16.
pub const OWNED_ALIGN: usize = 32;

/// What all units of a rank share.
#[derive(Clone)]
pub struct UnitSetup {
    /// Whether there are gradients and optimizer states; without them there is the forward pass only.
    pub trains: bool,
    /// The column of the mesh; of experts that are spread, the ranks with the same ones.
    pub dp: Arc<dyn ProcessGroup>,
    /// The row of the mesh.
    pub tp: Arc<dyn ProcessGroup>,
    /// What is cut over the column.
    pub level: ShardingLevel,
    /// Kinds of numbers.
    pub precision: Precision,
    /// Where the buffers live.
    pub device: Device,
}

/// One unit on one rank.
pub struct FlatUnit {
    layout: UnitLayout,
    setup: UnitSetup,
    /// Elements of the buffer that this rank updates.
    owned: Range<usize>,
    /// Elements per rank of the column, where the buffer is cut.
    counts: Vec<usize>,
    /// The whole buffer in the compute kind, while it is there.
    full: Option<Tensor>,
    /// The owned range in the compute kind: a view of `full` where that is kept, the master itself in fp32.
    shard: Tensor,
    master: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    /// The fp32 gradient of the whole buffer: kept up to level `Optimizer`, borrowed from the pool above it.
    gradient: Option<Tensor>,
    /// The reduced fp32 gradient of the owned range; a view of `gradient` where that is kept.
    gradient_shard: Tensor,
    gathering: Option<Work>,
    reducing: Option<Reducing>,
}

/// A gradient on its way to its owners.
struct Reducing {
    work: Option<Work>,
    /// What the wire carries, where it is not the gradient buffer itself.
    wire: Option<Tensor>,
    /// Whether the sum goes straight to where it is kept.
    is_direct: bool,
    accumulate: Accumulate,
}

impl FlatUnit {
    /// A unit whose parameters are not set yet and whose optimizer state is zero.
    pub fn new(layout: UnitLayout, setup: UnitSetup) -> Self {
        let (numel, dp_size, dp_rank) = (layout.numel, setup.dp.size(), setup.dp.rank());
        let cuts = setup.level > ShardingLevel::Replicated && dp_size > 1;
        let part = |rank: usize| partition_aligned(numel, dp_size, rank, OWNED_ALIGN);
        let (owned, counts) = if cuts {
            (
                part(dp_rank),
                (0..dp_size).map(|rank| part(rank).len()).collect(),
            )
        } else {
            (0..numel, vec![numel])
        };
        let keeps_parameters = !cuts || setup.level < ShardingLevel::Parameters;
        let keeps_gradient = !cuts || setup.level < ShardingLevel::Gradients;

        let own = |t: &Tensor| t.narrow(0, owned.start as i64, owned.len() as i64);
        let zeros = |len: usize| Tensor::zeros([len as i64], (Kind::Float, setup.device));
        let param = setup.precision.param;
        let full = keeps_parameters.then(|| Tensor::zeros([numel as i64], (param, setup.device)));
        let shard = match &full {
            Some(full) => own(full),
            None => Tensor::zeros([owned.len() as i64], (param, setup.device)),
        };
        // What is not trained is kept once, as it computes.
        let master = match param {
            Kind::Float => shard.shallow_clone(),
            _ if !setup.trains => shard.shallow_clone(),
            _ => zeros(owned.len()),
        };
        let trained = if setup.trains { owned.len() } else { 0 };
        let gradient = (keeps_gradient && setup.trains).then(|| zeros(numel));
        let gradient_shard = match &gradient {
            Some(gradient) => own(gradient),
            None => zeros(trained),
        };
        Self {
            exp_avg: zeros(trained),
            exp_avg_sq: zeros(trained),
            layout,
            setup,
            owned,
            counts,
            full,
            shard,
            master,
            gradient,
            gradient_shard,
            gathering: None,
            reducing: None,
        }
    }

    /// Where the unit's parameters lie.
    pub fn layout(&self) -> &UnitLayout {
        &self.layout
    }

    /// The range of the flat buffer that this rank updates.
    pub fn owned(&self) -> Range<usize> {
        self.owned.clone()
    }

    /// Whether its parameters are trained; otherwise they are frozen, or the whole engine evaluates only.
    pub fn is_trained(&self) -> bool {
        self.setup.trains
    }

    /// The ranks that its parameters are the same for.
    pub fn column(&self) -> &dyn ProcessGroup {
        self.setup.dp.as_ref()
    }

    /// Kinds of its numbers.
    pub fn precision(&self) -> Precision {
        self.setup.precision
    }

    fn cuts(&self) -> bool {
        self.counts.len() > 1
    }

    fn cuts_parameters(&self) -> bool {
        self.cuts() && self.setup.level == ShardingLevel::Parameters
    }

    fn cuts_gradients(&self) -> bool {
        self.cuts() && self.setup.level >= ShardingLevel::Gradients
    }

    /// Starts gathering the parameters (all-gather over the column) where this rank does not hold them all.
    ///
    /// # Errors
    /// When a peer fails.
    pub fn start_unshard(&mut self, pool: &mut BufferPool) -> Result<(), ParallelError> {
        if self.full.is_some() {
            return Ok(());
        }
        let full = pool.take(self.layout.numel, self.setup.precision.param);
        let mut work = self
            .setup
            .dp
            .all_gather_into(&full, &self.shard, &self.counts)?;
        work.start();
        self.gathering = Some(work);
        self.full = Some(full);
        Ok(())
    }

    /// The whole flat buffer of parameters, waiting for the gathering if there is one.
    ///
    /// # Errors
    /// When a peer fails.
    pub fn unshard(&mut self, pool: &mut BufferPool) -> Result<Tensor, ParallelError> {
        self.start_unshard(pool)?;
        if let Some(work) = self.gathering.take() {
            work.wait()?;
        }
        match &self.full {
            Some(full) => Ok(full.shallow_clone()),
            None => unreachable!("start_unshard leaves a buffer behind"),
        }
    }

    /// Frees the gathered parameters, where they are cut.
    pub fn reshard(&mut self, pool: &mut BufferPool) {
        if self.cuts_parameters()
            && self.gathering.is_none()
            && let Some(full) = self.full.take()
        {
            pool.give(&full);
        }
    }

    /// The fp32 buffer for the gradient of the whole unit.
    pub fn gradient(&mut self, pool: &mut BufferPool) -> Tensor {
        let numel = self.layout.numel;
        self.gradient
            .get_or_insert_with(|| pool.take(numel, Kind::Float))
            .shallow_clone()
    }

    /// How a micro-batch writes to [`Self::gradient`]: buffers that are reduced every time start anew.
    pub fn accumulate(&self, first_micro_batch: bool) -> Accumulate {
        if first_micro_batch || self.cuts_gradients() {
            Accumulate::First
        } else {
            Accumulate::Add
        }
    }

    /// Whether the gradient is reduced after a micro-batch: where it is cut after each, otherwise after the last.
    pub fn reduces_after(&self, last_micro_batch: bool) -> bool {
        last_micro_batch || self.cuts_gradients()
    }

    /// Sums over the row the gradients of which every rank has a part, all of them side by side in one small
    /// all-reduce. Comes before [`Self::start_reduce`].
    ///
    /// # Errors
    /// When a peer fails.
    pub fn sum_partial_gradients(&self) -> Result<(), ParallelError> {
        let partial = || {
            let replicas = self.layout.replicas.iter();
            replicas.filter(|replica| replica.partial_gradient)
        };
        let total: usize = partial().map(|replica| replica.len).sum();
        if total == 0 {
            return Ok(());
        }
        let gradient = self.written_gradient();
        let buffer = Tensor::zeros([total as i64], (Kind::Float, self.setup.device));
        let mut slot = 0;
        let mut copies = Vec::new();
        for replica in partial() {
            if let Some(flat) = &replica.flat {
                let here = gradient.narrow(0, flat.start as i64, flat.len() as i64);
                copies.push((buffer.narrow(0, slot, replica.len as i64), here));
            }
            slot += replica.len as i64;
        }
        for (slot, here) in &mut copies {
            slot.copy_(here);
        }
        self.setup.tp.all_reduce(&buffer, ReduceOp::Sum)?.wait()?;
        for (slot, here) in &mut copies {
            here.copy_(slot);
        }
        Ok(())
    }

    fn written_gradient(&self) -> &Tensor {
        match &self.gradient {
            Some(gradient) => gradient,
            None => unreachable!("backward has written a gradient"),
        }
    }

    /// Starts summing the gradient over the column: to its owners, or (at level `Replicated`) to all ranks.
    ///
    /// # Errors
    /// When a peer fails.
    pub fn start_reduce(&mut self, first_micro_batch: bool) -> Result<(), ParallelError> {
        let gradient = self.written_gradient().shallow_clone();
        let dp = &self.setup.dp;
        let accumulate = if first_micro_batch || !self.cuts_gradients() {
            Accumulate::First
        } else {
            Accumulate::Add
        };
        let is_fp32 = self.setup.precision.reduce == Kind::Float;
        let mut reducing = Reducing {
            work: None,
            wire: None,
            is_direct: self.cuts_gradients() && is_fp32 && accumulate == Accumulate::First,
            accumulate,
        };
        if dp.size() > 1 {
            let source = match self.setup.precision.reduce {
                Kind::Float => gradient,
                narrow => gradient.to_kind(narrow),
            };
            let mut work = if self.cuts() {
                let mine = match reducing.is_direct {
                    true => self.gradient_shard.shallow_clone(),
                    false => source.narrow(0, self.owned.start as i64, self.owned.len() as i64),
                };
                dp.reduce_scatter_into(&mine, &source, &self.counts, ReduceOp::Sum)?
            } else {
                dp.all_reduce(&source, ReduceOp::Sum)?
            };
            work.start();
            reducing.work = Some(work);
            if !is_fp32 {
                reducing.wire = Some(source);
            }
        }
        self.reducing = Some(reducing);
        Ok(())
    }

    /// Waits for the sum and leaves it in the gradient of the owned range.
    ///
    /// # Errors
    /// When a peer fails.
    pub fn finish_reduce(&mut self, pool: &mut BufferPool) -> Result<(), ParallelError> {
        let Some(reducing) = self.reducing.take() else {
            return Ok(());
        };
        if let Some(work) = reducing.work {
            work.wait()?;
        }
        let own = |t: &Tensor| t.narrow(0, self.owned.start as i64, self.owned.len() as i64);
        if let Some(wire) = &reducing.wire {
            linear::store(&self.gradient_shard, &own(wire), reducing.accumulate);
        } else if self.cuts_gradients()
            && !reducing.is_direct
            && let Some(gradient) = &self.gradient
        {
            linear::store(&self.gradient_shard, &own(gradient), reducing.accumulate);
        }
        if self.cuts_gradients()
            && let Some(gradient) = self.gradient.take()
        {
            pool.give(&gradient);
        }
        Ok(())
    }

    /// Sum of the squares of the reduced gradient over the elements that this rank counts: over all ranks of the mesh,
    /// every element of the model is counted once.
    pub fn gradient_sum_of_squares(&self) -> SumOfSquares {
        let mut sum = SumOfSquares::default();
        if !self.setup.trains {
            return sum;
        }
        let dp = &self.setup.dp;
        // Where the gradient is replicated over the column, each rank counts a part all the same.
        let share = partition_aligned(self.layout.numel, dp.size(), dp.rank(), OWNED_ALIGN);
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for param in &self.layout.params {
            let counted = param.offset + param.counted.start..param.offset + param.counted.end;
            let mine = intersect(&counted, &share);
            match ranges.last_mut() {
                // A device would be given a kernel for each.
                Some(last) if self.setup.device.is_cuda() && last.end == mine.start => {
                    last.end = mine.end;
                }
                _ if mine.is_empty() => {}
                _ => ranges.push(mine),
            }
        }
        for mine in ranges {
            let start = (mine.start - self.owned.start) as i64;
            sum.add(&self.gradient_shard.narrow(0, start, mine.len() as i64));
        }
        sum
    }

    /// AdamW on the owned range; then, where parameters are kept whole, starts gathering the updated ones. Parameters that `on`
    /// leaves out do not decay. What a device knows of the gradient's norm, and the host does not, is in `unread`.
    ///
    /// # Errors
    /// When a peer fails.
    pub fn update(
        &mut self,
        step: &AdamWStep,
        on: WeightDecayOn,
        unread: Option<&UnreadNorm>,
    ) -> Result<(), ParallelError> {
        if !self.setup.trains {
            return Ok(());
        }
        let compute = self.separate_compute_copy();
        for (range, decays) in on.segments(&self.layout.params, &self.owned) {
            let (start, len) = ((range.start - self.owned.start) as i64, range.len() as i64);
            let part = |tensor: &Tensor| tensor.narrow(0, start, len);
            let weight_decay = if decays { step.weight_decay } else { 0.0 };
            let compute = compute.map(part);
            let state = AdamWState {
                master: &part(&self.master),
                exp_avg: &part(&self.exp_avg),
                exp_avg_sq: &part(&self.exp_avg_sq),
                gradient: &part(&self.gradient_shard),
                compute: compute.as_ref(),
            };
            let step = AdamWStep {
                weight_decay,
                ..*step
            };
            match unread {
                Some(norm) => adamw::step_unread(&state, &step, norm),
                None => adamw::step(&state, &step),
            }
        }
        self.start_refresh()
    }

    /// The compute-kind copy of the owned range, where the master is not itself what computes.
    fn separate_compute_copy(&self) -> Option<&Tensor> {
        let is_separate = self.setup.precision.param != Kind::Float && self.setup.trains;
        is_separate.then_some(&self.shard)
    }

    /// Gathers the owned ranges into the whole buffer of every rank of the column, where that is kept.
    fn start_refresh(&mut self) -> Result<(), ParallelError> {
        if !self.cuts() || self.cuts_parameters() {
            return Ok(());
        }
        if let Some(full) = &self.full {
            let mut work = self
                .setup
                .dp
                .all_gather_into(full, &self.shard, &self.counts)?;
            work.start();
            self.gathering = Some(work);
        }
        Ok(())
    }
}

/// The common part of two ranges; empty (but well-formed) where there is none.
fn intersect(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}
