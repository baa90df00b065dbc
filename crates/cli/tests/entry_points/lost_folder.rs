//! Storage that vanishes while training: an error at once, and nothing lost where there is another place to write to.

use std::process::Stdio;
use std::time::Duration;

use crate::demo::{Run, losses, output_within, train};

#[test]
fn a_run_whose_folder_is_gone_ends_at_once_and_goes_on_elsewhere() {
    let other = tempfile::tempdir().unwrap();
    let refuge = other.path().to_str().unwrap().to_owned();
    let run = Run::new("fsdp", 1, 2)
        .args(["--num_epochs", "10000", "--max_failures", "3"])
        .args(["--local_path", &refuge]);
    let mut child = train(&run).stderr(Stdio::piped()).spawn().unwrap();
    run.wait_for_steps(3);
    // As after the unmounting of what was mounted there: a folder of the same name, and not the run's.
    std::fs::rename(run.dir(), run.storage.path().join("away")).unwrap();
    std::fs::create_dir(run.dir()).unwrap();
    let (code, text) = output_within(&mut child, Duration::from_secs(60));
    assert_eq!(code, Some(1), "{text}");
    let place = run.dir();
    let words = format!(
        "the run's folder {} is another folder now (its file system was unmounted, or it was replaced); the state is saved in \
         {refuge}: --storage_path {refuge} --resume_from run goes on from there",
        place.display()
    );
    assert!(text.contains(&words), "{text}");
    assert!(text.contains("ranks 0 and 1 failed"), "{text}");
    assert!(!place.join("checkpoint_manager_snapshot.json").exists());

    let done = losses(&run.storage.path().join("away")).len();
    let steps = (done + 1).to_string();
    let run = run
        .args(["--storage_path", &refuge, "--resume_from", "run"])
        .args(["--max_steps", &steps]);
    let output = train(&run).stderr(Stdio::piped()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains(&format!("step {done}, epoch")), "{text}");
}

#[test]
fn without_another_place_the_error_says_so() {
    // There is nothing at this path and nothing can be made.
    let run = Run::new("fsdp", 1, 1).args(["--num_epochs", "10000", "--local_path", "/proc/none"]);
    let mut child = train(&run).stderr(Stdio::piped()).spawn().unwrap();
    run.wait_for_steps(2);
    std::fs::remove_dir_all(run.dir()).unwrap();
    let (code, text) = output_within(&mut child, Duration::from_secs(60));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("is gone (No such file"), "{text}");
    assert!(text.contains("--local_path is for that"), "{text}");
    assert!(!run.dir().join("metrics.jsonl").exists());
}

/// A folder so deep that the run's own files have room in a path, and those of a checkpoint have not: no file system takes them.
#[test]
fn a_last_state_that_its_folder_does_not_take_is_saved_elsewhere() {
    const LONGEST_PATH: usize = 4095;
    let name = "n".repeat(100);
    let length = LONGEST_PATH - "/checkpoint_manager_snapshot.json.partial".len();
    let run = Run::new("fsdp", 1, 2);
    let mut storage = run.storage.path().to_str().unwrap().to_owned();
    while storage.len() + 1 + name.len() < length {
        let missing = length - storage.len() - 1 - name.len();
        // No name is empty.
        let next = if missing == 202 {
            199
        } else {
            missing.min(201) - 1
        };
        storage.push('/');
        storage.push_str(&"d".repeat(next));
    }
    let other = tempfile::tempdir().unwrap();
    let refuge = other.path().to_str().unwrap().to_owned();
    let run = run
        .args(["--storage_path", &storage, "--experiment_name", &name])
        .args(["--local_path", &refuge, "--max_steps", "3"])
        .args(["--save_steps", "2"]);
    let (code, text) = run.fail();
    assert_eq!(code, Some(1), "{text}");
    let told = text.matches("no checkpoint after step 2").count();
    assert_eq!(told, 1, "training goes on: {text}");
    for words in [
        "could not be written to: cannot save the state after step 3, the last of this run: rank 0: cannot create",
        &format!(
            "the state is saved in {refuge}: --storage_path {refuge} --resume_from {name} goes on"
        ),
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }

    let run = run
        .args(["--storage_path", &refuge, "--resume_from", &name])
        .args(["--max_steps", "4"]);
    let output = train(&run).stderr(Stdio::piped()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("step 3, epoch"), "{text}");
}
