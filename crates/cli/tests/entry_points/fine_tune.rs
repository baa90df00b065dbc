//! A fine-tune as people do it: conversations, packed so that none sees another, with validation; the same on every mesh, with
//! either strategy, and after a kill.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::demo::{Run, losses, metrics};
use crate::saved;
use crate::tiny::Tiny;

const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}<assistant>{% endif %}";

/// Conversations of several lengths.
fn rows(count: usize, first: usize) -> String {
    let row = |n: usize| -> Value {
        let says = |role: &str, content: String| json!({"role": role, "content": content});
        let answer = format!("{} and {}", n + 1, "x".repeat(n * 7 % 12));
        json!({"messages": [says("user", format!("{n}+1?")), says("assistant", answer)]})
    };
    let rows = (first..first + count).map(|n| format!("{}\n", row(n)));
    rows.collect()
}

fn run(tiny: &Tiny, strategy: &str, tp: usize, dp: usize) -> Run {
    let data = tiny.model().join("../conversations");
    let batch = (2 / dp).to_string();
    Run::new(strategy, tp, dp).args(tiny.args()).args([
        "--dataset_name",
        data.to_str().unwrap(),
        "--packing",
        "true",
        "--assistant_only_loss",
        "--seq_length",
        "96",
        "--batch_size",
        &batch,
        "--learning_rate",
        "1e-3",
        "--num_epochs",
        "0",
        "--eval_steps",
        "2",
        "--save_steps",
        "2",
        "--checkpoint_score_attribute",
        "eval_loss",
        "--num_to_keep",
        "2",
    ])
}

fn eval_losses(dir: &Path) -> Vec<f64> {
    let all = metrics(dir);
    let own = all
        .iter()
        .filter_map(|line| line.get("eval_loss")?.as_f64());
    own.collect()
}

fn assert_same(what: &str, dir: &Path, expected: &Path) {
    for (kind, of) in [
        ("loss", losses as fn(&Path) -> Vec<f64>),
        ("eval_loss", eval_losses),
    ] {
        let (found, expected) = (of(dir), of(expected));
        assert_eq!(found.len(), expected.len(), "{what}: {kind}");
        // The fp32 tolerance of losses.
        let near = |(a, b): (&f64, &f64)| (a - b).abs() < 2e-5;
        let all = found.iter().zip(&expected).all(near);
        assert!(all, "{what}: {kind} {found:?} {expected:?}");
    }
}

#[test]
fn a_fine_tune_is_the_same_on_every_mesh_and_after_a_kill() {
    let tiny = Tiny::new("qwen2_untied");
    fs::write(tiny.model().join("chat_template.jinja"), TEMPLATE).unwrap();
    let data = tiny.model().join("../conversations");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("train.jsonl"), rows(24, 0)).unwrap();
    fs::write(data.join("validation.jsonl"), rows(7, 100)).unwrap();

    let killed = run(&tiny, "deepspeed", 2, 2);
    let killed = killed.args(["--max_steps", "100000", "--async_save", "false"]);
    let done = saved::killed_after_two(&killed);
    let last = (done + 3).to_string();

    let whole = |strategy: &str, tp, dp| {
        let run = run(&tiny, strategy, tp, dp).args(["--max_steps", &last]);
        (run.succeed(), run)
    };
    let (reference, _kept) = whole("fsdp", 1, 1);
    assert!(eval_losses(&reference).len() >= 3);
    for (strategy, tp, dp) in [("deepspeed", 2, 1), ("deepspeed", 1, 2), ("fsdp", 2, 2)] {
        let (dir, _kept) = whole(strategy, tp, dp);
        assert_same(&format!("{strategy} {tp} x {dp}"), &dir, &reference);
    }
    let onto = run(&tiny, "fsdp", 1, 2).args(["--max_steps", &last]);
    let onto = onto.args(["--resume_from", "run"]);
    fs::rename(killed.dir(), onto.dir()).unwrap();
    assert_same("killed and continued", &onto.succeed(), &reference);
}
