//! Any mesh from any other, and pieces that do not make a whole.

use std::sync::Arc;

use proptest::prelude::*;
use tandem_checkpoint::store::LocalStore;
use tandem_checkpoint::{
    CHUNK_BYTES, CheckpointError, NewCheckpoint, Piece, ReadRequest, Reader, Role, ShardReport,
    Store, TensorSpec, commit, write_shard,
};
use tandem_mesh::{ShardSlice, partition};
use tempfile::TempDir;

use crate::sample::{self, Mesh, read_all, save, specs, state, write_shards};

fn local() -> (TempDir, Arc<dyn Store>) {
    let folder = TempDir::new().expect("a temporary folder");
    let store = Arc::new(LocalStore::new(folder.path()));
    (folder, store)
}

#[test]
fn every_mesh_reads_what_every_other_wrote() {
    let meshes = [(1, 1), (2, 1), (1, 2), (2, 2), (3, 1), (3, 2), (1, 5)];
    let meshes = meshes.map(|(tp, dp)| Mesh { tp, dp });
    let (_folder, store) = local();
    let mut pairs = 0;
    for (number, writer) in (1..).zip(meshes) {
        let new = NewCheckpoint::in_folder(format!("checkpoint_{number}"));
        let manifest = save(store.as_ref(), &new, number, writer).unwrap();
        let reader = Reader::open(store.clone(), &new.folder).unwrap();
        assert_eq!(reader.manifest(), &manifest);
        assert_eq!(reader.state(), &state(number));
        assert!(
            reader
                .verify(|_| {})
                .iter()
                .all(|check| check.problems.is_empty())
        );
        for mesh in meshes {
            assert_eq!(read_all(&reader, mesh).unwrap(), number);
            pairs += 1;
        }
    }
    println!("{pairs} pairs of meshes");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_slices_of_any_shape(
        shape in prop::collection::vec(1usize..9, 1..4),
        from in (0usize..3, 1usize..5, 1usize..5), to in (0usize..3, 1usize..5, 1usize..5),
    ) {
        let (_folder, store) = local();
        let cut = |(dim, tp, dp): (usize, usize, usize)| -> Vec<ShardSlice> {
            let dim = dim % shape.len();
            let mesh = Mesh { tp, dp };
            (0..tp * dp).map(|r| sample::slice(&shape, Some(dim), mesh, r % tp, r / tp)).collect()
        };
        let reports = cut(from)
            .into_iter()
            .enumerate()
            .map(|(rank, slice)| {
                let data = sample::values(1, "w", &Role::Param, &slice);
                let piece = Piece { tensor: "w", role: Role::Param, slice, data: &data };
                write_shard(store.as_ref(), "c", rank, &[piece]).unwrap()
            })
            .collect();
        let specs = [TensorSpec { name: "w".into(), shape: shape.clone(), roles: vec![Role::Param] }];
        commit(store.as_ref(), &NewCheckpoint::in_folder("c"), &specs, reports, state(1)).unwrap();
        let reader = Reader::open(store, "c").unwrap();
        for slice in cut(to) {
            let mut out = vec![f32::NAN; slice.numel()];
            reader.read("w", &Role::Param, &slice, &mut out).unwrap();
            prop_assert_eq!(out, sample::values(1, "w", &Role::Param, &slice));
        }
    }
}

/// Two pieces of several chunks each, read in slices that begin and end inside chunks, over rows and over columns.
#[test]
fn tensors_of_many_chunks() {
    let (_folder, store) = local();
    let shape = [2100, 2000];
    let value = |element: usize| (element % 16_000_057) as f32;
    let reports: Vec<_> = (0..2)
        .map(|rank| {
            let slice = ShardSlice::narrow(&shape, 1, partition(shape[1], 2, rank));
            let mut data = vec![0.0; slice.numel()];
            for run in slice.runs() {
                for k in 0..run.len {
                    data[run.target + k] = value(run.source + k);
                }
            }
            let piece = Piece {
                tensor: "w",
                role: Role::Param,
                slice,
                data: &data,
            };
            write_shard(store.as_ref(), "c", rank, &[piece]).unwrap()
        })
        .collect();
    let chunks = reports[0].pieces[0].chunks.len();
    assert_eq!(chunks as u64, (2100 * 1000 * 4u64).div_ceil(CHUNK_BYTES));
    let specs = [TensorSpec {
        name: "w".into(),
        shape: shape.to_vec(),
        roles: vec![Role::Param],
    }];
    commit(
        store.as_ref(),
        &NewCheckpoint::in_folder("c"),
        &specs,
        reports,
        state(1),
    )
    .unwrap();
    let reader = Reader::open(store, "c").unwrap();
    let slices = [
        ShardSlice::whole(&shape),
        ShardSlice::narrow(&shape, 0, 1000..1777).with_flat(3..1_500_001),
        ShardSlice::narrow(&shape, 1, 900..1100),
    ];
    let mut buffers: Vec<Vec<f32>> = slices.iter().map(|s| vec![f32::NAN; s.numel()]).collect();
    let requests = slices
        .iter()
        .zip(&mut buffers)
        .map(|(slice, out)| ReadRequest {
            tensor: "w",
            role: Role::Param,
            slice: slice.clone(),
            out,
        })
        .collect();
    reader.read_many(requests).unwrap();
    for (slice, buffer) in slices.iter().zip(&buffers) {
        for run in slice.runs() {
            for k in 0..run.len {
                assert_eq!(buffer[run.target + k], value(run.source + k), "{slice:?}");
            }
        }
    }
}

#[test]
fn pieces_that_do_not_make_a_whole_are_not_committed() {
    let (_folder, store) = local();
    let new = NewCheckpoint::in_folder("c");
    let mesh = Mesh { tp: 2, dp: 2 };
    let reports = write_shards(store.as_ref(), "c", 1, mesh).unwrap();
    let refused = |reports, specs: &[TensorSpec]| {
        let error = commit(store.as_ref(), &new, specs, reports, state(1)).unwrap_err();
        let not_there = Reader::open(store.clone(), "c").unwrap_err();
        assert!(
            matches!(not_there, CheckpointError::NotCommitted { .. }),
            "{not_there}"
        );
        error.to_string()
    };
    let mut lost = reports.clone();
    lost.remove(3);
    let error = refused(lost, &specs());
    assert!(error.contains("no rank wrote elements"), "{error}");

    let mut twice = reports.clone();
    let again = twice[0].pieces[0].clone();
    twice[1].pieces.push(again);
    let error = refused(twice, &specs());
    assert!(error.contains("rank 0 and rank 1 both wrote"), "{error}");

    let mut more = specs();
    more.push(TensorSpec {
        name: "other".into(),
        shape: vec![2],
        roles: vec![Role::Param],
    });
    let error = refused(reports.clone(), &more);
    assert!(
        error.contains("\"other\"") && error.contains("elements 0 to 2"),
        "{error}"
    );

    let error = refused(reports.clone(), &specs()[1..]);
    assert!(
        error.contains("embed_tokens") && error.contains("no such state"),
        "{error}"
    );

    store.delete("c/shard-00002.safetensors").unwrap();
    let error = refused(reports, &specs());
    assert!(
        error.contains("shard-00002") && error.contains("rank 2"),
        "{error}"
    );
}

#[test]
fn a_checkpoint_is_never_replaced() {
    let (_folder, store) = local();
    let new = NewCheckpoint::in_folder("c");
    let mesh = Mesh { tp: 2, dp: 1 };
    let reports = write_shards(store.as_ref(), "c", 1, mesh).unwrap();
    commit(store.as_ref(), &new, &specs(), reports.clone(), state(1)).unwrap();
    let other = commit(store.as_ref(), &new, &specs(), reports.clone(), state(2)).unwrap_err();
    assert!(other.to_string().contains("manifest.json"), "{other}");
    // The same again is no other checkpoint: a retry of a commit whose answer was lost.
    commit(store.as_ref(), &new, &specs(), reports, state(1)).unwrap();
    assert_eq!(
        read_all(&Reader::open(store, "c").unwrap(), mesh).unwrap(),
        1
    );
}

#[test]
fn a_piece_that_does_not_fill_its_slice_is_refused_and_an_idle_rank_writes_no_file() {
    let (folder, store) = local();
    let slice = ShardSlice::whole(&[3]);
    let piece = Piece {
        tensor: "w",
        role: Role::ExpAvg,
        slice: slice.clone(),
        data: &[1.0; 2],
    };
    let error = write_shard(store.as_ref(), "c", 0, &[piece])
        .unwrap_err()
        .to_string();
    assert!(error.contains("exp_avg of tensor \"w\""), "{error}");
    let empty = Piece {
        tensor: "w",
        role: Role::Param,
        slice: slice.with_flat(2..2),
        data: &[],
    };
    let report = write_shard(store.as_ref(), "c", 0, &[empty]).unwrap();
    assert_eq!((report.file, report.pieces.len()), (None, 0));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn reports_survive_json_and_unknown_questions_are_answered_by_name() {
    let (_folder, store) = local();
    let reports = write_shards(store.as_ref(), "c", 1, Mesh { tp: 2, dp: 1 }).unwrap();
    let json = serde_json::to_vec(&reports).unwrap();
    assert_eq!(
        serde_json::from_slice::<Vec<ShardReport>>(&json).unwrap(),
        reports
    );
    commit(
        store.as_ref(),
        &NewCheckpoint::in_folder("c"),
        &specs(),
        reports,
        state(1),
    )
    .unwrap();
    let reader = Reader::open(store, "c").unwrap();
    let read = |tensor, role, shape: &[usize]| {
        let slice = ShardSlice::whole(shape);
        let mut out = vec![0.0; slice.numel()];
        reader
            .read(tensor, &role, &slice, &mut out)
            .unwrap_err()
            .to_string()
    };
    assert!(read("nope", Role::Param, &[2]).contains("no param of tensor \"nope\""));
    let momentum = Role::Other("momentum".into());
    assert!(read("model.norm.weight", momentum, &[6]).contains("no momentum of"));
    assert!(read("model.norm.weight", Role::Param, &[7]).contains("has shape [6], not [7]"));
}
