//! What cannot work is refused with a sentence that says what to change, the right exit code, and nothing left behind.

use std::ffi::OsString;
use std::process::Command;

use crate::demo::{Run, demo, train};

/// A copy of the demo model with one file changed.
fn model_with(file: &str, change: impl FnOnce(String) -> String) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(demo("model")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = dir.path().join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, change(text)).unwrap();
    dir
}

fn base() -> Run {
    Run::new("fsdp", 1, 1).args(["--max_steps", "1", "--dataset_percentage", "100"])
}

fn expect(run: &Run, code: i32, words: &[&str]) {
    let (exit, text) = run.fail();
    assert_eq!(exit, Some(code), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn flags_that_contradict_each_other() {
    for (extra, words) in [
        (
            vec!["--num_workers", "3"],
            vec!["tp_size", "--num_workers 1"],
        ),
        (
            vec!["--tp_size", "0", "--num_workers", "0"],
            vec!["tp_size is 0"],
        ),
        (vec!["--batch_size", "0"], vec!["--batch_size"]),
        (
            vec!["--seq_length", "100000"],
            vec!["--seq_length", "max_position_embeddings"],
        ),
        (vec!["--autocast", "--dtype", "fp32"], vec!["--autocast"]),
        (vec!["--device", "tpu"], vec!["tpu"]),
        (
            vec!["--tp_size", "9", "--num_workers", "9"],
            vec!["--tp_size 8 or less"],
        ),
        (
            vec!["--expert_parallel_size", "0"],
            vec!["expert_parallel_size is 0"],
        ),
        (
            vec!["--expert_parallel_size", "2"],
            vec!["--expert_parallel_size 2 does not divide the 1 ranks"],
        ),
        (
            vec![
                "--expert_parallel_size=3",
                "--dp_size",
                "4",
                "--num_workers",
                "4",
            ],
            vec!["--expert_parallel_size 3 does not divide the 4 ranks"],
        ),
        (
            vec![
                "--expert_parallel_size=2",
                "--dp_size",
                "2",
                "--num_workers",
                "2",
            ],
            vec!["--expert_parallel_size 2", "this model has none"],
        ),
    ] {
        expect(&base().args(extra), 2, &words);
    }
    let run = Run::new("deepspeed", 1, 1);
    expect(&run.args(["--zero_stage", "3"]), 2, &["train_fsdp"]);
    let run = Run::new("deepspeed", 1, 1);
    expect(
        &run.args(["--autotp_override", "down_proj=colwise"]),
        2,
        &["down_proj", "rowwise"],
    );
}

#[test]
fn cuda_where_there_is_none() {
    let alone = tandem_tensor::device::Workers {
        count: 1,
        may_share: false,
    };
    // On a machine with CUDA this would train; nothing to refuse there.
    if tandem_tensor::DeviceChoice::Cuda.select(0, alone).is_ok() {
        println!("this machine has CUDA: the refusal cannot be shown");
        return;
    }
    expect(&base().args(["--device", "cuda"]), 2, &["--device cpu"]);
}

#[test]
fn a_storage_path_that_cannot_be_written() {
    expect(
        &base().args(["--storage_path", "/proc/nowhere"]),
        1,
        &["/proc/nowhere", "--storage_path"],
    );
}

#[test]
fn a_table_without_a_header_and_a_tokenizer_without_an_end_are_the_users_to_mend() {
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("table.csv");
    std::fs::write(&table, "hello,world\nfoo,bar\n").unwrap();
    let run = || base().args(["--dataset_name", table.to_str().unwrap()]);
    let words = ["table.csv", "hello, world", "--text_column", "must begin"];
    expect(&run(), 2, &words);

    let without = |text: String| {
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json.as_object_mut().unwrap().remove("eos_token");
        json.to_string()
    };
    let dir = model_with("tokenizer_config.json", without);
    let config = dir.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json.as_object_mut().unwrap().remove("eos_token_id");
    std::fs::write(&config, json.to_string()).unwrap();
    let run = || base().args(["--model_name", dir.path().to_str().unwrap()]);
    expect(&run(), 2, &["no EOS token", "--eos_token"]);
    expect(
        &run().args(["--eos_token", "<nobody>"]),
        2,
        &["--eos_token <nobody>"],
    );
    run()
        .args(["--eos_token", "<|endoftext|>", "--max_steps", "1"])
        .succeed();
}

#[test]
fn models_that_cannot_be_used() {
    let missing = tempfile::tempdir().unwrap();
    expect(
        &base().args(["--model_name", missing.path().to_str().unwrap()]),
        1,
        &["config.json"],
    );
    for (change, words) in [
        ("not json", vec!["config.json", "JSON"]),
        (
            r#"{"architectures": ["GPT2LMHeadModel"]}"#,
            vec!["GPT2LMHeadModel", "Qwen2"],
        ),
    ] {
        let dir = model_with("config.json", |_| change.to_owned());
        expect(
            &base().args(["--model_name", dir.path().to_str().unwrap()]),
            1,
            &words,
        );
    }
    let dir = model_with("config.json", |text| {
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["rope_scaling"] = serde_json::json!({"rope_type": "proportional"});
        json.as_object_mut().unwrap().remove("rope_parameters");
        json.to_string()
    });
    expect(
        &base().args(["--model_name", dir.path().to_str().unwrap()]),
        1,
        &["proportional"],
    );
    let dir = model_with("config.json", |text| {
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["vocab_size"] = 100.into();
        json.to_string()
    });
    expect(
        &base().args(["--model_name", dir.path().to_str().unwrap()]),
        1,
        &["vocabulary", "100"],
    );
    let dir = model_with("tokenizer.json", |_| "{}".to_owned());
    expect(
        &base().args(["--model_name", dir.path().to_str().unwrap()]),
        1,
        &["tokenizer.json"],
    );
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    expect(
        &base().args(["--model_name", dir.path().to_str().unwrap()]),
        1,
        &["tokenizer.json"],
    );
}

#[test]
fn weights_that_cannot_be_used() {
    let pretrained = |dir: &std::path::Path| {
        base().args([
            "--init",
            "pretrained",
            "--model_name",
            dir.to_str().unwrap(),
        ])
    };
    let none = model_with("config.json", |text| text);
    expect(&pretrained(none.path()), 1, &["safetensors"]);

    // A header that promises more than the file holds.
    let header = br#"{"model.embed_tokens.weight":{"dtype":"F32","shape":[4096,256],"data_offsets":[0,4194304]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.extend_from_slice(&[0; 64]);
    std::fs::write(none.path().join("model.safetensors"), &bytes).unwrap();
    expect(&pretrained(none.path()), 1, &["model.safetensors"]);

    // A whole file that lacks nearly everything.
    bytes.resize(8 + header.len() + 4_194_304, 0);
    std::fs::write(none.path().join("model.safetensors"), &bytes).unwrap();
    expect(&pretrained(none.path()), 1, &["model.layers.0", "missing"]);
}

#[test]
fn data_that_cannot_be_used() {
    expect(
        &base().args(["--dataset_name", "/no/such/file.txt"]),
        1,
        &["/no/such/file.txt"],
    );
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    expect(
        &base().args(["--dataset_name", &file("empty.txt", "")]),
        2,
        &["empty"],
    );
    let column = file("column.jsonl", "{\"body\": \"x\"}\n");
    expect(
        &base().args(["--dataset_name", &column]),
        2,
        &["text", "body"],
    );
    expect(
        &base().args([
            "--dataset_name",
            &file("corrupt.parquet", "PAR1 not really"),
        ]),
        1,
        &["corrupt.parquet"],
    );
    expect(
        &base().args(["--dataset_name", &file("short.txt", "In the beginning")]),
        1,
        &["fewer"],
    );
}

#[test]
fn more_than_the_memory_of_this_machine() {
    let dir = model_with("config.json", |text| {
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["num_hidden_layers"] = 4000.into();
        json["intermediate_size"] = 100_000.into();
        json.as_object_mut().unwrap().remove("layer_types");
        json.to_string()
    });
    expect(
        &base().args(["--model_name", dir.path().to_str().unwrap()]),
        1,
        &["not enough memory", "GB"],
    );
}

#[test]
fn sizes_that_no_machine_has() {
    for (key, size) in [
        ("num_hidden_layers", 1u64 << 63),
        ("hidden_size", (1 << 31) - 4),
        ("hidden_size", 1 << 31),
        ("intermediate_size", u64::MAX),
        ("vocab_size", 1 << 40),
    ] {
        let dir = model_with("config.json", |text| {
            let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
            json[key] = size.into();
            json.as_object_mut().unwrap().remove("layer_types");
            json.to_string()
        });
        let run = base().args(["--model_name", dir.path().to_str().unwrap()]);
        let (code, text) = run.fail();
        assert_eq!(code, Some(1), "{text}");
        assert!(!text.contains("panicked"), "{text}");
        let is_said = ["config.json", "not enough memory"];
        assert!(is_said.iter().any(|words| text.contains(words)), "{text}");
        assert!(!run.dir().exists(), "an empty folder is left");
    }
    let run = base().args(["--batch_size", &u64::MAX.to_string()]);
    expect(&run, 2, &["--batch_size", "tokens a step"]);
}

/// `ulimit -v` limits each worker, whatever the machine has.
#[test]
fn more_than_the_limit_of_address_space() {
    let dir = model_with("config.json", |text| {
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["intermediate_size"] = 60_000.into();
        json.to_string()
    });
    let run = base().args(["--model_name", dir.path().to_str().unwrap()]);
    let program = train(&run);
    let output = Command::new("sh")
        .args(["-c", "ulimit -v 4000000 && exec \"$0\" \"$@\""])
        .arg(program.get_program())
        .args(program.get_args())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    println!("{text}");
    assert_eq!(output.status.code(), Some(1), "{text}");
    for words in ["not enough memory", "ulimit -v", "GB"] {
        assert!(text.contains(words), "{text}");
    }
}

/// `ulimit -n` limits every process that starts ranks or is one: each looks before it begins, and raises what it may.
#[test]
fn fewer_open_files_than_a_run_needs() {
    let tandem = env!("CARGO_BIN_EXE_tandem");
    let case = crate::tiny::golden("qwen2_untied");
    let case = case.to_str().unwrap();
    let training = train(&base());
    let name = [OsString::from("train_fsdp")];
    let training = name
        .into_iter()
        .chain(training.get_args().map(OsString::from));
    let training: Vec<OsString> = training.collect();
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("replayed");
    let replay = [
        "replay --device cpu --strategy fsdp --tp_size 1 --case",
        case,
        "--output",
        output.to_str().unwrap(),
    ];
    let replay = replay.join(" ");
    let words = |line: &str| line.split(' ').map(OsString::from).collect();
    let lines: [Vec<OsString>; 3] = [
        training,
        words(&replay),
        words("plan --measure --devices 1"),
    ];
    for line in &lines {
        for is_worker in [false, true] {
            let mut command = Command::new("sh");
            command.args(["-c", "ulimit -n 60 && exec \"$0\" \"$@\"", tandem]);
            command.args(line);
            if is_worker {
                let variables = crate::workers::torchrun(1, 1, "127.0.0.1", 1);
                command.envs(variables(0));
            }
            let ended = command.output().unwrap();
            let text = String::from_utf8_lossy(&ended.stderr);
            assert_eq!(ended.status.code(), Some(2), "{line:?}: {text}");
            let words =
                "open files and connections in one process, and the limit is 60 (`ulimit -n`";
            assert!(text.contains(words), "{line:?}: {text}");
        }
    }
}

/// What nobody reads, and what the weights have instead of what the config says, is said in a line.
#[test]
fn weights_that_are_not_quite_as_the_config_says() {
    let tiny = crate::tiny::Tiny::new("qwen2_untied");
    let config = tiny.model().join("config.json");
    let original = std::fs::read_to_string(&config).unwrap();
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut json: serde_json::Value = serde_json::from_str(&original).unwrap();
        change(&mut json);
        std::fs::write(&config, json.to_string()).unwrap();
        let run = Run::new("fsdp", 1, 1).args(tiny.args());
        let output = train(&run.args(["--max_steps", "1"])).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        println!("{text}");
        (output.status.code(), text)
    };
    let (code, text) = with(&|json| json["tie_word_embeddings"] = true.into());
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("lm_head.weight") && text.contains("NOT tied"),
        "{text}"
    );
    let (code, text) = with(&|json| {
        json["num_hidden_layers"] = 1.into();
        json["layer_types"] = serde_json::json!(["full_attention"]);
    });
    assert_eq!(code, Some(0), "{text}");
    let line = text.lines().find(|line| line.contains("not used"));
    let line = line.unwrap_or_else(|| panic!("{text}"));
    assert!(
        line.contains("12 tensors") && line.contains("model.layers.1"),
        "{line}"
    );
    // A bias that the family does not have: the weights compute something else.
    let (code, text) = with(&|json| {
        json["architectures"] = serde_json::json!(["LlamaForCausalLM"]);
        json["model_type"] = "llama".into();
    });
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("q_proj.bias") && text.contains("no place"),
        "{text}"
    );
}

#[test]
fn a_port_that_is_taken() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let run = Run::new("fsdp", 2, 1);
    let output = train(&run)
        .envs([("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")])
        .envs([("LOCAL_WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")])
        .env("MASTER_PORT", &port)
        .stderr(std::process::Stdio::piped())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{text}");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.contains(&port) && text.contains("MASTER_PORT"),
        "{text}"
    );
    let last = text.lines().last().unwrap();
    assert_eq!(
        last,
        format!(
            "error: rank 0 cannot listen for the other ranks on port {port}: Address already in use (os error 98); another \
             process, perhaps another run, uses the port: choose another MASTER_PORT"
        )
    );
}

/// What a person sees for the most frequent mistakes: every word of it.
#[test]
fn the_most_frequent_mistakes_are_two_or_three_clean_lines() {
    let all = |run: Run| {
        let (code, text) = run.fail();
        (code.unwrap(), text)
    };
    let no_file = base().args(["--dataset_name", "/no/such/file.txt"]);
    assert_eq!(
        all(no_file),
        (
            1,
            "error: --dataset_name: `/no/such/file.txt`: no such file or folder, and not a name on the hub (`name` or \
             `owner/name`)\n"
                .to_owned()
        )
    );
    let unknown = model_with("config.json", |_| {
        r#"{"architectures": ["GPT2LMHeadModel"]}"#.to_owned()
    });
    let (code, text) = all(base().args(["--model_name", unknown.path().to_str().unwrap()]));
    assert_eq!((code, text.lines().count()), (1, 1), "{text}");
    assert!(
        text.starts_with("error: ")
            && text.contains("\"GPT2LMHeadModel\" is not supported; supported are "),
        "{text}"
    );
    assert_eq!(
        all(base().args(["--tp_size", "2", "--dp_size", "2", "--num_workers", "3"])),
        (
            2,
            "error: tp_size x dp_size = 2 x 2 = 4, but num_workers is 3; set --num_workers 4, or change --tp_size or --dp_size\n"
                .to_owned()
        )
    );
    let large = model_with("config.json", |text| {
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["num_hidden_layers"] = 4000.into();
        json["intermediate_size"] = 100_000.into();
        json.as_object_mut().unwrap().remove("layer_types");
        json.to_string()
    });
    let (code, text) = all(base().args(["--model_name", large.path().to_str().unwrap()]));
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.ends_with(" ..."))
        .collect();
    assert_eq!((code, lines.len()), (1, 3), "{text}");
    assert!(lines[0].starts_with("error: not enough memory: 1 workers of about "));
    assert!(lines[0].ends_with(" GB are available here;"), "{text}");
    assert_eq!(
        lines[1..],
        [
            "  use a larger --dp_size with train_fsdp, a larger --tp_size, --activation_checkpointing, a smaller --batch_size or",
            "  --seq_length, or --num_layers; `tandem plan` shows what fits"
        ]
    );
}

/// Whoever starts the run looks into the model's folder, so that it is said once and before there are workers.
#[test]
fn a_model_without_weights_is_found_before_workers_are_started() {
    let dir = model_with("config.json", |text| text);
    let run = Run::new("fsdp", 1, 2).args(["--max_steps", "1", "--init", "pretrained"]);
    let run = run.args(["--model_name", dir.path().to_str().unwrap()]);
    let (code, text) = run.fail();
    assert_eq!(code, Some(1));
    let at = text.find("error: ").expect(&text);
    let model = dir.path().display();
    let problem =
        format!("{model} holds neither model.safetensors nor model.safetensors.index.json");
    assert!(text[at..].contains(&problem), "{text}");
    assert!(text[at..].lines().count() < 4, "{text}");
    assert!(!text.contains("rank"), "{text}");
    assert!(!run.dir().exists(), "no worker has begun");
}

/// What libraries would end the process for without a word of ours, or sockets be too long for.
#[test]
fn folders_of_the_process_that_do_not_serve() {
    let place = tempfile::tempdir().unwrap();
    let gone = place.path().join("gone");
    let run = base();
    let mut command = Command::new("bash");
    let inner = train(&run);
    command
        .args([
            "-c",
            "mkdir \"$1\" && cd \"$1\" && rmdir \"$1\" && shift && exec \"$@\"",
            "bash",
        ])
        .arg(&gone)
        .arg(inner.get_program())
        .args(inner.get_args());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("started in is gone"), "{text}");

    let output = train(&run).env("TMPDIR", &gone).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("TMPDIR") && text.contains("gone"), "{text}");

    let long = place.path().join("x".repeat(100));
    std::fs::create_dir(&long).unwrap();
    let run = base().args(["--experiment_name", "long"]);
    let output = train(&run).env("TMPDIR", &long).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    assert_eq!(std::fs::read_dir(&long).unwrap().count(), 0);
}
