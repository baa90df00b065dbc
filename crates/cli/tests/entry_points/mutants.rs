//! Whole runs on files that are damaged or made to harm: every one ends soon, with 0, 1 or 2 and a sentence, without a
//! panic's text; leaves nothing behind; and the next run on good files works.
//!
//! What is changed, and how, is a function of a seed: of a fixed one in every run, of a new one that is printed in the long
//! form. `TANDEM_TEST_SEED` sets it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::demo::{self, Run, train};
use crate::harness;
use crate::saved;
use crate::tiny::Tiny;

const PATIENCE: Duration = Duration::from_secs(60);

/// Of a run that begins.
const INPUTS: [&str; 6] = [
    "model/config.json",
    "model/model.safetensors",
    "model/tokenizer.json",
    "model/tokenizer_config.json",
    "data.txt",
    "data.jsonl",
];

/// Of a run that goes on; those of the checkpoint by their names alone.
const STATE: [&str; 9] = [
    "manifest.json",
    "commit.json",
    "shard-00000.safetensors",
    "checkpoint_manager_snapshot.json",
    "run.json",
    "run_config.json",
    "metrics.jsonl",
    "events.jsonl",
    "model/config.json",
];

/// Flags of a run on the model and the data in `folder`, with a folder for temporary files that must be empty after it.
struct Bench {
    tiny: Tiny,
    temporary: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let tiny = Tiny::new("qwen2_tied");
        let text = fs::read_to_string(tiny.data()).unwrap();
        let lines = text
            .lines()
            .map(|line| serde_json::json!({ "text": line }).to_string() + "\n");
        fs::write(
            tiny.data().with_extension("jsonl"),
            lines.collect::<String>(),
        )
        .unwrap();
        Self {
            tiny,
            temporary: tempfile::tempdir().unwrap(),
        }
    }

    fn folder(&self) -> PathBuf {
        self.tiny.data().parent().unwrap().to_owned()
    }

    fn run(&self, name: &str, steps: u32) -> Run {
        let data = self.folder().join(name);
        Run::new("fsdp", 1, 1).args(self.tiny.args()).args([
            "--dataset_name",
            data.to_str().unwrap(),
            "--max_steps",
            &steps.to_string(),
            "--save_steps",
            "2",
        ])
    }

    /// Runs to the end, which may be good or bad but must be orderly; returns the exit code.
    fn end_of(&self, run: &Run, what: &str) -> i32 {
        let mut command = train(run);
        let mut child = command
            .env("TMPDIR", self.temporary.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (code, text) = demo::output_within(&mut child, PATIENCE);
        let said = |problem: &str| format!("{what}: {problem}: exit {code:?}\n{text}");
        assert!(matches!(code, Some(0..=2)), "{}", said("no code of ours"));
        assert!(!text.contains("panicked"), "{}", said("a panic"));
        let is_sentence = code == Some(0) || text.lines().any(|line| line.contains("error"));
        assert!(is_sentence, "{}", said("no sentence"));
        assert_eq!(
            entries(self.temporary.path()),
            [""; 0],
            "{}",
            said("temporary files")
        );
        let is_partial = |path: &String| path.ends_with(".partial") || path.ends_with(".tmp");
        let left: Vec<String> = below(run.storage.path())
            .into_iter()
            .filter(is_partial)
            .collect();
        assert_eq!(left, [""; 0], "{}", said("half a file"));
        println!(
            "{what}: exit {}: {}",
            code.unwrap(),
            text.lines().last().unwrap_or_default()
        );
        code.unwrap()
    }
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// All files below `folder`.
fn below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for name in entries(folder) {
        let path = folder.join(name);
        match path.is_dir() {
            true => found.extend(below(&path)),
            false => found.push(path.to_str().unwrap().to_owned()),
        }
    }
    found
}

/// A run that begins on a file that was changed, and one on good files after it.
fn begin(bench: &Bench, seed: u64) {
    let name = INPUTS[seed as usize % INPUTS.len()];
    let path = bench.folder().join(name);
    let good = fs::read(&path).unwrap();
    let data = if name == "data.jsonl" {
        name
    } else {
        "data.txt"
    };
    let run = bench.run(data, 2);
    fs::write(&path, harness::mutant(&good, seed)).unwrap();
    let code = bench.end_of(&run, &format!("seed {seed}, {name}"));
    fs::write(&path, good).unwrap();
    if run.dir().is_dir() {
        saved::assert_nothing_torn(&run.dir());
    }
    // In the same storage, whatever the first has left there.
    let next = run.args(["--experiment_name", "next"]);
    let next_code = bench.end_of(&next, &format!("seed {seed}, after {code}"));
    assert_eq!(next_code, 0, "seed {seed}: the next good run");
}

/// A run that goes on from files of which one was changed, and again when it is good.
fn go_on(bench: &Bench, seed: u64) {
    let name = STATE[seed as usize % STATE.len()];
    let run = bench.run("data.txt", 2);
    assert_eq!(bench.end_of(&run, "a run to go on with"), 0);
    let folder = run.dir();
    let checkpoint = folder.join(&saved::checkpoints(&folder)[0].name);
    let in_checkpoint = checkpoint.join(name);
    let path = match in_checkpoint.exists() {
        true => in_checkpoint,
        false => folder.join(name),
    };
    let good = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    fs::write(&path, harness::mutant(&good, seed)).unwrap();
    let again = run.args(["--max_steps", "4", "--resume_from", "run"]);
    let code = bench.end_of(&again, &format!("seed {seed}, {name}"));
    if code == 0 {
        return;
    }
    assert!(
        checkpoint.join("shard-00000.safetensors").exists(),
        "seed {seed}: the checkpoint was removed"
    );
    fs::write(&path, good).unwrap();
    let next_code = bench.end_of(&again, &format!("seed {seed}, as it was"));
    assert_eq!(
        next_code, 0,
        "seed {seed}: it does not go on with what was saved"
    );
}

fn mutants(count: u64, first: u64) {
    let bench = Bench::new();
    for seed in first..first + count {
        match seed % 2 {
            0 => begin(&bench, seed / 2),
            _ => go_on(&bench, seed / 2),
        }
    }
}

#[test]
fn fuzz_a_few_whole_runs() {
    // Every kind of file is met by its own fuzz test in every run; here, that a run ends well whatever they say.
    mutants(6, 20);
}

#[test]
#[ignore = "200 mutants: cargo xtask test --long fuzz"]
fn fuzz_many_whole_runs() {
    let given = std::env::var("TANDEM_TEST_SEED").ok();
    let seed = match given {
        Some(text) => text.parse().expect("TANDEM_TEST_SEED is a number"),
        None => u64::from(std::process::id()) << 10,
    };
    println!("TANDEM_TEST_SEED={seed}");
    mutants(200, seed);
}
