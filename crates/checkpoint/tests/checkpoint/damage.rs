//! Files that were changed behind the program's back: the error names the file, and the tensor that is hit.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};
use tandem_checkpoint::store::LocalStore;
use tandem_checkpoint::{CheckpointError, Digest, NewCheckpoint, Reader, Store};
use tempfile::TempDir;

use crate::sample::{Mesh, read_all, save};

const MESH: Mesh = Mesh { tp: 2, dp: 2 };

/// A checkpoint to be damaged.
struct Patient {
    root: TempDir,
    store: Arc<dyn Store>,
}

impl Patient {
    fn new() -> Self {
        let root = TempDir::new().expect("a temporary folder");
        let store: Arc<dyn Store> = Arc::new(LocalStore::new(root.path()));
        save(store.as_ref(), &NewCheckpoint::in_folder("c"), 1, MESH).expect("saves");
        Self { root, store }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.root.path().join("c").join(file)
    }

    fn open(&self) -> Result<Reader, CheckpointError> {
        Reader::open(self.store.clone(), "c")
    }

    fn edit_bytes(&self, file: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.path(file)).expect("reads");
        edit(&mut bytes);
        fs::write(self.path(file), bytes).expect("writes");
    }

    /// Changes the manifest and, if `committed`, makes the commit record agree with it.
    fn edit_manifest(&self, committed: bool, edit: impl FnOnce(&mut Value)) {
        let bytes = fs::read(self.path("manifest.json")).expect("reads");
        let mut manifest: Value = serde_json::from_slice(&bytes).expect("parses");
        edit(&mut manifest);
        let manifest = manifest.to_string();
        fs::write(self.path("manifest.json"), &manifest).expect("writes");
        if committed {
            let bytes = fs::read(self.path("commit.json")).expect("reads");
            let mut commit: Value = serde_json::from_slice(&bytes).expect("parses");
            commit["manifest"]["bytes"] = json!(manifest.len());
            commit["manifest"]["blake3"] = json!(Digest::of(manifest.as_bytes()).to_string());
            fs::write(self.path("commit.json"), commit.to_string()).expect("writes");
        }
    }
}

#[test]
fn a_flipped_bit_of_any_piece_is_found_and_named() {
    let patient = Patient::new();
    let manifest = patient.open().unwrap().manifest().clone();
    let mut flips = 0;
    for (name, tensor) in &manifest.tensors {
        for (role, pieces) in &tensor.roles {
            let piece = &pieces[flips % pieces.len()];
            let position = piece.begin as usize + 5 * flips % (4 * (piece.flat[1] - piece.flat[0]));
            let flip = |bytes: &mut Vec<u8>| bytes[position] ^= 1 << (flips % 8);
            patient.edit_bytes(&piece.file, flip);
            let reader = patient.open().unwrap();
            let error = read_all(&reader, Mesh { tp: 1, dp: 1 }).unwrap_err();
            let CheckpointError::Corrupt {
                location,
                tensor,
                role: found,
                ..
            } = &error
            else {
                panic!("{error}");
            };
            assert!(
                location.ends_with(piece.file.as_str()) && tensor == name && found == role,
                "{error}"
            );
            let checks = reader.verify(|_| {});
            let bad: Vec<_> = checks
                .iter()
                .filter(|check| !check.problems.is_empty())
                .collect();
            assert_eq!(bad.len(), 1);
            assert_eq!(bad[0].file.name, piece.file);
            assert!(bad[0].problems[0].to_string().contains(name));
            patient.edit_bytes(&piece.file, flip);
            flips += 1;
        }
    }
    assert_eq!(read_all(&patient.open().unwrap(), MESH).unwrap(), 1);
    println!("{flips} flipped bits");
}

#[test]
fn a_flipped_bit_of_a_header_is_found_by_verification() {
    let patient = Patient::new();
    let shard = "shard-00001.safetensors";
    patient.edit_bytes(shard, |bytes| bytes[20] ^= 1);
    let checks = patient.open().unwrap().verify(|_| {});
    let problems: Vec<_> = checks.iter().flat_map(|check| &check.problems).collect();
    assert_eq!(problems.len(), 1);
    let text = problems[0].to_string();
    assert!(text.contains(shard) && text.contains("header"), "{text}");
}

#[test]
fn a_shard_that_is_cut_lengthened_or_gone_is_named_with_its_tensors() {
    let shard = "shard-00002.safetensors";
    let cut = Patient::new();
    cut.edit_bytes(shard, |bytes| bytes.truncate(bytes.len() - 1));
    let longer = Patient::new();
    longer.edit_bytes(shard, |bytes| bytes.push(0));
    let gone = Patient::new();
    fs::remove_file(gone.path(shard)).unwrap();
    for (patient, says) in [
        (cut, "instead of"),
        (longer, "instead of"),
        (gone, "is missing"),
    ] {
        let error = patient.open().unwrap_err().to_string();
        assert!(error.contains(shard) && error.contains(says), "{error}");
        assert!(
            error.contains("model.embed_tokens.weight") && error.contains("more tensors"),
            "{error}"
        );
    }
}

#[test]
fn without_commit_record_or_manifest_there_is_no_checkpoint() {
    let patient = Patient::new();
    fs::remove_file(patient.path("commit.json")).unwrap();
    let error = patient.open().unwrap_err();
    assert!(
        matches!(error, CheckpointError::NotCommitted { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("never finished"));

    let patient = Patient::new();
    fs::remove_file(patient.path("manifest.json")).unwrap();
    let error = patient.open().unwrap_err().to_string();
    assert!(error.contains("manifest.json is missing"), "{error}");
}

#[test]
fn a_newer_version_is_said_to_be_newer() {
    for committed in [false, true] {
        let patient = Patient::new();
        patient.edit_manifest(committed, |manifest| {
            *manifest = json!({"format": "tandem-checkpoint", "format_version": 7, "new": {}});
        });
        let error = patient.open().unwrap_err().to_string();
        assert!(
            error.contains("version 7") && error.contains("newer version of Tandem"),
            "{error}"
        );
    }
    let patient = Patient::new();
    let commit = json!({"format": "tandem-checkpoint", "format_version": 2, "all_is": "different"});
    fs::write(patient.path("commit.json"), commit.to_string()).unwrap();
    let error = patient.open().unwrap_err();
    assert!(
        matches!(
            error,
            CheckpointError::NewerFormat {
                found: 2,
                supported: 1,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_manifest_that_was_touched_is_refused() {
    let patient = Patient::new();
    patient.edit_manifest(false, |manifest| {
        manifest["state"]["global_step"] = json!(2)
    });
    let error = patient.open().unwrap_err().to_string();
    assert!(error.contains("not what was committed"), "{error}");

    let patient = Patient::new();
    patient.edit_bytes("commit.json", |bytes| bytes.truncate(30));
    let error = patient.open().unwrap_err().to_string();
    assert!(error.contains("commit.json is damaged"), "{error}");
}

/// Even a manifest with the right hash is not believed when it contradicts itself.
#[test]
fn a_manifest_that_cannot_be_is_refused() {
    type Edit = fn(&mut Value);
    let edits: [(Edit, &str); 9] = [
        (
            |piece| piece["file"] = json!("shard-00009.safetensors"),
            "is not listed",
        ),
        (
            |piece| piece["offsets"] = json!([9, 9]),
            "outside the tensor",
        ),
        (|piece| piece["offsets"] = json!([0]), "outside the tensor"),
        (
            |piece| piece["shape"] = json!([u64::MAX, 2]),
            "outside the tensor",
        ),
        (|piece| piece["flat"] = json!([5, 4]), "outside the tensor"),
        (
            |piece| piece["flat"] = json!([0, 4000]),
            "outside the tensor",
        ),
        (
            |piece| piece["begin"] = json!(u64::MAX),
            "reaches behind the end",
        ),
        (
            |piece| piece["chunks"] = json!([]),
            "wrong number of hashes",
        ),
        (
            |piece| piece["chunks"] = json!(["abc"]),
            "not a BLAKE3 digest",
        ),
    ];
    for (edit, says) in edits {
        let patient = Patient::new();
        patient.edit_manifest(true, |manifest| {
            let tensor = &mut manifest["tensors"]["model.embed_tokens.weight"];
            edit(&mut tensor["roles"]["exp_avg"][0]);
        });
        let error = patient.open().unwrap_err().to_string();
        assert!(
            error.contains("manifest.json is damaged") && error.contains(says),
            "{error}"
        );
    }
    for (pointer, value, says) in [
        ("/chunk_bytes", json!(0), "chunks of 0 bytes"),
        ("/format", json!("other"), "its format is \"other\""),
        ("/tensors/model.norm.weight/dtype", json!("F8"), "F8"),
        ("/files/0/name", json!("../x"), "not a file's name"),
        ("/state", json!(1), "cannot be parsed"),
    ] {
        let patient = Patient::new();
        patient.edit_manifest(true, |manifest| {
            *manifest.pointer_mut(pointer).expect("is there") = value;
        });
        let error = patient.open().unwrap_err().to_string();
        assert!(error.contains(says), "{pointer}: {error}");
    }
}

#[test]
fn pieces_that_are_missing_from_a_manifest_are_missed_when_reading() {
    let patient = Patient::new();
    patient.edit_manifest(true, |manifest| {
        let roles = &mut manifest["tensors"]["model.norm.weight"]["roles"];
        roles["param"].as_array_mut().expect("pieces").pop();
    });
    let error = read_all(&patient.open().unwrap(), MESH)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("param of tensor \"model.norm.weight\""),
        "{error}"
    );
}
