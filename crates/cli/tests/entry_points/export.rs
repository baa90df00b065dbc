//! `tandem export` gives back the model: the same weights, to Tandem and to transformers.

use std::path::Path;
use std::process::Command;

use safetensors::SafeTensors;

use crate::demo::Run;
use crate::tiny::Tiny;

/// Trains so little that nothing changes, so that the exported model is the golden one.
fn exported(case: &str, layout: (usize, usize), dtype: &str) -> (Tiny, Run) {
    let tiny = Tiny::new(case);
    let run = Run::new("fsdp", layout.0, layout.1)
        .args(tiny.args())
        .args(["--max_steps", "1", "--learning_rate", "1e-30"]);
    let dir = run.succeed();
    let status = Command::new(env!("CARGO_BIN_EXE_tandem"))
        .args(["export", "--dtype", dtype, "--checkpoint"])
        .arg(dir)
        .arg("--output")
        .arg(run.storage.path().join("exported"))
        .status();
    assert!(status.unwrap().success());
    (tiny, run)
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

#[test]
#[ignore = "installs torch and transformers, 5 GB: cargo xtask test --long"]
fn transformers_loads_it_and_finds_the_golden_logits() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/exported_logits.py");
    let python = python_with_transformers();
    for case in [
        "qwen2_tied",
        "qwen2_untied",
        "qwen3_qknorm",
        "mistral",
        "llama3_rope",
        "gemma2_gqa3",
        "gemma3",
        "granite",
        "olmo2",
        "phi3_window",
        "smollm3",
    ] {
        let (_tiny, run) = exported(case, (2, 1), "fp32");
        let golden = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests-data/golden")
            .join(case);
        let output = Command::new(&python)
            .arg(&script)
            .args([&run.storage.path().join("exported"), &golden])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        println!("{case}: {text}");
        assert!(output.status.success(), "{case}");
    }
}

/// `TANDEM_TEST_PYTHON`, or an environment that is made here.
fn python_with_transformers() -> std::path::PathBuf {
    if let Ok(python) = std::env::var("TANDEM_TEST_PYTHON") {
        return python.into();
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("transformers");
    let python = folder.join("bin/python");
    let succeed = |command: &mut Command| {
        assert!(command.status().unwrap().success(), "{command:?}");
    };
    if !python.exists() {
        succeed(Command::new("python3").args(["-m", "venv"]).arg(&folder));
    }
    succeed(Command::new(&python).args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "torch",
        "transformers>=4.51",
        "safetensors",
        "numpy",
    ]));
    python
}
