//! `--cluster ray` up to the driver, which a script stands in for here. What the real one does is tested in `python/`.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::demo::{self, Run, train};
use crate::programs::write_script;
use crate::workers::clean;

/// A Python that has all that is needed, and a driver that writes its request down and then does as `script` says.
fn python(run: &Run, script: &str) -> PathBuf {
    let path = run.storage.path().join("python");
    let request = run.storage.path().join("request.json");
    let text = format!(
        "if [ \"$1\" = -c ]; then echo good; exit; fi\necho \"$@\" > {0}.args\ncat > {0}.partial\nmv {0}.partial {0}\n{script}",
        request.display()
    );
    write_script(&path, &text);
    path
}

fn on_ray(run: &Run, script: &str) -> Command {
    let mut command = train(run);
    clean(&mut command);
    command
        .env("TANDEM_PYTHON", python(run, script))
        .stderr(Stdio::piped());
    command
}

fn ray_run() -> Run {
    Run::new("fsdp", 2, 2).args(["--max_steps", "4", "--cluster", "ray"])
}

#[test]
fn the_driver_gets_the_request_and_its_output_and_exit_code_come_back() {
    let run = ray_run().args(["--resources_per_worker", "CPU=0.5"]);
    let script = "echo a line of Ray; echo '{\"status\": \"finished\", \"path\": \"/the/path\"}'";
    let output = on_ray(&run, script).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("a line of Ray") && text.contains("/the/path"));
    assert!(text.contains("Ray, auto") && text.contains("4 workers = tp 2 x dp 2"));
    let request = run.storage.path().join("request.json");
    let text = std::fs::read_to_string(&request).unwrap();
    let request: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(request["entry_point"], "train_fsdp");
    assert_eq!(request["run"]["name"], "run");
    assert_eq!(request["ray"]["resources_per_worker"]["CPU"], 0.5);
    assert_eq!(request["flags"]["max_steps"], 4);
    assert!(request["binary"].as_str().unwrap().ends_with("/train_fsdp"));
    assert!(run.dir().join("run_config.json").is_file());
}

#[test]
fn a_driver_that_fails_decides_the_exit_code_and_one_that_breaks_is_quoted() {
    for (script, code, words) in [
        (
            "echo 'error: rank 3: the loss is NaN' >&2; echo '{\"status\": \"failed\"}'; exit 1",
            1,
            "the loss is NaN",
        ),
        (
            "echo '{\"status\": \"stopped\", \"checkpoint\": \"checkpoint_7\"}'; exit 75",
            75,
            "saving checkpoint_7; --resume_from run continues",
        ),
        (
            "echo '{\"status\": \"stopped\", \"checkpoint\": null}'; exit 75",
            75,
            "stopped before there was anything to save",
        ),
        ("echo Traceback; exit 3", 3, "exit code 3"),
        ("exit 0", 1, "before the run had an outcome"),
        ("kill -KILL $$", 137, "exit code 137"),
    ] {
        let output = on_ray(&ray_run(), script).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{script}: {text}");
        assert!(text.contains(words), "{script}: {text}");
    }
}

#[test]
fn signals_reach_the_driver() {
    let run = ray_run();
    // The first is a request to stop, the second ends at once, as the real driver has it.
    let script = "trap 'echo asked to stop; trap \"exit 130\" INT; touch \"$0.asked\"' INT; touch \"$0.ready\"; \
                  while :; do sleep 0.05; done";
    let mut child = on_ray(&run, script).spawn().unwrap();
    let ready = run.storage.path().join("python.ready");
    demo::wait_until("the driver is ready", || ready.exists());
    demo::kill(child.id(), "INT");
    let asked = run.storage.path().join("python.asked");
    demo::wait_until("the driver has heard it", || asked.exists());
    assert!(
        child.try_wait().unwrap().is_none(),
        "it waits for the driver"
    );
    demo::kill(child.id(), "INT");
    let (code, text) = demo::output_within(&mut child, Duration::from_secs(60));
    assert_eq!(code, Some(130), "{text}");
    assert!(text.contains("asked to stop"), "{text}");
}

#[test]
fn what_is_missing_or_wrong_is_said_before_anything_is_started() {
    let never = "touch \"$0.started\"";
    for (extra, words) in [
        (vec!["--num_workers", "3"], "--num_workers 4"),
        (vec!["--seq_length", "100000"], "max_position_embeddings"),
        (vec!["--resources_per_worker", "CPU"], "NAME=AMOUNT"),
        (vec!["--device", "cpu", "--use_gpu"], "--use_gpu"),
    ] {
        let run = ray_run().args(extra);
        let output = on_ray(&run, never).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(words), "{text}");
        assert!(!run.storage.path().join("python.started").exists());
    }
    let run = ray_run();
    let output = on_ray(&run, never)
        .env("TANDEM_PYTHON", "/no/such/python3")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("/no/such/python3") && text.contains("TANDEM_PYTHON"));
    assert!(!run.dir().exists(), "nothing is left behind");
    let here = Run::new("fsdp", 1, 1).args(["--label_selector", "zone=a"]);
    let (code, text) = here.fail();
    assert_eq!(code, Some(2));
    assert!(text.contains("--label_selector") && text.contains("--cluster ray"));
}
