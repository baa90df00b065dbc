//! Mixtures of experts from outside: spread over ranks, a run is the same run.

use crate::demo::{Run, losses, metrics};
use crate::saved;
use crate::tiny::Tiny;

fn run(tiny: &Tiny, (tp, dp, ep): (usize, usize, usize), extra: &[&str]) -> Run {
    Run::new("fsdp", tp, dp)
        .args(tiny.args())
        .args(["--expert_parallel_size", &ep.to_string()])
        .args(["--batch_size", &(4 / dp).to_string()])
        .args(["--learning_rate", "1e-3", "--max_steps", "6"])
        .args(extra)
}

/// What is recorded of experts, and what of them is part of the loss, does not depend on where they are. Nor does the loss where
/// a rank has no token: there are 2 for the 4 ranks of the row.
#[test]
fn experts_get_the_same_tokens_wherever_they_are() {
    let tiny = Tiny::new("qwen3_moe_aux");
    for extra in [&[][..], &["--seq_length", "2", "--max_steps", "3"]] {
        // 4 rows of one batch, or one row each.
        let extra = match extra {
            [] => vec!["--router_aux_loss_coef", "0.05"],
            few => [few, &["--batch_size", "1"]].concat(),
        };
        let on = |layout| metrics(&run(&tiny, layout, &extra).succeed());
        let (alone, spread) = (on((1, 1, 1)), on((4, 1, 4)));
        assert_eq!(alone.len(), spread.len());
        for (a, b) in alone.iter().zip(&spread) {
            let (loss_a, loss_b) = (a["loss"].as_f64().unwrap(), b["loss"].as_f64().unwrap());
            assert!((loss_a - loss_b).abs() < 2e-5, "{loss_a} {loss_b}");
            let (a, b) = (&a["experts"], &b["experts"]);
            assert_eq!(a["max_over_mean"], b["max_over_mean"]);
            assert_eq!(a["idle"], b["idle"]);
            let aux = |it: &serde_json::Value| it["aux_loss"].as_f64().unwrap();
            assert!((aux(a) - aux(b)).abs() < 1e-4, "{a} {b}");
        }
    }
}

/// Killed with experts on four ranks and continued there, a run has the losses of one that was not, bit for bit.
#[test]
fn a_killed_run_goes_on_bit_for_bit() {
    let tiny = Tiny::new("mixtral");
    let saving = [
        "--save_steps",
        "1",
        "--max_steps",
        "0",
        "--num_epochs",
        "1000",
    ];
    let killed = run(&tiny, (2, 2, 4), &saving);
    let done = saved::killed_after_two(&killed);
    let steps = (done + 3).to_string();
    let killed = killed.args(["--resume_from", "run", "--max_steps", &steps]);
    let found = losses(&killed.succeed());
    let whole = run(&tiny, (2, 2, 4), &saving).args(["--max_steps", &steps]);
    assert_eq!(found, losses(&whole.succeed()));
    println!("killed after step {done}, {steps} steps in all");
}
