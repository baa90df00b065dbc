//! The adapters of a model: which parameters they have, how these are cut, and views of them.
//!
//! The adapters of a layer are a unit of their own beside that of its frozen weights. In its buffer, those of matrices with one
//! input are neighbours: first all `A`, which are then one matrix, and after them all `B`.

use std::ops::Range;
use std::sync::Arc;

use tandem_tensor::Tensor;

use crate::carve::Carve;
use crate::config::{Axis, ModelConfig};
use crate::lora::{LoraConfig, LoraError};
use crate::parameters::{Cut, Init, Module, ModuleKind, ModuleTree, ParamSpec, UnitTree};

/// What PEFT puts before the path of a module.
const PREFIX: &str = "base_model.model.";

/// The path of the module that the adapter module `path` belongs to; `path` itself where it is no adapter's.
pub fn adapted_module(path: &str) -> &str {
    let Some(inner) = path.strip_prefix(PREFIX) else {
        return path;
    };
    let ending = [".lora_A", ".lora_B"];
    let found = ending.iter().find_map(|end| inner.strip_suffix(end));
    found.unwrap_or(path)
}

/// The matrices of a layer that have one input each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// What goes into the attention.
    Qkv,
    /// What returns from it.
    Output,
    /// The two branches of the MLP.
    GateUp,
    /// What returns from it.
    Down,
}

impl Place {
    /// In the order of the buffer.
    const ALL: [Self; 4] = [Self::Qkv, Self::Output, Self::GateUp, Self::Down];

    /// Where a matrix is that is cut like this; `None` for those of experts.
    fn of(cut: Cut) -> Option<Self> {
        match cut {
            Cut::Outputs([Axis::QHeads | Axis::KvHeads, ..]) => Some(Self::Qkv),
            Cut::Inputs(Axis::QHeads) => Some(Self::Output),
            Cut::Outputs([Axis::Intermediate, ..]) => Some(Self::GateUp),
            Cut::Inputs(Axis::Intermediate) => Some(Self::Down),
            _ => None,
        }
    }
}

/// The matrices of a layer, with their widths.
fn matrices(unit: &UnitTree) -> impl Iterator<Item = (&Module, usize, usize)> {
    unit.modules.iter().filter_map(|module| match module.kind {
        ModuleKind::Linear { inputs, outputs } => Some((module, inputs, outputs)),
        _ => None,
    })
}

impl ModuleTree {
    /// The adapters of a model: a unit for each layer, which is empty where none of its matrices has an adapter.
    ///
    /// # Errors
    /// A name in `lora` is no matrix's, or that of one that can have no adapter.
    pub fn adapters(config: &ModelConfig, lora: &LoraConfig) -> Result<Self, LoraError> {
        let base = Self::new(config);
        let layers = &base.units[1..=config.num_layers];
        let all = || layers.iter().flat_map(matrices).map(|(module, ..)| module);
        let paths: Vec<&str> = all().map(|module| module.path.as_str()).collect();
        lora.check_names(&paths)?;
        let mut adapted = all().filter(|module| lora.adapts(&module.path));
        if let Some(expert) = adapted.find(|module| Place::of(module.cut).is_none()) {
            return Err(LoraError::Experts {
                path: expert.path.clone(),
            });
        }
        let units = layers.iter().map(|layer| adapter_unit(layer, lora));
        Ok(Self {
            units: units.collect(),
        })
    }
}

fn adapter_unit(layer: &UnitTree, lora: &LoraConfig) -> UnitTree {
    let mut unit = UnitTree {
        name: format!("{} adapter", layer.name),
        modules: Vec::new(),
        parameters: Vec::new(),
    };
    for place in Place::ALL {
        let adapted: Vec<_> = matrices(layer)
            .filter(|(module, ..)| Place::of(module.cut) == Some(place))
            .filter(|(module, ..)| lora.adapts(&module.path))
            .collect();
        for (module, inputs, _) in &adapted {
            let cut = match module.cut {
                // Each rank has the gradient by way of its outputs.
                Cut::Outputs([axis, ..]) => Cut::OfParts(*axis),
                other => other,
            };
            unit.add_adapter(module, "lora_A", (*inputs, lora.r), cut, Init::FanIn);
        }
        for (module, _, outputs) in &adapted {
            let cut = match module.cut {
                // Each rank has a part of what `B` multiplies.
                Cut::Inputs(axis) => Cut::OfParts(axis),
                other => other,
            };
            unit.add_adapter(module, "lora_B", (lora.r, *outputs), cut, Init::Zeros);
        }
    }
    unit
}

impl UnitTree {
    fn add_adapter(
        &mut self,
        of: &Module,
        name: &str,
        (inputs, outputs): (usize, usize),
        cut: Cut,
        init: Init,
    ) {
        let path = format!("{PREFIX}{}.{name}", of.path);
        self.parameters.push(ParamSpec {
            name: format!("{path}.weight"),
            shape: vec![outputs, inputs],
            init,
        });
        self.modules.push(Module {
            path,
            kind: ModuleKind::Linear { inputs, outputs },
            cut,
        });
    }
}

/// The slice of a layer's adapters that this rank computes.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterDims {
    rank: usize,
    scale: f64,
    dropout: f64,
    groups: [Option<GroupDims>; 4],
}

/// Adapters of matrices with one input.
#[derive(Debug, Clone, PartialEq)]
struct GroupDims {
    /// Width of the input here.
    inputs: usize,
    /// The input's elements before those here, and of all ranks.
    input_start: usize,
    /// Of each adapted matrix, the columns of what the matrices produce together here.
    outputs: Vec<Range<usize>>,
    /// Names the adapters for their random numbers.
    paths: Vec<String>,
}

impl AdapterDims {
    /// Of the layer `unit` of the whole model, whose residual stream is `hidden` wide; this rank has `width` elements along an axis,
    /// and the last are the numbers of the first element of heads and of the first MLP column here.
    pub fn new(
        lora: &LoraConfig,
        unit: &UnitTree,
        hidden: usize,
        width: &dyn Fn(Axis) -> usize,
        (first_head_element, first_column): (usize, usize),
    ) -> Self {
        let group = |place: Place| {
            let (mut start, mut inputs, mut input_start) = (0, hidden, 0);
            let (mut outputs, mut paths) = (Vec::new(), Vec::new());
            for (module, ..) in matrices(unit) {
                if Place::of(module.cut) != Some(place) {
                    continue;
                }
                let columns = match module.cut {
                    Cut::Outputs(axes) => axes.iter().map(|axis| width(*axis)).sum(),
                    Cut::Inputs(axis) => {
                        inputs = width(axis);
                        input_start = match place {
                            Place::Output => first_head_element,
                            _ => first_column,
                        };
                        hidden
                    }
                    Cut::Whole | Cut::OfParts(_) => 0,
                };
                if lora.adapts(&module.path) {
                    outputs.push(start..start + columns);
                    paths.push(module.path.clone());
                }
                start += columns;
            }
            (!paths.is_empty()).then_some(GroupDims {
                inputs,
                input_start,
                outputs,
                paths,
            })
        };
        Self {
            rank: lora.r,
            scale: lora.scale(),
            dropout: lora.dropout,
            groups: Place::ALL.map(group),
        }
    }

    /// Adapters at each place where matrices have one input, in the order in which a layer computes them: q|k|v, what returns from
    /// the attention, gate|up, what returns from the MLP.
    pub fn adapters(&self) -> [usize; 4] {
        let count = |group: &Option<GroupDims>| group.as_ref().map_or(0, |it| it.paths.len());
        self.groups.each_ref().map(count)
    }

    /// The rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Whether no matrix of the layer has an adapter.
    pub fn is_empty(&self) -> bool {
        self.groups.iter().all(Option::is_none)
    }
}

/// The adapters of a layer.
#[derive(Debug)]
pub struct AdapterTensors {
    groups: [Option<AdapterGroup>; 4],
}

/// The adapters of matrices with one input.
#[derive(Debug)]
pub(crate) struct AdapterGroup {
    /// Of all of them, one below the other: `[adapters * r, inputs]`.
    pub(crate) a: Tensor,
    /// Of each: `[its outputs, r]`.
    pub(crate) b: Vec<Tensor>,
    /// Of each, the columns of what the matrices produce together.
    pub(crate) outputs: Vec<Range<usize>>,
    pub(crate) rank: usize,
    pub(crate) scale: f64,
    pub(crate) dropout: Option<GroupDropout>,
}

/// Which rows of the data are computed, and the seed: what decides on the elements that are dropped.
#[derive(Debug, Clone)]
pub struct DropoutRows {
    /// The run's.
    pub seed: u64,
    /// The pass over the data.
    pub epoch: u64,
    /// The number of the first row in the order of the epoch.
    pub first_row: u64,
    /// Tokens of a row.
    pub seq: usize,
}

/// The dropout of a group's input.
#[derive(Debug)]
pub(crate) struct GroupDropout {
    pub(crate) probability: f64,
    pub(crate) rows: DropoutRows,
    pub(crate) input_start: usize,
    /// Of each adapter.
    pub(crate) paths: Arc<[String]>,
}

impl AdapterTensors {
    /// Views of the flat buffer of a layer's adapters, or `None` when its length is not that of `dims`. With `rows`, their
    /// inputs are dropped out as training wants it.
    pub fn view(flat: &Tensor, dims: &AdapterDims, rows: Option<&DropoutRows>) -> Option<Self> {
        let mut carve = Carve::new(flat);
        let mut group = |dims_of: &Option<GroupDims>| match dims_of {
            None => Some(None),
            Some(group) => {
                let a = carve.matrix(group.paths.len() * dims.rank, group.inputs)?;
                let matrices = group.outputs.iter();
                let b = matrices.map(|columns| carve.matrix(columns.len(), dims.rank));
                let b = b.collect::<Option<Vec<Tensor>>>()?;
                let dropout = rows.filter(|_| dims.dropout > 0.0);
                Some(Some(AdapterGroup {
                    a,
                    b,
                    outputs: group.outputs.clone(),
                    rank: dims.rank,
                    scale: dims.scale,
                    dropout: dropout.map(|rows| GroupDropout {
                        probability: dims.dropout,
                        rows: rows.clone(),
                        input_start: group.input_start,
                        paths: group.paths.clone().into(),
                    }),
                }))
            }
        };
        let [qkv, output, gate_up, down] = &dims.groups;
        let groups = [group(qkv)?, group(output)?, group(gate_up)?, group(down)?];
        carve.is_done().then_some(Self { groups })
    }

    /// Those of the matrices at `place`, where there are any.
    pub(crate) fn at(&self, place: Place) -> Option<&AdapterGroup> {
        self.groups[place as usize].as_ref()
    }
}
