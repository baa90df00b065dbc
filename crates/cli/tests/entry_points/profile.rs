//! `--profile`: a trace for every rank, and a table.

use serde_json::Value;

use crate::demo::{Run, train};

#[test]
fn every_rank_leaves_a_trace_of_the_profiled_steps_and_the_first_a_table() {
    let run = Run::new("fsdp", 2, 2).args(["--max_steps", "4", "--profile", "1"]);
    let output = train(&run).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    for expected in [
        "profile of step 3",
        "layers, backward",
        "waiting for dp",
        "GFLOP/s",
    ] {
        assert!(text.contains(expected), "no {expected:?} in {text}");
    }
    for rank in 0..4 {
        let path = run.dir().join(format!("profile/rank_{rank}.json"));
        let trace: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        let slices: Vec<&Value> = events.iter().filter(|event| event["ph"] == "X").collect();
        let named = |name: &str| slices.iter().filter(|event| event["name"] == name).count();
        assert_eq!((named("step 3"), named("step 4")), (1, 0));
        for name in ["embedding", "layer 0", "layer 1 backward", "head and loss"] {
            assert_eq!(named(name), 1, "{name} of rank {rank}");
        }
        assert!(named("all_gather") > 0 && named("reduce_scatter") > 0);
        assert!(slices.iter().all(|event| event["pid"] == rank));
        // All that happened lies within the step.
        let step = slices
            .iter()
            .find(|event| event["name"] == "step 3")
            .unwrap();
        let end = |event: &Value| event["ts"].as_f64().unwrap() + event["dur"].as_f64().unwrap();
        let computing = slices.iter().filter(|event| event["tid"] == 1);
        for event in computing {
            assert!(event["ts"].as_f64() >= step["ts"].as_f64(), "{event}");
            assert!(end(event) <= end(step) + 1.0, "{event}");
        }
    }
}
