//! Adapters (LoRA) from outside: the same run on every mesh, checkpoints of adapters alone, and what becomes of them.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::demo::{Run, losses};
use crate::reshard::copy;
use crate::saved;
use crate::tiny::Tiny;

const STEPS: &str = "6";

/// Losses differ by the order of fp32 sums.
const LOSS: f64 = 2e-5;

fn run(tiny: &Tiny, strategy: &str, tp: usize, dp: usize) -> Run {
    Run::new(strategy, tp, dp)
        .args(tiny.args())
        // 4 rows a step on every mesh.
        .args(["--batch_size", &(4 / dp).to_string()])
        .args(["--learning_rate", "1e-2", "--max_steps", STEPS])
}

fn adapted(tiny: &Tiny, strategy: &str, tp: usize, dp: usize) -> Run {
    run(tiny, strategy, tp, dp).args(["--lora_r", "4", "--lora_dropout", "0.2"])
}

/// `tandem` with these arguments: whether it succeeded, and what it said.
fn tandem(args: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tandem"))
        .args(args)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stderr);
    (output.status.success(), text(&output.stdout), said)
}

fn eval(tiny: &Tiny, what: &[&str]) -> f64 {
    let data = tiny.data();
    let data = data.to_str().unwrap();
    let mut args = vec!["eval", "--json", "--device", "cpu", "--dtype", "fp32"];
    args.extend([
        "--dataset_name",
        data,
        "--seq_length",
        "32",
        "--batch_size",
        "4",
    ]);
    args.extend(what);
    let (good, out, said) = tandem(&args);
    assert!(good, "{said}");
    let result: Value = serde_json::from_str(&out).unwrap();
    result["eval_loss"].as_f64().unwrap()
}

fn assert_close(what: &str, found: &[f64], expected: &[f64]) {
    println!("{what}: {found:?}");
    assert_eq!(found.len(), expected.len(), "{what}");
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() < LOSS, "{what}: {found:?}, not {expected:?}");
    }
}

#[test]
fn a_run_of_adapters_moves_between_meshes_and_becomes_a_model() {
    let tiny = Tiny::new("qwen2_untied");
    let reference = adapted(&tiny, "fsdp", 1, 1);
    let expected = losses(&reference.succeed());
    assert!(expected[5] < expected[0] - 0.01, "{expected:?}");

    // Dropout is that of the data, whoever computes it; and half of the run is another mesh's and strategy's.
    let half = adapted(&tiny, "deepspeed", 2, 1).args(["--max_steps", "3"]);
    assert_close("2 x 1", &losses(&half.succeed()), &expected[..3]);
    let rest = adapted(&tiny, "fsdp", 1, 2).args(["--resume_from", "run"]);
    copy(&half.dir(), &rest.dir());
    assert_close("then 1 x 2", &losses(&rest.succeed()), &expected);
    let content = saved::content(&saved::newest(&rest.dir()));
    let names: Vec<String> = content.keys().map(|key| format!("{key:?}")).collect();
    assert!(
        !names.is_empty() && names.iter().all(|name| name.contains("lora_")),
        "{names:?}"
    );

    // A checkpoint, the model with the adapters in it, and the adapters begun with again: one function.
    let checkpoint = rest.dir();
    let checkpoint = checkpoint.to_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let export = [
        "export",
        "--checkpoint",
        checkpoint,
        "--dtype",
        "fp32",
        "--output",
    ];
    let (merged, peft) = (path("merged"), path("peft"));
    let (good, _, said) = tandem(&[&export[..], &[&merged, "--merge"]].concat());
    assert!(good, "{said}");
    let (good, _, said) = tandem(&[&export[..], &[&peft]].concat());
    assert!(good, "{said}");
    let trained = eval(&tiny, &["--checkpoint", checkpoint, "--tp_size", "2"]);
    let whole = eval(&tiny, &["--model_name", &merged]);
    let frozen = eval(&tiny, &["--model_name", tiny.model().to_str().unwrap()]);
    println!("adapters {trained}, merged {whole}, without {frozen}");
    assert!((trained - whole).abs() < LOSS && trained < frozen - 0.01);
    let first = |run: Run| losses(&run.args(["--max_steps", "1"]).succeed())[0];
    let again =
        first(run(&tiny, "deepspeed", 2, 1).args(["--adapter", &peft, "--lora_dropout", "0"]));
    let of_merged = first(run(&tiny, "fsdp", 1, 1).args(["--model_name", &merged]));
    assert!((again - of_merged).abs() < LOSS, "{again} {of_merged}");
    let config = fs::read_to_string(Path::new(&peft).join("adapter_config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(
        (&config["r"], &config["peft_type"]),
        (&4.into(), &"LORA".into())
    );
}

#[test]
fn other_models_and_adapters_are_refused() {
    let tiny = Tiny::new("qwen2_tied");
    let begun = adapted(&tiny, "fsdp", 1, 1).args(["--max_steps", "1"]);
    begun.succeed();
    let continued = |run: Run| {
        let run = run.args(["--resume_from", "run"]);
        copy(&begun.dir(), &run.dir());
        run.fail()
    };
    // Flags that are not given are those of the run.
    let (code, text) = continued(run(&tiny, "fsdp", 1, 1).args(["--lora_r", "0"]));
    assert!(code == Some(2) && text.contains("--lora_r"), "{text}");
    let (code, text) = continued(adapted(&tiny, "fsdp", 1, 1).args(["--lora_r", "8"]));
    assert!(
        code == Some(2) && text.contains("r is 8, and was 4"),
        "{text}"
    );
    let other = Tiny::new("qwen2_tied");
    let path = other.model().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    // The first weights, doubled: exponents are the upper bits of a little-endian number.
    for value in bytes[8 + header..].chunks_exact_mut(4) {
        let number = f32::from_le_bytes(value.try_into().unwrap());
        value.copy_from_slice(&(2.0 * number).to_le_bytes());
    }
    fs::write(&path, bytes).unwrap();
    let onto = adapted(&tiny, "fsdp", 1, 1).args(["--model_name", other.model().to_str().unwrap()]);
    let (code, text) = continued(onto);
    assert!(
        code == Some(2) && text.contains("weights are not those"),
        "{text}"
    );

    for (flags, words) in [
        (&["--lora_alpha", "3"][..], "--lora_r"),
        (
            &["--lora_r", "4", "--lora_target_modules", "q_proj,oops"],
            "oops",
        ),
        (&["--adapter", "/no/such"], "adapter_config.json"),
    ] {
        let (_, text) = run(&tiny, "fsdp", 1, 1).args(flags).fail();
        assert!(text.contains(words), "{text}");
    }
    let experts = Tiny::new("mixtral");
    let (_, text) = run(&experts, "fsdp", 1, 1).args(["--lora_r", "4"]).fail();
    assert!(text.contains("mixture of experts"), "{text}");
    run(&experts, "fsdp", 2, 1)
        .args([
            "--lora_r",
            "4",
            "--lora_target_modules",
            "q_proj,o_proj",
            "--max_steps",
            "1",
        ])
        .succeed();
}

/// What is no regular file is not waited for.
#[test]
fn a_folder_of_adapters_that_is_none_is_refused_at_once() {
    let tiny = Tiny::new("qwen2_untied");
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("adapter_config.json");
    let made = Command::new("mkfifo").arg(&config).status().unwrap();
    assert!(made.success());
    let adapter = folder.path().to_str().unwrap();
    let refused = |words: &str| {
        let (code, text) = run(&tiny, "fsdp", 1, 1).args(["--adapter", adapter]).fail();
        assert!(code == Some(1) && text.contains(words), "{text}");
    };
    refused("not a regular file");
    fs::remove_file(&config).unwrap();
    let large = fs::File::create(&config).unwrap();
    large.set_len(1 << 40).unwrap();
    refused("too large");
}
