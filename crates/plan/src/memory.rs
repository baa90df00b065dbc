//! The memory of a rank at its fullest moment, by what it is for.

use serde::{Deserialize, Serialize};
use tandem_parallel::ShardingLevel;

use crate::activations::{self, Moment};
use crate::buffers::borrowed;
use crate::place::Place;
use crate::settings::Settings;
use crate::share::{Share, Unit};

/// Bytes of a rank. What does not fit into 64 bits is as much as they can say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// In the kind that computes.
    pub parameters: u64,
    /// fp32 master weights, where parameters are of another kind.
    pub master: u64,
    /// Both moments, fp32.
    pub moments: u64,
    /// fp32.
    pub gradients: u64,
    /// What forward keeps for backward, and what backward computes with.
    pub activations: u64,
    /// What units are gathered and reduced in, and what collectives themselves use.
    pub collectives: u64,
    /// Logits of a chunk of rows, and what is made of them.
    pub logits: u64,
    /// Libraries, the device's context, and what allocators keep.
    pub fixed: u64,
    /// The copy of the state that is being saved, which comes on top, in the host's memory.
    pub saving: u64,
}

/// The resident set of a rank on a processor that has computed next to nothing: the program, libtorch, and what both keep.
const HOST_FIXED: u128 = 150 << 20;

/// CUDA's context, its kernels, and the workspaces of cuBLAS.
const CUDA_FIXED: u128 = 1200 << 20;

/// Both slots of a member of a group that shares memory; whoever reads them has them in its resident set.
const SLOTS: u128 = 2 << 20;

/// What NCCL allocates for a communicator.
const NCCL: u128 = 256 << 20;

/// Groups of more than one rank that carry tensors.
fn groups(share: &Share, settings: &Settings) -> impl Iterator<Item = u128> {
    let experts = match share.expert_ranks {
        1 => [1, 1],
        ranks => [ranks, settings.mesh.world_size() / ranks],
    };
    let sizes = [settings.tp(), settings.dp()].into_iter().chain(experts);
    sizes.filter(|size| *size > 1).map(|size| size as u128)
}

/// Into 64 bits, as far as that goes.
fn bytes(count: u128) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

impl Memory {
    /// Bytes while training, at the fullest moment.
    pub fn total(&self) -> u64 {
        let Self {
            parameters,
            master,
            moments,
            gradients,
            activations,
            collectives,
            logits,
            fixed,
            saving: _,
        } = *self;
        [
            parameters,
            master,
            moments,
            gradients,
            activations,
            collectives,
            logits,
            fixed,
        ]
        .into_iter()
        .fold(0, u64::saturating_add)
    }

    /// Bytes that must be there: on a processor, the copy of the state that is saved beside training is in the same memory.
    pub fn needed(&self, place: Place) -> u64 {
        match place {
            Place::Cpu => self.total().saturating_add(self.saving),
            Place::Cuda => self.total(),
        }
    }

    /// What a rank with this share needs.
    pub fn of(share: &Share, settings: &Settings, place: Place) -> Self {
        let kept = Kept::of(share, settings);
        let pool = borrowed(share, settings);
        let wire = wire(share, settings);
        let transport: u128 = groups(share, settings)
            .map(|size| match place {
                Place::Cpu => size * SLOTS,
                Place::Cuda => NCCL,
            })
            .sum();
        let Moment {
            activations,
            logits,
        } = activations::fullest(share, settings, place);
        Self {
            parameters: bytes(kept.parameters),
            master: bytes(kept.master),
            moments: bytes(kept.moments),
            gradients: bytes(kept.gradients),
            activations: bytes(activations),
            collectives: bytes(pool.gathered + pool.gradients + wire + transport),
            logits: bytes(logits),
            fixed: bytes(match place {
                Place::Cpu => HOST_FIXED,
                Place::Cuda => CUDA_FIXED,
            }),
            saving: bytes(kept.saving),
        }
    }
}

/// What is there from the first step to the last, in bytes.
#[derive(Default)]
struct Kept {
    parameters: u128,
    master: u128,
    moments: u128,
    gradients: u128,
    saving: u128,
}

impl Kept {
    fn of(share: &Share, settings: &Settings) -> Self {
        let mut kept = Self::default();
        let trains_model = !share.is_frozen();
        let precision = settings.precision;
        let base = match trains_model {
            true => precision.param,
            false => precision.frozen().param,
        };
        for unit in &share.units {
            let each = base.elt_size_in_bytes() as u128;
            kept.add(unit, settings, each, trains_model);
        }
        for unit in &share.adapters {
            let each = precision.param.elt_size_in_bytes() as u128;
            kept.add(unit, settings, each, true);
        }
        kept
    }

    fn add(&mut self, unit: &Unit, settings: &Settings, each: u128, trains: bool) {
        let (level, dp) = (unit.level(settings), unit.replicas(settings));
        let numel = unit.numel as u128;
        let owned = match level {
            ShardingLevel::Replicated => numel,
            _ => numel.div_ceil(dp as u128),
        };
        self.parameters += each
            * match level {
                ShardingLevel::Parameters => owned,
                _ => numel,
            };
        if !trains {
            return;
        }
        // In fp32, what computes is the master.
        if each < 4 {
            self.master += 4 * owned;
        }
        self.moments += 8 * owned;
        self.gradients += 4 * match level >= ShardingLevel::Gradients {
            true => owned,
            false => numel,
        };
        // Each element is saved by one of its replicas.
        self.saving += 12 * numel.div_ceil(dp as u128);
    }
}

/// What carries a gradient of a narrow kind: at most two are under way.
fn wire(share: &Share, settings: &Settings) -> u128 {
    let each = settings.precision.reduce.elt_size_in_bytes() as u128;
    if each == 4 || share.is_frozen() {
        return 0;
    }
    let units = share.units.iter();
    let reduced = units.filter(|unit| unit.replicas(settings) > 1);
    let largest = reduced.map(|unit| unit.numel as u128).max();
    2 * each * largest.unwrap_or(0)
}
