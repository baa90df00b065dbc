//! A mixture of experts from outside: what is said about experts that nobody goes to.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::demo::{Run, metrics};
use crate::tiny::Tiny;

/// Gives the second expert the opposite of the first one's row, and the others nothing: of their scores, one of the first two is
/// above 0, and the others are all 0, of which the first gets the token. So the fourth and fifth never get one.
fn make_experts_idle(weights: &Path) {
    let mut bytes = fs::read(weights).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let names: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let mut routers = 0;
    for (name, tensor) in names.as_object().unwrap() {
        if !name.ends_with("block_sparse_moe.gate.weight") {
            continue;
        }
        let number = |value: &Value| value.as_u64().unwrap() as usize;
        let (start, end) = (&tensor["data_offsets"][0], &tensor["data_offsets"][1]);
        let router = &mut bytes[8 + header..][number(start)..number(end)];
        let row = router.len() / number(&tensor["shape"][0]);
        let (first, others) = router.split_at_mut(row);
        let (second, others) = others.split_at_mut(row);
        for (opposite, value) in second.chunks_mut(4).zip(first.chunks(4)) {
            let value = f32::from_le_bytes(value.try_into().unwrap());
            opposite.copy_from_slice(&(-value).to_le_bytes());
        }
        others.fill(0);
        routers += 1;
    }
    assert_eq!(routers, 2, "{names}");
    fs::write(weights, bytes).unwrap();
}

#[test]
fn experts_without_a_token_for_many_steps_are_named_and_in_the_report() {
    let tiny = Tiny::new("mixtral");
    make_experts_idle(&tiny.model().join("model.safetensors"));
    let run = Run::new("fsdp", 1, 1).args(tiny.args());
    // No step changes a weight: scores that are 0 stay 0.
    let run = run.args(["--batch_size", "1", "--learning_rate", "1e-30"]);
    let run = run.args(["--max_steps", "105"]);
    let folder = run.succeed();
    let log = fs::read_to_string(folder.join("logs/run.log")).unwrap();
    let warnings: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("no token has gone to"))
        .collect();
    assert_eq!(warnings.len(), 2, "one for each layer: {log}");
    for (layer, warning) in warnings.iter().enumerate() {
        let expected = format!(
            "warning: in layer {layer} of those with experts, no token has gone to expert 3, 4 for 100 steps"
        );
        assert!(warning.contains(&expected), "{warning}");
    }

    let steps = metrics(&folder);
    let last = &steps.last().unwrap()["experts"];
    assert_eq!(last["idle"], 4, "{last}");
    let loads = last["max_over_mean"].as_array().unwrap();
    let worst = loads
        .iter()
        .filter_map(Value::as_f64)
        .fold(0.0f64, f64::max);
    let page = folder.join("report.html");
    let output = Command::new(env!("CARGO_BIN_EXE_tandem"))
        .arg("report")
        .args([&folder, Path::new("-o"), &page])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let expected = format!("tokens per expert at step 105: at most {worst:.2} x the mean (layer ");
    assert!(
        said.contains(&expected) && said.contains("4 experts have got none"),
        "{said}"
    );
    let page = fs::read_to_string(page).unwrap();
    let told = page.split_once(r#""experts":{"step":105,"#).unwrap().1;
    let told = told.split_once('}').unwrap().0;
    assert!(told.ends_with(r#""idle":4"#), "{told}");
}
