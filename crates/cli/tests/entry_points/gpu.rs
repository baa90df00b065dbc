//! `tandem doctor --gpu`, on the CPU: that each stage checks what it is for, and that none takes the others along.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::demo::wait_until;
use crate::programs::write_script;

fn quick(folder: &Path, args: &[&str]) -> (Output, Value, String) {
    doctor(folder, &[&["--quick"], args].concat())
}

fn doctor(folder: &Path, args: &[&str]) -> (Output, Value, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tandem"))
        .args(["doctor", "--gpu", "--device", "cpu", "--output"])
        .arg(folder)
        .args(args)
        .output()
        .unwrap();
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let json = serde_json::from_str(&read("gpu.json")).unwrap();
    (output, json, read("gpu.md"))
}

fn stage<'a>(json: &'a Value, name: &str) -> &'a Value {
    let mut findings = json["findings"].as_array().unwrap().iter();
    findings.find(|finding| finding["stage"] == name).unwrap()
}

fn number(stage: &Value, name: &str) -> f64 {
    let mut numbers = stage["numbers"].as_array().unwrap().iter();
    let found = numbers.find(|number| number["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {stage}"))["value"]
        .as_f64()
        .unwrap()
}

/// A program that stands where Python is looked for.
fn script(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("python");
    write_script(&path, text);
    path
}

#[test]
fn every_stage_runs_on_a_processor() {
    let folder = tempfile::tempdir().unwrap();
    let (output, json, page) = quick(folder.path(), &["--python", "/no/such/python"]);
    let said = String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    assert!(output.status.success(), "{json:#}");
    for name in [
        "floor",
        "operations",
        "replays",
        "collectives",
        "resume",
        "step-0.5b",
        "profile",
    ] {
        assert_eq!(stage(&json, name)["verdict"], "ok", "{name}: {json:#}");
    }
    for name in ["step-7b", "peer-eager", "peer-compiled"] {
        assert_eq!(stage(&json, name)["verdict"], "not_possible", "{name}");
        assert!(stage(&json, name)["why"].is_string(), "{name}");
    }
    assert!(number(stage(&json, "floor"), "bf16 products") > 0.0);
    assert!(number(stage(&json, "memory"), "planned") > 0.0);
    let resume = stage(&json, "resume");
    assert_eq!(number(resume, "losses differ by at most"), 0.0);
    assert!(number(resume, "killed after a save at step") >= 10.0);
    let profile = stage(&json, "profile");
    assert!(number(profile, "operators of a step") > 100.0);
    let rows = profile["tables"][0]["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 20);
    assert!(rows.iter().any(|row| row[3] == "mm"), "{rows:?}");
    let replays = stage(&json, "replays")["tables"][0]["rows"]
        .as_array()
        .unwrap();
    assert_eq!(replays.len(), 6);
    assert!(
        replays
            .iter()
            .all(|row| row[3] == "staged" || row[2] == "1x1")
    );
    assert!(replays.iter().all(|row| row[4] == "within tolerance"));
    for finding in json["findings"].as_array().unwrap() {
        assert!(
            page.contains(&format!("| {} |", finding["stage"].as_str().unwrap())),
            "{page}"
        );
    }
}

#[test]
fn a_stage_that_hangs_is_killed_and_what_it_started_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let python = script(folder.path(), "echo $$ > \"$0.pid\"; sleep 1000");
    let args = [
        "--only",
        "peer",
        "--limit",
        "20",
        "--python",
        python.to_str().unwrap(),
    ];
    let (output, json, page) = quick(folder.path(), &args);
    assert_eq!(output.status.code(), Some(1));
    let (hung, late) = (stage(&json, "peer-eager"), stage(&json, "peer-compiled"));
    assert_eq!(hung["verdict"], "failed");
    assert!(hung["why"].as_str().unwrap().contains("killed"), "{hung}");
    assert_eq!(late["verdict"], "not_possible");
    assert!(late["why"].as_str().unwrap().contains("--limit"), "{late}");
    assert!(page.contains("1 failed, 1 not possible here"), "{page}");
    let pid = fs::read_to_string(folder.path().join("python.pid")).unwrap();
    let process = PathBuf::from(format!("/proc/{}/stat", pid.trim()));
    // A zombie until its new parent looks.
    wait_until("the script is gone", || {
        fs::read_to_string(&process).map_or(true, |stat| stat.contains(") Z "))
    });
}

#[test]
fn a_stage_that_fails_says_why_and_the_next_one_runs() {
    let folder = tempfile::tempdir().unwrap();
    let works = r#"{"torch": "9.9", "step_time_s": 0.5, "tokens_per_s": 64.0, "memory_mb": 1.0, "loss_first": 2.0, "loss_last": 1.0}"#;
    let text = format!(
        "case \"$*\" in *--compile*) echo '{works}';; *gpu.py*) echo no such kernel >&2; exit 3;; esac"
    );
    let python = script(folder.path(), &text);
    let args = [
        "--only",
        "peer",
        "--only",
        "step-0",
        "--python",
        python.to_str().unwrap(),
    ];
    let (output, json, page) = quick(folder.path(), &args);
    assert_eq!(output.status.code(), Some(1));
    let failed = stage(&json, "peer-eager");
    assert_eq!(failed["verdict"], "failed");
    assert!(
        failed["why"].as_str().unwrap().contains("no such kernel"),
        "{failed}"
    );
    let compiled = stage(&json, "peer-compiled");
    assert_eq!(compiled["verdict"], "ok", "{json:#}");
    let own = number(stage(&json, "step-0.5b"), "throughput");
    let times = number(compiled, "smollm2: Tandem's throughput times");
    assert!(
        (times - own / 64.0).abs() < 1e-9 * times,
        "{times} and {own}"
    );
    assert!(page.contains("no such kernel"), "{page}");
}

/// With the sizes that a GPU gets, as far as a processor can.
#[test]
#[ignore = "minutes: cargo xtask test --long gpu"]
fn every_stage_runs_on_a_processor_with_its_whole_size() {
    let folder = tempfile::tempdir().unwrap();
    let (output, json, page) = doctor(folder.path(), &[]);
    println!("{page}");
    assert!(output.status.success());
    assert!(json["seconds"].as_f64().unwrap() <= 480.0);
    let step = stage(&json, "step-0.5b");
    assert!(
        number(step, "loss, last") < number(step, "loss, first"),
        "{step}"
    );
}

#[test]
fn a_device_that_is_not_there_and_one_that_is_not_named_are_refused() {
    let refused = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_tandem"))
            .args(["doctor", "--gpu"])
            .args(args)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let said = refused(&["--device", "auto"]);
    assert!(said.contains("name the device"), "{said}");
    // The tests' libtorch has no part for CUDA.
    let said = refused(&["--device", "cuda"]);
    assert!(said.contains("--device cpu"), "{said}");
    let said = refused(&["--device", "cpu", "--only", "speed"]);
    assert!(said.contains("operations"), "{said}");
}
