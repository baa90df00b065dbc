//! The files of a checkpoint and its list of pieces, by arithmetic: a piece is what a rank owns of a tensor
//! (`FlatUnit::pieces` in `crates/parallel`), and the list is `crates/checkpoint/src/manifest.rs` as JSON. A test of
//! `crates/trainer`, which sees both, holds it against what ranks write.

use std::ops::Range;

use tandem_mesh::partition_aligned;
use tandem_model::{ModelConfig, ModuleTree};
use tandem_parallel::{LocalParam, OWNED_ALIGN, Plan, TpSlices, UnitLayout, layouts};

/// Bytes of a piece that share one hash (`CHUNK_BYTES`).
const CHUNK: usize = 4 << 20;

/// Bytes of a hash in the list, with its quotes and a comma.
const HASH: usize = 67;

/// The parameter and both moments (`Role`), which have their pieces each.
const ROLES: [&str; 3] = ["param", "exp_avg", "exp_avg_sq"];

/// Bytes of a number of an element's state.
const ELEMENT: usize = 4;

/// What a checkpoint takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct List {
    /// Pieces of tensors in the list.
    pub pieces: u64,
    /// Bytes of the list (`manifest.json`), which every rank reads at a restart.
    pub bytes: u64,
    /// Bytes of the state itself, all ranks together.
    pub state_bytes: u64,
}

/// What is saved of a model: its tensors on every rank of a row, and of every expert's.
#[derive(Debug, Clone)]
pub struct Saved {
    units: Vec<SavedUnit>,
    /// Bytes of what the list says of tensors, whatever the ranks.
    tensors: usize,
    tp: usize,
    experts: usize,
}

/// A unit on one rank of those that have other parts of it.
#[derive(Debug, Clone)]
struct SavedUnit {
    numel: usize,
    params: Vec<SavedParam>,
    /// The rank that has it first, and how many ranks are from it to the next that has the same.
    first: usize,
    of_experts: bool,
}

#[derive(Debug, Clone)]
struct SavedParam {
    /// Those of the unit's elements that the ranks answer for which have this unit.
    counted: Range<usize>,
    /// Bytes of its name, and of where it begins and how far it reaches.
    name: usize,
    rectangle: usize,
}

impl Saved {
    /// Of the tensors of `tree`, which is the model's, or its adapters'.
    pub fn new(config: &ModelConfig, plan: &Plan, slices: &TpSlices, tree: &ModuleTree) -> Self {
        let (tp, experts) = (slices.tp_size(), plan.expert_ranks());
        let of = |tp_rank, expert| layouts(config, tree, plan, slices, (tp_rank, expert), false);
        let mut units = Vec::new();
        for rank in 0..tp {
            let own = of(rank, 0).into_iter();
            let own = own.filter(|layout| layout.experts_of.is_none());
            units.extend(own.map(|layout| SavedUnit::of(&layout, rank)));
        }
        if experts > 1 {
            for rank in 0..experts {
                let own = of(0, rank).into_iter();
                let own = own.filter(|layout| layout.experts_of.is_some());
                units.extend(own.map(|layout| SavedUnit::of(&layout, rank)));
            }
        }
        let specs = tree.units.iter().flat_map(|unit| &unit.parameters);
        // "name":{"shape":[],"dtype":"F32","roles":{"param":[],"exp_avg":[],"exp_avg_sq":[]}},
        let tensors = specs.map(|it| 80 + it.name.len() + list_len(&it.shape));
        Self {
            units,
            tensors: tensors.sum(),
            tp,
            experts,
        }
    }

    /// What so many ranks write.
    pub fn list(&self, ranks: usize) -> List {
        let (mut pieces, mut bytes, mut elements) = (0, 0, 0);
        // As far as a file reaches.
        let begin = decimals(self.elements() * ELEMENT * ROLES.len() / ranks);
        for unit in &self.units {
            let owners = self.owners(unit, ranks);
            for param in unit.params.iter().filter(|it| !it.counted.is_empty()) {
                let count = unit.pieces(param, owners).len();
                let each = param.counted.len() / count;
                let flat = 2 * decimals(param.counted.len());
                // {"file":"shard-00000.safetensors","key":"role.name","offsets":[],"shape":[],"flat":[a,b],"begin":n,"chunks":[]},
                let fixed = 101 + decimals(ranks).max(5) - 5 + param.name + param.rectangle + flat;
                let hashes = (each * ELEMENT).div_ceil(CHUNK) * HASH;
                let names: usize = ROLES.iter().map(|role| role.len()).sum();
                let of_roles = ROLES.len() * (fixed + begin + hashes) + names;
                pieces += ROLES.len() * count;
                bytes += count * of_roles;
                elements += param.counted.len();
            }
        }
        // {"name":"shard-00000.safetensors","bytes":n,"blake3":"64 letters"},
        let files = ranks * (120 + begin);
        // Where the run stood: its flags, mostly.
        let state = 2000;
        List {
            pieces: pieces as u64,
            bytes: (bytes + files + state + self.tensors) as u64,
            state_bytes: (ROLES.len() * ELEMENT * elements) as u64,
        }
    }

    /// Files that so many ranks write: one each, but none of those that own nothing.
    pub fn files(&self, ranks: usize) -> u64 {
        let mut writes = vec![false; ranks];
        for unit in &self.units {
            let owners = self.owners(unit, ranks);
            let stride = self.stride(unit);
            for param in unit.params.iter().filter(|it| !it.counted.is_empty()) {
                for owner in unit.pieces(param, owners) {
                    writes[unit.first + owner * stride] = true;
                }
            }
        }
        writes.iter().filter(|it| **it).count() as u64
    }

    fn elements(&self) -> usize {
        let params = self.units.iter().flat_map(|unit| &unit.params);
        params.map(|param| param.counted.len()).sum()
    }

    /// From a rank that has a unit to the next that has the same of it.
    fn stride(&self, unit: &SavedUnit) -> usize {
        match unit.of_experts {
            true => self.experts,
            false => self.tp,
        }
    }

    fn owners(&self, unit: &SavedUnit, ranks: usize) -> usize {
        ranks / self.stride(unit)
    }
}

impl SavedUnit {
    fn of(layout: &UnitLayout, first: usize) -> Self {
        Self {
            numel: layout.numel,
            params: layout.params.iter().map(SavedParam::of).collect(),
            first,
            of_experts: layout.experts_of.is_some(),
        }
    }

    /// Of so many owners of the unit, those of some of the parameter.
    fn pieces(&self, param: &SavedParam, owners: usize) -> Range<usize> {
        let owner = |element: usize| {
            let (mut low, mut high) = (0, owners - 1);
            while low < high {
                let middle = low.midpoint(high);
                match partition_aligned(self.numel, owners, middle, OWNED_ALIGN).end > element {
                    true => high = middle,
                    false => low = middle + 1,
                }
            }
            low
        };
        owner(param.counted.start)..owner(param.counted.end - 1) + 1
    }
}

impl SavedParam {
    fn of(param: &LocalParam) -> Self {
        let counted = &param.counted;
        Self {
            counted: param.offset + counted.start..param.offset + counted.end,
            name: param.spec.name.len(),
            rectangle: list_len(&param.slice.offsets) + list_len(&param.slice.shape),
        }
    }
}

/// Digits of a number in the list.
fn decimals(number: usize) -> usize {
    number.max(1).ilog10() as usize + 1
}

/// Bytes of numbers with commas between them.
fn list_len(numbers: &[usize]) -> usize {
    let digits: usize = numbers.iter().map(|it| decimals(*it)).sum();
    digits + numbers.len().saturating_sub(1)
}
