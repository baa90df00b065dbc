//! From a checkpoint to a Hugging Face folder, and what inspection tells.

use std::fs;
use std::sync::Arc;

use serde_json::{Value, json};
use tandem_checkpoint::store::LocalStore;
use tandem_checkpoint::{
    Dtype, FloatKind, HfWeights, ModelFile, NewCheckpoint, Reader, Role, Store, export,
};
use tandem_mesh::ShardSlice;
use tempfile::TempDir;

use crate::sample::{Mesh, save, tensors, values};

#[test]
fn a_model_is_exported_with_its_files() {
    let root = TempDir::new().unwrap();
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(root.path()));
    let new = NewCheckpoint::in_folder("c");
    save(store.as_ref(), &new, 1, Mesh { tp: 3, dp: 2 }).unwrap();
    let reader = Reader::open(store, "c").unwrap();
    let file = |name: &str, bytes: &[u8]| ModelFile {
        name: name.into(),
        bytes: bytes.to_vec(),
    };
    for (kind, config, key, dtype) in [
        (
            FloatKind::F32,
            json!({"dtype": "bfloat16"}),
            "dtype",
            "float32",
        ),
        (
            FloatKind::Bf16,
            json!({"torch_dtype": "float32"}),
            "torch_dtype",
            "bfloat16",
        ),
        (FloatKind::Bf16, json!({}), "torch_dtype", "bfloat16"),
    ] {
        let output = root.path().join("out");
        let files = [
            file("config.json", config.to_string().as_bytes()),
            file("tokenizer.json", b"as it is"),
        ];
        let mut done = 0;
        export(&reader, &files, &output, kind, 500, |_| done += 1).unwrap();
        assert_eq!(done, tensors().len());
        let weights = HfWeights::open(&output).unwrap();
        let expected: Vec<_> = tensors()
            .into_iter()
            .map(|(name, shape, _)| (name.to_owned(), shape))
            .collect();
        weights.expect(&expected, &|_| false).unwrap();
        for (name, shape) in &expected {
            let slice = ShardSlice::whole(shape);
            let mut out = vec![0.0; slice.numel()];
            weights.read(name, &slice, &mut out).unwrap();
            let exact = values(1, name, &Role::Param, &slice);
            match kind {
                FloatKind::F32 => assert_eq!(out, exact, "{name}"),
                FloatKind::Bf16 => {
                    assert_eq!(weights.dtype(name).unwrap(), Dtype::BF16);
                    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= b.abs() / 256.0;
                    assert!(out.iter().zip(&exact).all(close), "{name}");
                }
            }
        }
        let config: Value =
            serde_json::from_slice(&fs::read(output.join("config.json")).unwrap()).unwrap();
        assert_eq!(config, json!({ key: dtype }));
        assert_eq!(
            fs::read(output.join("tokenizer.json")).unwrap(),
            b"as it is"
        );
        let error = export(&reader, &files, &output, kind, 500, |_| {})
            .unwrap_err()
            .to_string();
        assert!(error.contains("is there already"), "{error}");
        fs::remove_dir_all(&output).unwrap();
    }
}

#[test]
fn a_damaged_checkpoint_is_not_exported() {
    let root = TempDir::new().unwrap();
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(root.path()));
    let new = NewCheckpoint::in_folder("c");
    save(store.as_ref(), &new, 1, Mesh { tp: 1, dp: 1 }).unwrap();
    let reader = Reader::open(store, "c").unwrap();
    let piece = reader.manifest().tensors["model.norm.weight"].roles[&Role::Param][0].clone();
    let shard = root.path().join("c").join(piece.file);
    let mut bytes = fs::read(&shard).unwrap();
    bytes[piece.begin as usize] ^= 1;
    fs::write(&shard, bytes).unwrap();
    let output = root.path().join("out");
    let error = export(&reader, &[], &output, FloatKind::F32, 1 << 30, |_| {}).unwrap_err();
    assert!(error.to_string().contains("model.norm.weight"), "{error}");
    let left: Vec<_> = fs::read_dir(root.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "an unfinished export was left: {left:?}");
}

#[test]
fn inspection_counts_what_is_there() {
    let root = TempDir::new().unwrap();
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(root.path()));
    let new = NewCheckpoint::in_folder("c");
    let manifest = save(store.as_ref(), &new, 1, Mesh { tp: 2, dp: 1 }).unwrap();
    let contents = manifest.contents();
    let elements: usize = tensors()
        .iter()
        .map(|(_, shape, _)| shape.iter().product::<usize>())
        .sum();
    assert_eq!(contents.elements.len(), 3);
    assert!(
        contents
            .elements
            .values()
            .all(|&count| count == elements as u64)
    );
    assert_eq!(contents.shapes.len(), tensors().len());
    assert_eq!(contents.files.len(), 2);
    let mut read = 0;
    let checks = Reader::open(store, "c")
        .unwrap()
        .verify(|bytes| read += bytes);
    assert!(checks.iter().all(|check| check.problems.is_empty()));
    assert_eq!(read, contents.bytes);
}
