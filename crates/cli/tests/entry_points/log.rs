//! What a user must know is a line of the run; what developers want to know is in the logs.

use std::fs;
use std::process::Stdio;

use crate::demo::{Run, train};
use crate::saved;

fn said(run: &Run, filter: Option<&str>) -> String {
    let mut command = train(run);
    match filter {
        Some(filter) => command.env("RUST_LOG", filter),
        None => command.env_remove("RUST_LOG"),
    };
    let output = command.stderr(Stdio::piped()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

fn log(run: &Run, rank: usize) -> String {
    fs::read_to_string(run.dir().join(format!("logs/rank_{rank}.log"))).unwrap()
}

#[test]
fn what_a_user_must_know_is_a_line_of_the_run_and_the_rest_is_in_the_logs() {
    let run = Run::new("fsdp", 1, 2).args(["--max_steps", "2", "--save_steps", "1"]);
    let text = said(&run, None);
    assert!(!text.contains("warning: "), "{text}");
    assert_eq!(saved::steps(&run.dir()), [1, 2]);

    // The controller finds a token cache that is damaged, and rank 0 a list of checkpoints that is.
    let cache = fs::read_dir(run.storage.path().join("token_cache")).unwrap();
    let damaged = cache
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|end| end == "tokens"))
        .unwrap();
    let bytes = fs::read(&damaged).unwrap();
    fs::write(&damaged, &bytes[..bytes.len() / 2]).unwrap();
    fs::write(run.dir().join("checkpoint_manager_snapshot.json"), "{").unwrap();
    let run = run.args(["--resume_from", "run", "--max_steps", "3"]);
    // Lines of the run do not depend on what is logged.
    let text = said(&run, Some("off"));
    let warnings: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("warning: "))
        .collect();
    println!("{warnings:#?}");
    assert_eq!(warnings.len(), 2, "each once: {text}");
    assert!(warnings[0].ends_with("; building it again"), "{text}");
    assert!(
        warnings[1].contains("checkpoint_manager_snapshot.json"),
        "{text}"
    );
    let before = log(&run, 1).len();

    let run = run.args(["--max_steps", "4"]);
    said(&run, Some("tandem_trainer=debug"));
    let log = log(&run, 1)[before..].to_owned();
    let line = log.lines().find(|line| line.contains("saving")).unwrap();
    assert!(
        line.starts_with("rank 1: 20") && line.contains(" DEBUG tandem_trainer::checkpointer: "),
        "{log}"
    );
    assert_eq!(saved::steps(&run.dir()), [1, 2, 3, 4]);
}

#[test]
fn a_filter_that_is_none_is_said() {
    let run = Run::new("fsdp", 1, 1).args(["--max_steps", "1"]);
    let text = said(&run, Some("tandem=loud"));
    let line = "warning: RUST_LOG is \"tandem=loud\", which is no filter";
    assert!(text.contains(line), "{text}");
}
