//! A small model in training: its tensors, cut for any mesh, with values that tell saves and elements apart.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use tandem_checkpoint::{
    CheckpointError, Manifest, NewCheckpoint, Piece, Reader, Role, RunDir, ShardReport, Store,
    TensorSpec, TrainState, commit, write_shard,
};
use tandem_mesh::{ShardSlice, partition};

pub const ROLES: [Role; 3] = [Role::Param, Role::ExpAvg, Role::ExpAvgSq];

/// A mesh with the dimension along which each tensor is cut over tensor parallel ranks; replicated ones have none.
#[derive(Debug, Clone, Copy)]
pub struct Mesh {
    pub tp: usize,
    pub dp: usize,
}

/// Tensors of odd sizes, as an odd vocabulary makes them.
pub fn tensors() -> Vec<(&'static str, Vec<usize>, Option<usize>)> {
    vec![
        ("model.embed_tokens.weight", vec![13, 6], Some(0)),
        (
            "model.layers.0.self_attn.q_proj.weight",
            vec![8, 6],
            Some(0),
        ),
        (
            "model.layers.0.self_attn.o_proj.weight",
            vec![6, 8],
            Some(1),
        ),
        ("model.layers.0.mlp.down_proj.weight", vec![6, 7], Some(1)),
        ("model.norm.weight", vec![6], None),
    ]
}

pub fn specs() -> Vec<TensorSpec> {
    let spec = |(name, shape, _): (&str, Vec<usize>, _)| TensorSpec {
        name: name.to_owned(),
        shape,
        roles: ROLES.to_vec(),
    };
    tensors().into_iter().map(spec).collect()
}

/// The value of one element of one save.
pub fn value(save: u64, tensor: &str, role: &Role, element: usize) -> f32 {
    let name: usize = tensor
        .bytes()
        .chain(role.as_str().bytes())
        .map(usize::from)
        .sum();
    (save as usize * 1_000_000 + name * 101 % 5003 * 97 + element) as f32
}

pub fn values(save: u64, tensor: &str, role: &Role, slice: &ShardSlice) -> Vec<f32> {
    let mut out = vec![f32::NAN; slice.numel()];
    for run in slice.runs() {
        for k in 0..run.len {
            out[run.target + k] = value(save, tensor, role, run.source + k);
        }
    }
    out
}

/// What rank (`t`, `d`) of a mesh holds of a tensor.
pub fn slice(shape: &[usize], cut: Option<usize>, mesh: Mesh, t: usize, d: usize) -> ShardSlice {
    let rectangle = match cut {
        Some(dim) => ShardSlice::narrow(shape, dim, partition(shape[dim], mesh.tp, t)),
        None => ShardSlice::whole(shape),
    };
    let flat = partition(rectangle.rect_numel(), mesh.dp, d);
    rectangle.with_flat(flat)
}

/// Writes the shard of every rank.
pub fn write_shards(
    store: &dyn Store,
    folder: &str,
    save: u64,
    mesh: Mesh,
) -> Result<Vec<ShardReport>, CheckpointError> {
    let mut reports = Vec::new();
    for d in 0..mesh.dp {
        for t in 0..mesh.tp {
            let mut owned = Vec::new();
            for (name, shape, cut) in tensors() {
                // Of replicated tensors, the first rank of a row is the owner.
                if cut.is_none() && t > 0 {
                    continue;
                }
                let slice = slice(&shape, cut, mesh, t, d);
                for role in ROLES {
                    let data = values(save, name, &role, &slice);
                    owned.push((name, role, slice.clone(), data));
                }
            }
            let pieces: Vec<Piece<'_>> = owned
                .iter()
                .map(|(tensor, role, slice, data)| Piece {
                    tensor,
                    role: role.clone(),
                    slice: slice.clone(),
                    data,
                })
                .collect();
            reports.push(write_shard(store, folder, d * mesh.tp + t, &pieces)?);
        }
    }
    Ok(reports)
}

pub fn state(save: u64) -> TrainState {
    TrainState {
        strategy: "fsdp".into(),
        global_step: save,
        next_global_sample: 16 * save,
        metrics: BTreeMap::from([("loss".into(), Value::from(10.0 / save as f64))]),
        ..TrainState::default()
    }
}

/// Shards and commit.
pub fn save(
    store: &dyn Store,
    new: &NewCheckpoint,
    save: u64,
    mesh: Mesh,
) -> Result<Manifest, CheckpointError> {
    let reports = write_shards(store, &new.folder, save, mesh)?;
    commit(store, new, &specs(), reports, state(save))
}

/// A whole save as a run makes it.
pub fn save_and_register(
    run: &mut RunDir,
    number: u64,
    mesh: Mesh,
) -> Result<String, CheckpointError> {
    let new = run.begin();
    save(run.store().clone().as_ref(), &new, number, mesh)?;
    run.register(&new.folder)?;
    Ok(new.folder)
}

/// Reads all of a checkpoint as the ranks of `mesh` would, and says which save it is.
///
/// # Panics
/// When a single element is not that save's.
pub fn read_all(reader: &Reader, mesh: Mesh) -> Result<u64, CheckpointError> {
    let save = reader.state().global_step;
    for (name, shape, cut) in tensors() {
        for d in 0..mesh.dp {
            for t in 0..mesh.tp {
                let slice = slice(&shape, cut, mesh, t, d);
                for role in ROLES {
                    let mut out = vec![f32::NAN; slice.numel()];
                    reader.read(name, &role, &slice, &mut out)?;
                    assert_eq!(out, values(save, name, &role, &slice), "{role} of {name}");
                }
            }
        }
    }
    Ok(save)
}

/// The newest checkpoint of a run, read whole.
pub fn read_latest(store: &Arc<dyn Store>) -> Result<Option<u64>, CheckpointError> {
    let run = RunDir::open(store.clone(), Default::default())?;
    let Some(latest) = run.latest() else {
        return Ok(None);
    };
    read_all(&run.reader(&latest.name)?, Mesh { tp: 1, dp: 1 }).map(Some)
}
