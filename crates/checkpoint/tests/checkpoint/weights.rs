//! Hugging Face weights in and out: slices are right, and files that lie are refused by name.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use serde_json::json;
use tandem_checkpoint::{
    Dtype, FloatKind, HfWeights, HfWriter, NamedTensor, SafetensorsWriter, TensorFile,
    WeightsError, write_safetensors,
};
use tandem_mesh::{ShardSlice, partition};
use tempfile::TempDir;

/// Values that bf16 holds exactly, different for every element of every tensor.
fn values(seed: usize, elements: usize) -> Vec<f32> {
    (0..elements)
        .map(|i| ((i * 7 + seed) % 251) as f32 - 125.0)
        .collect()
}

fn pick(slice: &ShardSlice, whole: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; slice.numel()];
    for run in slice.runs() {
        out[run.target..run.target + run.len]
            .copy_from_slice(&whole[run.source..run.source + run.len]);
    }
    out
}

fn one_tensor(path: &Path, name: &str, shape: &[usize], data: &[f32], kind: FloatKind) {
    write_safetensors(path, &[NamedTensor { name, shape, data }], kind).expect("writes");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_slice_of_every_kind_is_what_it_should_be(
        rows in 1usize..40, columns in 1usize..40, dim in 0usize..2, tp in 1usize..5, dp in 1usize..4,
        bf16 in any::<bool>(),
    ) {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("model.safetensors");
        let shape = [rows, columns];
        let whole = values(1, rows * columns);
        let kind = if bf16 { FloatKind::Bf16 } else { FloatKind::F32 };
        one_tensor(&path, "w", &shape, &whole, kind);
        let weights = HfWeights::open(folder.path()).unwrap();
        prop_assert_eq!(weights.dtype("w").unwrap(), kind.dtype());
        for t in 0..tp {
            let rectangle = ShardSlice::narrow(&shape, dim, partition(shape[dim], tp, t));
            for d in 0..dp {
                let slice = rectangle.clone().with_flat(partition(rectangle.rect_numel(), dp, d));
                let mut out = vec![f32::NAN; slice.numel()];
                weights.read("w", &slice, &mut out).unwrap();
                prop_assert_eq!(&out, &pick(&slice, &whole));
            }
        }
    }
}

#[test]
fn large_tensors_are_read_in_parallel_blocks() {
    let folder = TempDir::new().unwrap();
    let shape = [1500, 3000];
    let whole = values(3, shape[0] * shape[1]);
    let path = folder.path().join("model.safetensors");
    for kind in [FloatKind::F32, FloatKind::Bf16] {
        one_tensor(&path, "w", &shape, &whole, kind);
        let weights = HfWeights::open(folder.path()).unwrap();
        for slice in [
            ShardSlice::whole(&shape),
            ShardSlice::narrow(&shape, 1, 1000..2001),
            ShardSlice::narrow(&shape, 0, 7..1499).with_flat(5..4_000_001),
        ] {
            let mut out = vec![f32::NAN; slice.numel()];
            weights.read("w", &slice, &mut out).unwrap();
            assert!(out == pick(&slice, &whole), "{kind:?} {slice:?}");
        }
    }
}

#[test]
fn a_published_file_reads_as_the_reference_implementation_reads_it() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests-data/golden/qwen2_tied");
    let bytes = fs::read(golden.join("model.safetensors")).unwrap();
    let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let weights = HfWeights::open(&golden).unwrap();
    assert_eq!(weights.names().count(), reference.len());
    for (name, view) in reference.iter() {
        let slice = ShardSlice::whole(view.shape());
        let mut out = vec![f32::NAN; slice.numel()];
        weights.read(name, &slice, &mut out).unwrap();
        let expected: Vec<f32> = view
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        assert_eq!(out, expected, "{name}");
    }
    let batches = TensorFile::open(&golden.join("batches.safetensors")).unwrap();
    let shape = &batches.entry("input_ids").unwrap().shape;
    assert!(matches!(
        weights.read("model.norm.weight", &ShardSlice::whole(&[3]), &mut [0.0; 3]),
        Err(WeightsError::Shape { .. })
    ));
    let slice = ShardSlice::whole(shape);
    let error = batches
        .read("input_ids", &slice, &mut vec![0.0; slice.numel()])
        .unwrap_err();
    assert!(error.to_string().contains("input_ids"), "{error}");
}

/// A model of three tensors in as many files as `max_shard_bytes` makes of it.
fn write_model(
    folder: &Path,
    kind: FloatKind,
    max_shard_bytes: usize,
) -> BTreeMap<String, Vec<f32>> {
    let tensors = vec![
        ("a".to_owned(), vec![10, 3]),
        ("b".to_owned(), vec![30]),
        ("c".to_owned(), vec![2, 3, 5]),
    ];
    let data: BTreeMap<String, Vec<f32>> = tensors
        .iter()
        .zip(0..)
        .map(|((name, _), seed)| (name.clone(), values(seed, 30)))
        .collect();
    let mut writer =
        HfWriter::create(folder, tensors.clone(), kind, max_shard_bytes).expect("writes");
    for (name, _) in &tensors {
        writer
            .write(name, |slice, out| -> Result<(), WeightsError> {
                out.copy_from_slice(&pick(slice, &data[name]));
                Ok(())
            })
            .expect("writes");
    }
    writer.add_file("config.json", b"{}").expect("writes");
    writer.finish().expect("writes");
    data
}

#[test]
fn a_written_model_is_read_back_whether_cut_or_not() {
    let root = TempDir::new().unwrap();
    for (kind, max, files) in [
        (FloatKind::F32, 1 << 20, 1),
        (FloatKind::F32, 240, 2),
        (FloatKind::Bf16, 10, 3),
    ] {
        let folder = root.path().join(format!("{kind:?}-{max}"));
        let data = write_model(&folder, kind, max);
        let names = fs::read_dir(&folder).unwrap().count();
        assert_eq!(names, 1 + files + usize::from(files > 1), "{max}");
        let weights = HfWeights::open(&folder).unwrap();
        for (name, values) in &data {
            let slice = ShardSlice::whole(weights.shape(name).unwrap());
            let mut out = vec![f32::NAN; 30];
            weights.read(name, &slice, &mut out).unwrap();
            assert_eq!(&out, values, "{name}");
        }
    }
    let left: Vec<_> = fs::read_dir(root.path()).unwrap().collect();
    assert_eq!(left.len(), 3, "something was left: {left:?}");
}

#[test]
fn an_abandoned_writer_leaves_nothing_and_a_taken_place_is_refused() {
    let root = TempDir::new().unwrap();
    let out = root.path().join("out");
    let tensors = vec![("a".to_owned(), vec![2]), ("b".to_owned(), vec![2])];
    let fill = |_: &ShardSlice, out: &mut [f32]| -> Result<(), WeightsError> {
        out.fill(1.0);
        Ok(())
    };
    let mut writer = HfWriter::create(&out, tensors.clone(), FloatKind::F32, 1 << 20).unwrap();
    let error = writer.write("b", fill).unwrap_err().to_string();
    assert!(
        error.contains("\"b\"") && error.contains("\"a\" was due"),
        "{error}"
    );
    writer.write("a", fill).unwrap();
    let error = writer.finish().unwrap_err().to_string();
    assert!(
        error.contains("\"b\" was announced but not written"),
        "{error}"
    );
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);

    fs::create_dir(&out).unwrap();
    fs::write(out.join("mine.txt"), "precious").unwrap();
    let error = HfWriter::create(&out, tensors, FloatKind::F32, 1 << 20).unwrap_err();
    assert!(
        matches!(error, WeightsError::OutputExists { .. }),
        "{error}"
    );
}

#[test]
fn all_that_is_missing_extra_or_misshaped_is_said_at_once() {
    let root = TempDir::new().unwrap();
    let folder = root.path().join("model");
    write_model(&folder, FloatKind::F32, 240);
    let weights = HfWeights::open(&folder).unwrap();
    let shapes = |c: &[usize]| {
        vec![
            ("a".to_owned(), vec![10, 3]),
            ("c".to_owned(), c.to_vec()),
            ("d".to_owned(), vec![4]),
        ]
    };
    let error = weights
        .expect(&shapes(&[3, 10]), &|_| false)
        .unwrap_err()
        .to_string();
    for says in [
        "d of shape [4] is missing",
        "b of shape [30] in",
        "c in",
        "shape [2, 3, 5], the model's has [3, 10]",
    ] {
        assert!(error.contains(says), "{error}");
    }
    let fitting = &shapes(&[2, 3, 5])[..2];
    assert!(weights.expect(fitting, &|_| false).is_err());
    weights.expect(fitting, &|name| name == "b").unwrap();

    let many: Vec<_> = (0..50).map(|i| (format!("x{i}"), vec![1])).collect();
    let error = weights.expect(&many, &|_| true).unwrap_err().to_string();
    assert!(error.ends_with("and 30 more"), "{error}");
}

#[test]
fn a_folder_that_lies_is_refused_by_name() {
    let root = TempDir::new().unwrap();
    let open = |name: &str| {
        HfWeights::open(root.path().join(name))
            .unwrap_err()
            .to_string()
    };
    assert!(open("absent").contains("it is not a folder"));

    let fresh = |name: &str| {
        let folder = root.path().join(name);
        write_model(&folder, FloatKind::F32, 10);
        folder
    };
    let second = "model-00002-of-00003.safetensors";

    let folder = fresh("cut");
    let bytes = fs::read(folder.join(second)).unwrap();
    fs::write(folder.join(second), &bytes[..bytes.len() - 5]).unwrap();
    let error = open("cut");
    assert!(
        error.contains(second) && error.contains("tensor \"b\""),
        "{error}"
    );

    let folder = fresh("empty-file");
    fs::write(folder.join(second), []).unwrap();
    assert!(open("empty-file").contains("0 bytes"));

    let folder = fresh("lost");
    fs::remove_file(folder.join(second)).unwrap();
    let error = open("lost");
    assert!(
        error.contains(second) && error.contains("tensor \"b\""),
        "{error}"
    );

    let folder = fresh("twice");
    fs::copy(
        folder.join("model-00001-of-00003.safetensors"),
        folder.join(second),
    )
    .unwrap();
    let error = open("twice");
    assert!(
        error.contains("\"b\"") && error.contains("does not have it"),
        "{error}"
    );

    for (name, map, says) in [
        ("other", json!({"a": second}), "does not have it"),
        (
            "outside",
            json!({"a": "../x.safetensors"}),
            "not the name of a file beside",
        ),
        ("none", json!({}), "names no tensor"),
        ("no-map", json!(3), "not an index"),
    ] {
        let folder = fresh(name);
        let index = json!({ "weight_map": map }).to_string();
        fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
        let error = open(name);
        assert!(error.contains(says), "{name}: {error}");
    }

    let folder = fresh("doubled");
    let third = folder.join("model-00003-of-00003.safetensors");
    let data = [0.0; 30];
    let both = [("b", &[30][..]), ("c", &[2, 3, 5][..])].map(|(name, shape)| NamedTensor {
        name,
        shape,
        data: &data,
    });
    write_safetensors(&third, &both, FloatKind::F32).unwrap();
    let error = open("doubled");
    assert!(
        error.contains("\"b\" is both in") && error.contains("00003"),
        "{error}"
    );

    let folder = root.path().join("pickle");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("pytorch_model.bin"), "x").unwrap();
    assert!(open("pickle").contains("convert its pytorch_model.bin"));
}

#[test]
fn data_that_do_not_fill_their_shape_are_not_written() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("x.safetensors");
    let tensor = NamedTensor {
        name: "w",
        shape: &[2, 2],
        data: &[1.0; 3],
    };
    assert!(write_safetensors(&path, &[tensor], FloatKind::F32).is_err());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    one_tensor(&path, "w", &[2, 2], &[1.0; 4], FloatKind::F32);
    assert_eq!(
        TensorFile::open(&path).unwrap().entries()[0].dtype,
        Dtype::F32
    );
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "a partial file was left: {left:?}");
}

#[test]
fn tensors_that_come_one_by_one_are_those_that_were_announced() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("x.safetensors");
    let announced = [("b", &[2, 2][..]), ("a", &[3])];
    let begin = || SafetensorsWriter::create(&path, announced, FloatKind::F32).unwrap();
    let mut file = begin();
    file.write("b", &[1.0, 2.0, 3.0, 4.0]).unwrap();
    let error = file.write("b", &[1.0; 4]).unwrap_err().to_string();
    assert!(
        error.contains("\"a\"") && error.contains("x.safetensors"),
        "{error}"
    );
    let error = file.finish().unwrap_err().to_string();
    assert!(
        error.contains("\"a\"") && error.contains("not written"),
        "{error}"
    );
    let mut file = begin();
    assert!(file.write("b", &[1.0; 3]).is_err());
    drop(file);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);

    let mut file = begin();
    file.write("b", &[1.0, 2.0, 3.0, 4.0]).unwrap();
    file.write("a", &[5.0, 6.0, 7.0]).unwrap();
    file.finish().unwrap();
    let file = TensorFile::open(&path).unwrap();
    assert_eq!(file.read_f64("b", 1..4).unwrap(), [2.0, 3.0, 4.0]);
    assert_eq!(file.read_f64("a", 0..3).unwrap(), [5.0, 6.0, 7.0]);
    assert!(file.read_f64("a", 1..1).unwrap().is_empty());
}

/// Weights with these names, one element each, with the values 0, 1, ...
fn named(folder: &Path, names: &[&str]) -> HfWeights {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir(folder).unwrap();
    let data: Vec<[f32; 1]> = (0..names.len()).map(|value| [value as f32]).collect();
    let tensors: Vec<NamedTensor<'_>> = names
        .iter()
        .zip(&data)
        .map(|(name, data)| NamedTensor {
            name,
            shape: &[1],
            data,
        })
        .collect();
    write_safetensors(&folder.join("model.safetensors"), &tensors, FloatKind::F32).unwrap();
    HfWeights::open(folder).unwrap()
}

#[test]
fn a_prefix_that_makes_everything_fit_is_taken_off_and_said() {
    const TABLE: &str = "model.embed_tokens.weight";
    const HEAD: &str = "lm_head.weight";
    let root = TempDir::new().unwrap();
    let folder = root.path().join("model");
    let tied = [TABLE, "model.layers.0.a.weight", "model.norm.weight"];
    let untied = [tied[0], tied[1], tied[2], HEAD];
    let shapes = |names: &[&str]| -> Vec<(String, Vec<usize>)> {
        names
            .iter()
            .map(|name| ((*name).to_owned(), vec![1]))
            .collect()
    };
    let value = |weights: &HfWeights, name: &str| {
        let mut out = [f32::NAN];
        weights
            .read(name, &ShardSlice::whole(&[1]), &mut out)
            .unwrap();
        out[0]
    };
    let prefixed = |prefix: &str| untied.map(|name| format!("{prefix}{name}"));
    let list = |names: [&str; 4]| names.map(str::to_owned);
    for (names, word) in [
        (prefixed("language_model."), "language_model. "),
        (prefixed("_orig_mod."), "_orig_mod"),
        (prefixed("module."), "module. "),
        (prefixed("model."), "prefix model. "),
        (prefixed("module._orig_mod."), "module._orig_mod. "),
        (prefixed("base_model.model."), "base_model.model. "),
        // The head beside the decoder of a larger model.
        (
            list([
                "model.language_model.embed_tokens.weight",
                "model.language_model.layers.0.a.weight",
                "model.language_model.norm.weight",
                HEAD,
            ]),
            "model.language_model.",
        ),
        // Each layer wrapped for itself.
        (
            list([
                TABLE,
                "model.layers.0._fsdp_wrapped_module.a.weight",
                tied[2],
                HEAD,
            ]),
            "_fsdp_wrapped_module",
        ),
        // The decoder alone.
        (
            list([
                "embed_tokens.weight",
                "layers.0.a.weight",
                "norm.weight",
                HEAD,
            ]),
            "model. ",
        ),
    ] {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut weights = named(&folder, &names);
        assert!(
            weights.expect(&shapes(&untied), &|_| true).is_err(),
            "{names:?}"
        );
        let said = weights.fit_names(&shapes(&untied), (TABLE, HEAD)).unwrap();
        let said = said.expect("a prefix is found");
        assert!(said.contains(word), "{names:?}: {said}");
        assert_eq!(
            weights.expect(&shapes(&untied), &|_| false).unwrap(),
            [""; 0]
        );
        for (name, expected) in untied.iter().zip(0..) {
            assert_eq!(value(&weights, name), expected as f32, "{names:?}: {name}");
        }
    }
    // What fits as it is, or not at all, stays as it is.
    let mut weights = named(&folder, &untied);
    assert_eq!(
        weights.fit_names(&shapes(&untied), (TABLE, HEAD)).unwrap(),
        None
    );
    let mut weights = named(
        &folder,
        &["x.model.layers.0.a.weight", "y.model.norm.weight"],
    );
    assert_eq!(
        weights.fit_names(&shapes(&tied), (TABLE, HEAD)).unwrap(),
        None
    );
    let error = weights
        .expect(&shapes(&tied), &|_| true)
        .unwrap_err()
        .to_string();
    assert!(error.contains("x.model.layers.0.a.weight"), "{error}");
    // Of a tied pair, the head alone will do.
    let mut weights = named(
        &folder,
        &[
            "m.lm_head.weight",
            "m.model.layers.0.a.weight",
            "m.model.norm.weight",
        ],
    );
    assert!(
        weights
            .fit_names(&shapes(&tied), (TABLE, HEAD))
            .unwrap()
            .is_some()
    );
    weights.rename(HEAD, TABLE);
    assert_eq!(weights.expect(&shapes(&tied), &|_| false).unwrap(), [""; 0]);
    // The rest of a larger model is left over, by its own name.
    let mut larger = prefixed("text.").to_vec();
    larger.push("vision.patch.weight".to_owned());
    let mut weights = named(
        &folder,
        &larger.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    weights.fit_names(&shapes(&untied), (TABLE, HEAD)).unwrap();
    let left = weights
        .expect(&shapes(&untied), &|name| name.starts_with("vision"))
        .unwrap();
    assert_eq!(left, ["vision.patch.weight"]);
    // Two of a kind: nobody but the user knows which.
    let both: Vec<String> = prefixed("student.")
        .into_iter()
        .chain(prefixed("teacher."))
        .collect();
    let mut weights = named(
        &folder,
        &both.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    let error = weights
        .fit_names(&shapes(&untied), (TABLE, HEAD))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("student.") && error.contains("teacher."),
        "{error}"
    );
}

#[test]
fn equal_tensors_are_told_from_others() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.safetensors");
    // More than is compared at once, with the difference at the end.
    let long = values(1, (1 << 20) + 3);
    let mut other = long.clone();
    let shape = [long.len()];
    let tensor = |name, data| NamedTensor {
        name,
        shape: &shape,
        data,
    };
    let last = other.len() - 1;
    other[last] += 1.0;
    let short = [1.0];
    let tensors = [
        tensor("a", &long[..]),
        tensor("same", &long[..]),
        tensor("other", &other[..]),
        NamedTensor {
            name: "short",
            shape: &[1],
            data: &short,
        },
    ];
    write_safetensors(&path, &tensors, FloatKind::F32).unwrap();
    let weights = HfWeights::open(folder.path()).unwrap();
    assert!(weights.are_equal("a", "same").unwrap());
    assert!(!weights.are_equal("a", "other").unwrap());
    assert!(!weights.are_equal("a", "short").unwrap());
    assert!(weights.are_equal("a", "none").is_err());
}
