//! `tandem plan` and `--tp_size auto` from outside, and what is predicted beside what is.

use std::process::{Command, Output};

use serde_json::Value;

use crate::demo::{Run, demo, metrics, train};
use crate::tiny::Tiny;

fn tandem(args: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_tandem"))
        .args(args)
        .output()
        .unwrap();
    println!("{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn json(args: &[&str]) -> Value {
    let output = tandem(args);
    assert!(output.status.success(), "{args:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_plan_lists_what_fits_best_first_with_commands_that_are_understood() {
    let model = demo("model");
    let line = [
        "plan",
        "--model_name",
        &model,
        "--devices",
        "4",
        "--device_type",
        "L4",
    ];
    let plan = json(&[&line[..], &["--json", "--seq_length", "64"]].concat());
    let candidates = plan["candidates"].as_array().unwrap();
    assert!(candidates.len() > 50, "{}", candidates.len());
    let key = |it: &Value| {
        (
            !it["fits"].as_bool().unwrap(),
            it["step_s"].as_f64().unwrap(),
        )
    };
    assert!(candidates.is_sorted_by(|a, b| key(a) <= key(b)));
    let mut kinds = Vec::new();
    for candidate in candidates {
        let bytes = candidate["memory_bytes"].as_object().unwrap();
        let sum: u64 = bytes
            .iter()
            .filter(|(kind, _)| *kind != "saving")
            .map(|(_, it)| it.as_u64().unwrap())
            .sum();
        assert_eq!(sum, candidate["total_memory_bytes"].as_u64().unwrap());
        let kind = [
            &candidate["strategy"],
            &candidate["zero_stage"],
            &candidate["tp_size"],
            &candidate["sequence_parallel"],
        ];
        if kinds.contains(&kind) {
            continue;
        }
        kinds.push(kind);
        let command = candidate["command"].as_str().unwrap();
        let words: Vec<&str> = command
            .split_whitespace()
            .chain(["--check_flags", "flags"])
            .collect();
        let output = tandem(&words);
        assert!(output.status.success(), "{command}");
    }
    // Both strategies, three rows, and every stage.
    assert!(kinds.len() > 12, "{kinds:?}");
    let text = String::from_utf8(tandem(&line).stdout).unwrap();
    for word in [
        "mesh",
        "tokens/s",
        "memory ",
        "time ",
        "why ",
        "run       train_",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn experts_are_spread_in_some_of_the_candidates_of_a_mixture() {
    let tiny = Tiny::new("qwen3_moe_aux");
    let model = tiny.model();
    let devices = ["--devices", "4", "--devices_per_node", "2"];
    let line = ["plan", "--model_name", model.to_str().unwrap()];
    let line = [&line[..], &devices].concat();
    let plan = json(&[&line[..], &["--json"]].concat());
    // Six experts are not shared out evenly by all four devices.
    for size in [1, 2] {
        let candidates = plan["candidates"].as_array().unwrap().iter();
        let mut of_size = candidates.filter(|it| it["expert_parallel_size"] == size);
        let best = of_size.next().unwrap();
        let command = best["command"].as_str().unwrap();
        let flag = format!("--expert_parallel_size {size}");
        assert_eq!(command.contains(&flag), size > 1, "{command}");
        let words: Vec<&str> = command
            .split_whitespace()
            .chain(["--check_flags", "flags"])
            .collect();
        assert!(tandem(&words).status.success(), "{command}");
        let said = &best["step"]["ep"];
        let number = |key: &str| said[key].as_f64().unwrap();
        assert_eq!(number("bytes") > 0.0, size > 1, "{said}");
        assert_eq!(number("exposed_s") > 0.0, size > 1, "{said}");
    }
    let text = |size: &str| {
        let flag = ["--expert_parallel_size", size];
        String::from_utf8(tandem(&[&line[..], &flag].concat()).stdout).unwrap()
    };
    let said = |size: &str| {
        let text = text(size);
        let line = text.lines().find(|line| line.contains("to experts "));
        line.map(str::to_owned)
    };
    assert_eq!(said("1"), None);
    for (size, link) in [("2", "within nodes"), ("4", "between nodes")] {
        let said = said(size).unwrap();
        assert!(said.contains(link) && said.contains("exposed"), "{said}");
    }
}

/// Llama 3 8B, a sixteenth as wide: bytes for a token go with the width.
const NARROW: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 8,
    "num_key_value_heads": 2, "intermediate_size": 896, "vocab_size": 2048, "max_position_embeddings": 2048
}"#;

/// What a layer launches and moves on a GPU must not grow unnoticed.
#[test]
fn a_layers_operators_are_counted_and_stay_few() {
    let model = tempfile::tempdir().unwrap();
    std::fs::write(model.path().join("config.json"), NARROW).unwrap();
    let line = ["plan", "--operators", "--batch_size", "4", "--model_name"];
    let line = [&line[..], &[model.path().to_str().unwrap()]].concat();
    for (recompute, launches, compiled) in [("none", 55, 34), ("light", 58, 36), ("full", 72, 45)] {
        let found = json(&[&line[..], &["--recompute", recompute, "--json"]].concat());
        let found = &found["operators"];
        println!("{recompute}: {found}");
        assert_eq!(found["tokens"], 4 * 2048);
        assert_eq!(found["layer"]["launches"], launches);
        assert_eq!(found["compiled"]["launches"], compiled);
        let bytes = |of: &str| found[of]["bytes"].as_f64().unwrap();
        assert!(bytes("layer") <= 1.5 * bytes("compiled"), "{found}");
        let parts = found["parts"].as_array().unwrap().iter();
        let parts: Vec<&str> = parts.map(|it| it["name"].as_str().unwrap()).collect();
        for part in ["embedding", "head and loss", "gradient norm", "optimizer"] {
            assert!(parts.contains(&part), "{parts:?}");
        }
    }
    let text = String::from_utf8(tandem(&line).stdout).unwrap();
    for words in ["launches", "flash attention", "compiled  ", "besides  "] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let adapters = tandem(&[&line[..], &["--lora_r", "4"]].concat());
    let text = String::from_utf8(adapters.stdout).unwrap();
    assert!(text.contains("compiled  not counted"), "{text}");
}

#[test]
fn many_ranks_are_shown_with_what_ends_first() {
    let model = demo("model");
    let line = ["plan", "--devices", "64", "--tp_size", "2", "--model_name"];
    let line = [&line[..], &[&model, "--seq_length", "64"]].concat();
    for (transport, over_tcp) in [("--scale", false), ("--scale=staged", true)] {
        let plan = json(&[&line[..], &[transport, "--json"]].concat());
        let scale = &plan["scale"];
        assert_eq!(scale["columns"], serde_json::json!([64, 256, 1024]));
        let rows = scale["rows"].as_array().unwrap();
        let of = |words: &str| rows.iter().find(|row| row["what"] == words);
        let connections = of("connections of a rank in the group of all ranks, over TCP");
        assert_eq!(connections.is_some(), over_tcp, "{scale}");
        let store = of("connections of rank 0's store, which one thread serves");
        let expected = serde_json::json!([64.0, 256.0, 1024.0]);
        assert_eq!(store.unwrap()["values"], expected);
        assert!(scale["limits"].as_array().unwrap().len() > 4, "{scale}");
        let text = String::from_utf8(tandem(&[&line[..], &[transport]].concat()).stdout).unwrap();
        for words in ["  restart ", "met at ", "first     ", "a run of 64 is "] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
    assert!(json(&[&line[..], &["--json"]].concat())["scale"].is_null());
}

#[test]
fn what_cannot_be_planned_is_refused_with_what_to_do() {
    let model = demo("model");
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("device.json");
    std::fs::write(&file, "{\"name\": \"x\"}").unwrap();
    let file = file.to_str().unwrap();
    for (args, code, words) in [
        (&["--device_type", "abacus"][..], 2, "h100"),
        (&["--devices", "0"], 2, "--devices"),
        (&["--seq_length", "100000"], 2, "max_position_embeddings"),
        (&["--global_batch_tokens", "10"], 2, "one row"),
        (&["--device_file", file], 2, "missing field"),
        (&["--device_file", "/no/such/file"], 2, "--device_file"),
        (&["--zero_stage", "1"], 2, "--strategy deepspeed"),
        (
            &["--expert_parallel_size", "0"],
            2,
            "expert_parallel_size is 0",
        ),
        (
            &["--devices", "2", "--expert_parallel_size", "2"],
            2,
            "this model has none",
        ),
        (
            &["--lora_r", "4", "--lora_target_modules", "x"],
            2,
            "no matrix",
        ),
        (&["--model_name", "/no/such/model"], 1, "--model_name"),
        (
            &["--operators", "--device_type", "cpu"],
            2,
            "what a GPU runs",
        ),
        (&["--operators", "--measure"], 2, "--measure"),
        (&["--scale", "--measure"], 2, "--measure"),
        (&["--scale=pigeon"], 2, "staged"),
    ] {
        let output = tandem(&[&["plan", "--model_name", &model], args].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        assert!(text.contains(words), "{args:?}: {text}");
    }
}

/// A run of this many workers whose mesh is not said.
fn auto(workers: &str, more: &[&str]) -> Run {
    let run = Run::new("fsdp", 1, 1);
    let storage = run.storage.path().to_str().unwrap().to_owned();
    let (model, data) = (demo("model"), demo("data"));
    let line = [
        "--model_name",
        &model,
        "--dataset_name",
        &data,
        "--storage_path",
        &storage,
        "--experiment_name",
        "run",
        "--init",
        "random",
        "--device",
        "cpu",
        "--seq_length",
        "64",
        "--dataset_percentage",
        "10",
        "--max_steps",
        "1",
        "--tp_size",
        "auto",
        "--num_workers",
        workers,
    ];
    run.only(line.iter().chain(more).map(|word| (*word).to_owned()))
}

#[test]
fn a_mesh_that_is_not_said_is_chosen_and_shown_before_anything_starts() {
    let run = auto("2", &[]);
    let output = train(&run).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let at = |words: &str| {
        text.find(words)
            .unwrap_or_else(|| panic!("{words}: {text}"))
    };
    // The model is small, and rows of one see more data.
    assert!(at("auto      tp_size 1 of --tp_size auto") < at("mesh      2 workers = tp 1 x dp 2"));
    assert_eq!(metrics(&run.dir()).last().unwrap()["step"], 1);
    let config = std::fs::read_to_string(run.dir().join("run_config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(
        (&config["flags"]["tp_size"], &config["flags"]["dp_size"]),
        (&1.into(), &2.into())
    );
    for (more, words) in [
        (&["--dp_size", "2"][..], "leave --dp_size out"),
        (&["--expert_parallel_size", "2"], "this model has none"),
        (&["--cluster", "ray"], "--accelerator_type"),
        (&["--batch_size", "4000000"], "tandem plan"),
    ] {
        let (code, text) = auto("2", more).fail();
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains(words), "{words}: {text}");
    }
    let (code, text) = auto("none", &[]).fail();
    assert!(code == Some(2) && text.contains("--num_workers"), "{text}");
}

/// The whole list of configurations is `cargo xtask bench plan`'s; these are small and quick. What a process has resident without
/// computing differs by machine and release of libtorch, which is why there is a tolerance at all.
#[test]
fn the_memory_of_a_step_is_what_was_predicted() {
    let of_model = ["--model", "smollm2", "--steps", "1", "--json"];
    for line in [
        "--layers 6 --tp_size 1 --seq 512 --batch 2 --recompute none",
        "--layers 6 --tp_size 2 --seq 128 --batch 2 --sequence_parallel",
        "--layers 2 --tp_size 1 --seq 128 --dp_size 2 --recompute full",
        "--layers 2 --tp_size 1 --seq 128 --dp_size 2 --strategy deepspeed --zero_stage 0",
        "--model qwen3-moe-narrow --layers 2 --tp_size 2 --seq 512 --batch 2 --expert_parallel_size 2",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let measured = json(&[&["bench", "step"], &of_model[..], &words].concat());
        let peaks = measured["peak_memory_mb"].as_array().unwrap().iter();
        let peak = peaks.map(|it| it.as_f64().unwrap()).fold(0.0, f64::max);
        let planned = measured["planned_memory_mb"].as_f64().unwrap();
        println!("{line:?}: planned {planned:.0} MB, measured {peak:.0} MB");
        assert!(
            (planned / peak - 1.0).abs() < 0.1,
            "{line:?}: planned {planned:.0} MB ({}), measured {peak:.0} MB",
            measured["planned_memory"]
        );
    }
}
