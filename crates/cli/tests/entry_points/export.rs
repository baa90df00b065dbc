//! `tandem export` gives back the model: the same weights, to Tandem and to transformers.

use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::SafeTensors;

use crate::demo::Run;
use crate::tiny::Tiny;

/// Trains so little that nothing changes.
fn unchanged(tiny: &Tiny, layout: (usize, usize)) -> Run {
    Run::new("fsdp", layout.0, layout.1)
        .args(tiny.args())
        .args(["--max_steps", "1", "--learning_rate", "1e-30"])
}

fn export(run: &Path, output: &Path, dtype: &str, more: &[&str]) {
    let status = Command::new(env!("CARGO_BIN_EXE_tandem"))
        .args(["export", "--dtype", dtype, "--checkpoint"])
        .arg(run)
        .arg("--output")
        .arg(output)
        .args(more)
        .status();
    assert!(status.unwrap().success());
}

/// The exported model is the golden one.
fn exported(case: &str, layout: (usize, usize), dtype: &str) -> (Tiny, Run) {
    let tiny = Tiny::new(case);
    let run = unchanged(&tiny, layout);
    let dir = run.succeed();
    export(&dir, &run.storage.path().join("exported"), dtype, &[]);
    (tiny, run)
}

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests-data/golden")
        .join(case)
}

#[test]
fn the_exported_weights_are_those_that_were_loaded() {
    for (case, layout) in [
        ("qwen2_tied", (2, 2)),
        ("qwen3_qknorm", (3, 1)),
        ("llama3_rope", (1, 2)),
        ("phi3_window", (2, 1)),
    ] {
        let (tiny, run) = exported(case, layout, "fp32");
        let read = |path: &Path| std::fs::read(path.join("model.safetensors")).unwrap();
        let (original, output) = (
            read(&tiny.model()),
            read(&run.storage.path().join("exported")),
        );
        let (original, output) = (
            SafeTensors::deserialize(&original).unwrap(),
            SafeTensors::deserialize(&output).unwrap(),
        );
        for (name, view) in output.tensors() {
            let expected = original.tensor(&name).unwrap();
            assert_eq!(view.shape(), expected.shape(), "{name}");
            assert!(view.data() == expected.data(), "{case}: {name} differs");
        }
        assert_eq!(output.len(), original.len(), "{case}");
        println!("{case}: {} tensors, bit for bit", output.len());
        // And the folder is a model to train.
        let again = Run::new("deepspeed", 1, 1)
            .args(tiny.args())
            .args(["--max_steps", "1", "--model_name"])
            .args([run.storage.path().join("exported").to_str().unwrap()]);
        again.succeed();
    }
}

/// Every family, with a mixture in every layer and in some, tied and untied; adapters by themselves and added to their model.
#[test]
#[ignore = "needs torch, transformers and PEFT, 5 GB: cargo xtask test --long exports"]
fn exports_load_in_transformers_and_peft_with_the_golden_logits() {
    let folder = std::env::var_os("TANDEM_TORCH_BIN_DIR")
        .expect("the folder of a Python with transformers: cargo xtask test --long installs it");
    let mut look = Command::new(Path::new(&folder).join("python"));
    look.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/exported_logits.py"));
    let mut runs = Vec::new();
    for case in [
        "llama3_rope",
        "mistral",
        "qwen2_tied",
        "qwen2_untied",
        "qwen3_qknorm",
        "gemma2_gqa3",
        "gemma3",
        "phi3_window",
        "olmo2",
        "olmo3",
        "smollm3",
        "granite",
        "mixtral",
        "qwen3_moe",
    ] {
        let (_tiny, run) = exported(case, (2, 1), "fp32");
        look.arg("--model")
            .arg(run.storage.path().join("exported"))
            .arg(golden(case));
        runs.push(run);
    }
    for case in ["lora_llama_rslora", "lora_qwen2_tied"] {
        let tiny = Tiny::new(case);
        let adapter = golden(case).join("adapter_init");
        let run = unchanged(&tiny, (2, 1)).args(["--adapter", adapter.to_str().unwrap()]);
        let dir = run.succeed();
        for (kind, name, more) in [
            ("--adapter", "peft", &[][..]),
            ("--model", "merged", &["--merge"]),
        ] {
            let output = run.storage.path().join(name);
            export(&dir, &output, "fp32", more);
            look.arg(kind).arg(output).arg(golden(case));
        }
        runs.push(run);
    }
    let output = look.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    println!("{}", text(&output.stdout));
    assert!(output.status.success(), "{}", text(&output.stderr));
}
