//! Validation: the same number on every mesh, no effect on training, the best checkpoint kept, the end that it may bring, and
//! `tandem eval`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::demo::{Run, losses, metrics, train};
use crate::saved;
use crate::tiny::Tiny;

/// Losses of one row differ by the order of fp32 sums; their mean by less.
const EVAL_LOSS: f64 = 5e-6;

/// After steps, weights differ too: the fp32 tolerance of losses.
const AFTER_STEPS: f64 = 2e-5;

/// A tiny model, rows to train on, and ten documents of several lengths to evaluate on.
struct Data {
    tiny: Tiny,
    folder: tempfile::TempDir,
}

impl Data {
    fn new(model: &str) -> Self {
        let tiny = Tiny::new(model);
        let folder = tempfile::tempdir().unwrap();
        let text = fs::read_to_string(tiny.data()).unwrap();
        let document = |from: usize, len: usize| {
            let part: String = text.chars().skip(from).take(len).collect();
            format!("{}\n", json!({"text": part}))
        };
        let of = |count: usize, from: usize| -> String {
            (0..count)
                .map(|n| document(from + 40 * n, 3 + 4 * n))
                .collect()
        };
        fs::write(folder.path().join("train.jsonl"), of(12, 0)).unwrap();
        fs::write(folder.path().join("validation.jsonl"), of(10, 3000)).unwrap();
        Self { tiny, folder }
    }

    fn path(&self) -> String {
        self.folder.path().to_str().unwrap().to_owned()
    }

    /// Four rows a step, three steps an epoch.
    fn run(&self, strategy: &str, tp: usize, dp: usize) -> Run {
        Run::new(strategy, tp, dp)
            .args(self.tiny.args())
            .args(["--dataset_name", &self.path(), "--packing", "false"])
            .args(["--batch_size", &(4 / dp).to_string()])
            .args(["--learning_rate", "1e-3"])
    }
}

/// Step, loss and tokens of every evaluation.
fn evaluations(dir: &Path) -> Vec<(u64, f64, u64)> {
    let all = metrics(dir);
    let own = all.iter().filter(|line| line.get("eval_loss").is_some());
    own.map(|line| {
        let loss = line["eval_loss"].as_f64().unwrap();
        let perplexity = line["perplexity"].as_f64().unwrap();
        assert!((perplexity.ln() - loss).abs() < 1e-9, "{line}");
        assert!(line["eval_seconds"].as_f64().unwrap() > 0.0, "{line}");
        let count = |name: &str| line[name].as_u64().unwrap();
        (count("step"), loss, count("eval_tokens"))
    })
    .collect()
}

fn assert_same(what: &str, found: &[(u64, f64, u64)], expected: &[(u64, f64, u64)]) {
    let steps = |list: &[(u64, f64, u64)]| -> Vec<(u64, u64)> {
        list.iter()
            .map(|(step, _, tokens)| (*step, *tokens))
            .collect()
    };
    assert_eq!(steps(found), steps(expected), "{what}");
    for ((step, a, _), (_, b, _)) in found.iter().zip(expected) {
        let tolerance = if *step == 0 { EVAL_LOSS } else { AFTER_STEPS };
        assert!((a - b).abs() < tolerance, "{what}, step {step}: {a} {b}");
    }
}

#[test]
fn the_loss_of_a_dataset_is_the_same_on_every_mesh_and_training_does_not_notice() {
    let data = Data::new("qwen2_tied");
    let mut reference = None;
    // Ten rows: the last batch lacks some, or a rank has none.
    for (strategy, tp, dp, rows) in [
        ("fsdp", 1, 1, "10"),
        ("fsdp", 2, 2, "3"),
        ("fsdp", 1, 2, "7"),
        ("deepspeed", 2, 1, "4"),
        ("deepspeed", 2, 2, "1"),
    ] {
        let what = format!("{strategy} {tp}x{dp}, batches of {rows}");
        let flags = ["--eval_on_start", "--eval_steps", "2", "--eval_batch_size"];
        let run = || data.run(strategy, tp, dp).args(["--max_steps", "4"]);
        let evaluated = run().args(flags).args([rows]);
        let dir = evaluated.succeed();
        let found = evaluations(&dir);
        // Before the first step, every other one, and the end of an epoch.
        let steps: Vec<u64> = found.iter().map(|(step, ..)| *step).collect();
        assert_eq!(steps, [0, 2, 3, 4], "{what}");
        println!("{what}: {found:?}");
        assert_same(
            &what,
            &found,
            reference.get_or_insert_with(|| found.clone()),
        );
        if (tp, dp) == (2, 2) {
            let run = run();
            let plain = run.succeed();
            assert_eq!(losses(&plain), losses(&dir), "{what}");
            let (a, b) = (saved::newest(&plain), saved::newest(&dir));
            assert!(saved::content(&a) == saved::content(&b), "{what}: weights");
            assert_eq!(b.state().metrics["eval_loss"], found[3].1);
            assert!(!a.state().metrics.contains_key("eval_loss"));
        }
    }
    let reference = reference.unwrap();
    // A limit is one of rows, whatever the mesh.
    let limited = |dp, rows: &str, batches: &str| {
        let run = data
            .run("fsdp", 1, dp)
            .args(["--max_steps", "1", "--eval_on_start"]);
        let run = run.args(["--eval_batch_size", rows, "--eval_max_batches", batches]);
        evaluations(&run.succeed())[0]
    };
    let (one, two) = (limited(1, "3", "2"), limited(2, "2", "3"));
    assert_same("six rows", &[two], &[one]);
    assert!(one.2 < reference[0].2, "{one:?} {reference:?}");
}

#[test]
fn a_run_that_no_longer_improves_ends_keeps_its_best_and_remembers_that_after_a_change_of_mesh() {
    let data = Data::new("qwen2_untied");
    // Nothing is improvement enough, so the first evaluation is followed by two in vain: after steps 4 and 6. At this learning
    // rate the loss rises.
    let flags = [
        "--learning_rate",
        "0.05",
        "--num_epochs",
        "0",
        "--debug_steps",
        "2",
        "--eval_steps",
        "2",
        "--save_steps",
        "2",
        "--early_stopping_patience",
        "2",
        "--early_stopping_threshold",
        "100",
        "--checkpoint_score_attribute",
        "eval_loss",
        "--num_to_keep",
        "1",
    ];
    let parts = data
        .run("fsdp", 2, 2)
        .args(flags)
        .args(["--max_steps", "4"]);
    parts.succeed();
    let onto = data.run("deepspeed", 1, 2).args(flags);
    let onto = onto.args(["--max_steps", "40", "--resume_from", "run"]);
    fs::rename(parts.dir(), onto.dir()).unwrap();
    let output = train(&onto).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("early stopping: eval_loss has not improved"),
        "{said}"
    );
    let found = evaluations(&onto.dir());
    let steps: Vec<u64> = found.iter().map(|(step, ..)| *step).collect();
    assert_eq!(steps, [2, 4, 6], "{said}");
    assert_eq!(losses(&onto.dir()).len(), 6);
    let best = found.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
    assert_ne!(best, 6, "the last one would be kept in any case: {found:?}");
    assert_eq!(saved::steps(&onto.dir()), [best, 6], "{found:?}");

    // It stays ended, until somebody has more patience.
    let output = train(&onto).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && said.contains("early stopping"),
        "{said}"
    );
    assert_eq!(losses(&onto.dir()).len(), 6);
    let patient = onto.args(["--early_stopping_patience", "3"]);
    assert_eq!(losses(&patient.succeed()).len(), 8);
}

#[test]
fn a_killed_run_goes_on_with_the_same_evaluations_on_another_mesh() {
    let data = Data::new("qwen2_untied");
    let flags = [
        "--num_epochs",
        "0",
        "--eval_steps",
        "2",
        "--save_steps",
        "2",
    ];
    let run = data.run("deepspeed", 2, 1).args(flags);
    let run = run.args(["--max_steps", "100000", "--async_save", "false"]);
    let done = saved::killed_after_two(&run);
    let last = (done + 3).to_string();

    let onto = data
        .run("fsdp", 1, 2)
        .args(flags)
        .args(["--max_steps", &last]);
    let onto = onto.args(["--resume_from", "run"]);
    fs::rename(run.dir(), onto.dir()).unwrap();
    let dir = onto.succeed();
    let whole = data.run("fsdp", 1, 1).args(flags);
    let whole = whole.args(["--max_steps", &last]);
    let expected = evaluations(&whole.succeed());
    assert_same("killed and continued", &evaluations(&dir), &expected);
    assert_eq!(losses(&dir).len() as u64, done + 3);
}

#[test]
fn what_cannot_be_evaluated_is_said_before_anything_starts() {
    let data = Data::new("qwen2_untied");
    let folder = data.folder.path();
    let other = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = other.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let own = folder.join("train.jsonl").to_str().unwrap().to_owned();
    let empty = write("empty.jsonl", "");
    let few = write("few.jsonl", "{\"text\": \"ab\"}\n");
    let long = json!({"prompt": "x".repeat(40), "completion": "y"});
    let long = write("long.jsonl", &long.to_string());
    let cases: [(&[&str], &[&str]); 7] = [
        (
            &["--eval_dataset_name", &few, "--packing", "true"],
            &["--eval_dataset_name", "fewer than one packed row"],
        ),
        (
            &["--eval_split", "nope"],
            &["--eval_split", "no split `nope`", "train, validation"],
        ),
        (
            &["--eval_dataset_config", "nope"],
            &["--eval_dataset_config", "`nope`"],
        ),
        (
            &["--dataset_name", &own, "--eval_steps", "1"],
            &["nothing to evaluate on", "--eval_dataset_name"],
        ),
        (
            &["--eval_dataset_name", &empty],
            &["--eval_dataset_name", "empty.jsonl"],
        ),
        (
            &["--eval_dataset_name", &long],
            &[
                "--eval_dataset_name",
                "none of the 1 documents has a target",
            ],
        ),
        (
            &["--eval_dataset_name", "/no/such/place.jsonl"],
            &["--eval_dataset_name", "/no/such/place.jsonl"],
        ),
    ];
    for (extra, words) in cases {
        let run = data
            .run("fsdp", 1, 1)
            .args(["--max_steps", "1"])
            .args(extra);
        let (code, text) = run.fail();
        assert_eq!(code, Some(2), "{text}");
        for word in words {
            assert!(text.contains(word), "{word:?} is not in: {text}");
        }
        assert!(!run.dir().exists(), "an empty folder is left: {text}");
    }
}

/// `tandem eval`; the exit code, and the object or what was said.
fn eval(args: &[&str]) -> (Option<i32>, Value, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandem"));
    let output = command.arg("eval").arg("--json").args(args);
    let output = output
        .args(["--device", "cpu", "--dtype", "fp32"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let object = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code(), object, said)
}

/// The golden case `name` with a tokenizer of a character for each token, and its first batch as text.
fn golden(name: &str) -> (tempfile::TempDir, PathBuf, Value) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests-data/golden")
        .join(name);
    let read = |file: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(golden.join(file)).unwrap()).unwrap()
    };
    let model = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden.join(file), model.path().join(file)).unwrap();
    }
    // Of a script without spaces, cases or combinations.
    let letter = |id: u64| char::from_u32(0x4e00 + id as u32).unwrap().to_string();
    let size = read("config.json")["vocab_size"].as_u64().unwrap();
    let vocab: serde_json::Map<String, Value> =
        (0..size).map(|id| (letter(id), id.into())).collect();
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": false},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": letter(1)}
    });
    let write = |file: &str, value: &Value| fs::write(model.path().join(file), value.to_string());
    write("tokenizer.json", &tokenizer).unwrap();
    write("tokenizer_config.json", &json!({"eos_token": letter(0)})).unwrap();

    let trajectory = read("trajectory.json");
    let count = |name: &str| trajectory[name].as_u64().unwrap() as usize;
    let bytes = fs::read(golden.join("batches.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let names: Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let start = header + names["input_ids"]["data_offsets"][0].as_u64().unwrap() as usize;
    let (rows, seq) = (count("global_batch"), count("seq"));
    let ids: Vec<u64> = bytes[start..start + rows * seq * 8]
        .chunks(8)
        .map(|id| u64::from_le_bytes(id.try_into().unwrap()))
        .collect();
    let row = |ids: &[u64]| {
        format!(
            "{}\n",
            json!({"text": ids.iter().map(|id| letter(*id)).collect::<String>()})
        )
    };
    let text: String = ids.chunks(seq).map(row).collect();
    let data = model.path().join("rows.jsonl");
    fs::write(&data, text).unwrap();
    (model, data, trajectory)
}

#[test]
fn the_perplexity_of_a_model_is_that_of_transformers() {
    for (name, tp, dp, batch) in [
        ("qwen2_untied", "1", "1", "3"),
        ("mistral", "2", "2", "1"),
        ("qwen3_qknorm", "1", "2", "4"),
    ] {
        let (model, data, expected) = golden(name);
        let (code, found, said) = eval(&[
            "--model_name",
            model.path().to_str().unwrap(),
            "--dataset_name",
            data.to_str().unwrap(),
            "--packing",
            "false",
            "--seq_length",
            &expected["seq"].to_string(),
            "--tp_size",
            tp,
            "--dp_size",
            dp,
            "--batch_size",
            batch,
        ]);
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(found["eval_tokens"], expected["n_tokens"][0], "{name}");
        let loss = found["eval_loss"].as_f64().unwrap();
        let reference = expected["loss_fp64"][0].as_f64().unwrap();
        assert!(
            (loss - reference).abs() < 2e-5,
            "{name}: {loss} {reference}"
        );
        let perplexity = found["perplexity"].as_f64().unwrap();
        let relative = perplexity / reference.exp() - 1.0;
        assert!(relative.abs() < 2e-5, "{name}: {perplexity}");
    }
}

#[test]
fn a_checkpoint_is_evaluated_on_any_mesh_without_its_run() {
    let data = Data::new("qwen2_tied");
    let run = data
        .run("deepspeed", 1, 2)
        .args(["--max_steps", "2", "--eval_steps", "2"]);
    let dir = run.succeed();
    let (_, expected, tokens) = evaluations(&dir)[0];
    let folder = data.path();
    let args = |place: &str| {
        let rest = [
            "--dataset_name",
            &folder,
            "--packing",
            "false",
            "--seq_length",
            "32",
        ];
        let all = ["--checkpoint", place].into_iter().chain(rest);
        all.map(str::to_owned).collect::<Vec<_>>()
    };
    for (tp, dp) in [("2", "1"), ("1", "2")] {
        let mut args = args(dir.to_str().unwrap());
        args.extend(["--tp_size", tp, "--dp_size", dp].map(str::to_owned));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let (code, found, said) = eval(&args);
        assert_eq!(code, Some(0), "{said}");
        let loss = found["eval_loss"].as_f64().unwrap();
        assert!((loss - expected).abs() < EVAL_LOSS, "{loss} {expected}");
        assert_eq!(found["eval_tokens"], tokens);
        assert_eq!(found["step"], 2);
    }
    let left: Vec<_> = fs::read_dir(run.storage.path()).unwrap().collect();
    assert_eq!(left.len(), 2, "the run and its token caches: {left:?}");

    let missing = [&["--dataset_split", "nope"][..], &["--tp_size", "0"]];
    for extra in missing {
        let mut args = args(dir.to_str().unwrap());
        args.extend(extra.iter().map(|word| (*word).to_owned()));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let (code, _, said) = eval(&args);
        assert_eq!(code, Some(2), "{said}");
    }
}
