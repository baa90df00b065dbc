//! `--check_flags`: what is missing is said, with exit code 2, and nothing is made.

use std::fs;

use crate::demo::{Run, demo, train};
use crate::tiny::Tiny;

fn checked(args: &[&str]) -> (Option<i32>, String) {
    let run = Run::new("fsdp", 2, 2).args(["--check_flags"]).args(args);
    let output = train(&run).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{args:?}: {text}");
    let left = fs::read_dir(run.storage.path()).unwrap().count();
    assert_eq!(left, 0, "nothing was touched");
    (output.status.code(), text)
}

#[test]
fn what_a_run_lacks_is_said_before_it_begins() {
    let (code, text) = checked(&[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("the run could begin"), "{text}");
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str, content: &str| {
        let path = scratch.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let short = path("secret", "x");
    let file = path("file", "");
    let below_file = format!("{file}/runs");
    let tiny = Tiny::new("qwen2_tied");
    fs::remove_file(tiny.model().join("tokenizer.json")).unwrap();
    let model = tiny.model().to_str().unwrap().to_owned();
    for (args, words) in [
        (
            &["--model_name", "/no/such/model"][..],
            &["--model_name", "/no/such/model"][..],
        ),
        // The demo's model has no weights.
        (&["--init", "pretrained"], &["--init random"]),
        (
            &["--model_name", &model, "--seq_length", "32"],
            &["tokenizer.json"],
        ),
        (
            &["--dataset_name", "/no/such/data.txt"],
            &["--dataset_name", "/no/such/data.txt"],
        ),
        (&["--seq_length", "100000"], &["max_position_embeddings"]),
        (&["--seq_length", "1"], &["--seq_length"]),
        (
            &["--storage_path", &below_file],
            &["--storage_path", "cannot write"],
        ),
        (
            &["--rendezvous_secret_file", &short],
            &["--rendezvous_secret_file", "secret"],
        ),
        (
            &["--rendezvous_secret_file", "/no/such/file"],
            &["--rendezvous_secret_file"],
        ),
        (
            &["--resume_from", "absent", "--experiment_name", "absent"],
            &["there is no checkpoint"],
        ),
        (
            &["--eval_dataset_name", "/no/such.txt"],
            &["--eval_dataset_name"],
        ),
        (
            &["--chat_template_path", "/no/such.jinja"],
            &["--chat_template_path"],
        ),
        (&["--tp_size", "9", "--num_workers", "18"], &["--tp_size 8"]),
        (&["--config", "/no/such.yaml"], &["--config"]),
        (&["--dtype", "fp16"], &["bf16 costs the same"]),
    ] {
        let (code, text) = checked(args);
        assert_eq!(code, Some(2), "{args:?}: {text}");
        for word in words {
            assert!(text.contains(word), "{word}: {text}");
        }
    }
    // Where model and data are elsewhere, the flags alone can be looked at.
    let args = [
        "--check_flags=flags",
        "--model_name=/elsewhere",
        "--tp_size=1",
        "--num_workers=1",
    ];
    let run = Run::new("fsdp", 1, 1).only(args);
    assert!(train(&run).status().unwrap().success());
}

#[test]
fn a_secret_is_looked_at_and_neither_shown_nor_kept() {
    const MARK: &str = "5ec7e7";
    let scratch = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = scratch.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = file("good", format!("correct-horse-battery-{MARK}").as_bytes());
    for (path, expected) in [
        (good.clone(), 0),
        (file("short", MARK.as_bytes()), 2),
        (file("long", MARK.repeat(2000).as_bytes()), 2),
        (
            file(
                "no_text",
                format!("\u{e9}{MARK}").repeat(9).as_bytes().split_at(1).1,
            ),
            2,
        ),
    ] {
        let (code, text) = checked(&["--rendezvous_secret_file", &path]);
        assert_eq!(code, Some(expected), "{path}: {text}");
        assert!(!text.contains(MARK), "{text}");
    }
    let run = Run::new("fsdp", 1, 2).args(["--max_steps", "1", "--rendezvous_secret_file", &good]);
    let output = train(&run).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut folders = vec![run.storage.path().to_owned()];
    let mut texts = vec![output.stdout, output.stderr];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => texts.push(fs::read(path).unwrap()),
            }
        }
    }
    assert!(texts.len() > 8, "{} files", texts.len());
    for text in texts {
        let mut parts = text.windows(MARK.len());
        assert!(!parts.any(|part| part == MARK.as_bytes()));
    }
}

#[test]
fn what_init_writes_can_begin() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("run.yaml");
    let init = || {
        std::process::Command::new(env!("CARGO_BIN_EXE_tandem"))
            .args([
                "init",
                "--model_name",
                &demo("model"),
                "--dataset_name",
                &demo("data"),
                "-o",
            ])
            .arg(&file)
            .output()
            .unwrap()
    };
    assert!(init().status.success());
    let text = fs::read_to_string(&file).unwrap();
    println!("{text}");
    assert!(
        text.contains("there are no weights") && text.contains("The data: text"),
        "{text}"
    );
    let place = format!("--storage_path={}", scratch.path().display());
    let config = format!("--config={}", file.display());
    let run = Run::new("fsdp", 1, 1).only([&config, &place, "--check_flags"]);
    let output = train(&run).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    // Nobody's file is overwritten.
    assert_eq!(init().status.code(), Some(2));
}
