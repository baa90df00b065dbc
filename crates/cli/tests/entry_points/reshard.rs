//! A checkpoint of any strategy and mesh continues on any other: parameters, optimizer states and losses.
//!
//! Every layout saves, and what it saved is held against the reference, element by element; every layout loads what another
//! one saved, and goes on as the reference does.

use crate::demo::{Run, losses};
use crate::saved::{self, Content};
use crate::tiny::Tiny;

#[derive(Debug, Clone, Copy, PartialEq)]
struct Layout {
    /// `None` is FSDP.
    zero_stage: Option<u8>,
    tp: usize,
    dp: usize,
    /// Ranks over which experts are spread.
    ep: usize,
}

/// {ZeRO 0, 1, 2, FSDP} x meshes. 3 cuts heads, MLP and vocabulary unevenly.
fn layouts() -> Vec<Layout> {
    let meshes = [(1, 1), (2, 1), (1, 2), (2, 2), (3, 1)];
    let stages = [None, Some(0), Some(1), Some(2)];
    let mut all = Vec::new();
    for (tp, dp) in meshes {
        all.extend(stages.map(|zero_stage| layout(zero_stage, tp, dp, 1)));
    }
    all
}

fn layout(zero_stage: Option<u8>, tp: usize, dp: usize, ep: usize) -> Layout {
    Layout {
        zero_stage,
        tp,
        dp,
        ep,
    }
}

const SAVED: usize = 3;
const STEPS: usize = 6;

/// The fp32 tolerances: of losses, absolute; of states, relative to the largest element of the tensor.
const LOSS: f64 = 2e-5;
const STATE: f64 = 5e-4;

fn run(tiny: &Tiny, layout: Layout, steps: usize) -> Run {
    let strategy = if layout.zero_stage.is_none() {
        "fsdp"
    } else {
        "deepspeed"
    };
    let run = Run::new(strategy, layout.tp, layout.dp)
        .args(tiny.args())
        // 4 rows a step on every mesh.
        .args(["--batch_size", &(4 / layout.dp).to_string()])
        .args(["--expert_parallel_size", &layout.ep.to_string()])
        .args(["--learning_rate", "1e-3", "--max_steps", &steps.to_string()]);
    match layout.zero_stage {
        None => run,
        Some(stage) => run.args(["--zero_stage", &stage.to_string()]),
    }
}

struct Reference {
    losses: Vec<f64>,
    saved: Content,
    last: Content,
}

fn reference(tiny: &Tiny) -> Reference {
    let run = run(tiny, layout(None, 1, 1, 1), STEPS).args(["--save_steps", &SAVED.to_string()]);
    let dir = run.succeed();
    let of_step = |step: u64| {
        let run = saved::run_dir(&dir);
        let entry = run.checkpoints().iter().find(|e| e.global_step == step);
        saved::content(&run.reader(&entry.unwrap().name).unwrap())
    };
    Reference {
        losses: losses(&dir),
        saved: of_step(SAVED as u64),
        last: of_step(STEPS as u64),
    }
}

fn assert_same(what: &str, content: &Content, expected: &Content) -> f64 {
    let differences = saved::differences(content, expected);
    for (role, difference) in &differences {
        assert!(*difference < STATE, "{what}: {role} is off by {difference}");
    }
    differences.into_values().fold(0.0, f64::max)
}

fn assert_losses(what: &str, losses: &[f64], expected: &[f64]) {
    assert_eq!(losses.len(), expected.len(), "{what}");
    for (step, (a, b)) in losses.iter().zip(expected).enumerate() {
        assert!((a - b).abs() < LOSS, "{what}, step {}: {a} {b}", step + 1);
    }
}

/// Trains to the checkpoint on one layout.
fn save(tiny: &Tiny, reference: &Reference, layout: Layout) -> Run {
    let run = run(tiny, layout, SAVED);
    let dir = run.succeed();
    let content = saved::content(&saved::newest(&dir));
    let worst = assert_same(&format!("saved by {layout:?}"), &content, &reference.saved);
    println!("saved by {layout:?}: off by {worst:.1e}");
    run
}

/// Continues what `from` has saved (a copy of it) on another layout.
fn load(tiny: &Tiny, reference: &Reference, from: &Run, layout: Layout) {
    let onto = run(tiny, layout, STEPS).args(["--resume_from", "run"]);
    copy(&from.dir(), &onto.dir());
    let dir = onto.succeed();
    let what = format!("continued on {layout:?}");
    assert_losses(&what, &losses(&dir), &reference.losses);
    let content = saved::content(&saved::newest(&dir));
    let worst = assert_same(&what, &content, &reference.last);
    println!("  {what}: off by {worst:.1e}");
}

pub fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// Every layout saves, and each is continued on one other, so that every layout also loads.
fn rotation(case: &str, layouts: &[Layout]) {
    let tiny = Tiny::new(case);
    let reference = reference(&tiny);
    println!("{case}: losses {:?}", reference.losses);
    for (index, layout) in layouts.iter().enumerate() {
        let from = save(&tiny, &reference, *layout);
        // 7 is prime to 20 and to 5: every layout is the target once, and never its own.
        let onto = layouts[(index * 7 + 3) % layouts.len()];
        load(&tiny, &reference, &from, onto);
    }
}

#[test]
fn a_tied_model_moves_between_all_layouts() {
    rotation("qwen2_tied", &layouts());
}

#[test]
fn an_untied_model_and_an_odd_vocabulary_move_too() {
    let all = layouts();
    for (case, first) in [("qwen2_untied", 0), ("qwen2_odd_vocab", 2)] {
        // One strategy of each mesh, another for each case.
        let some: Vec<Layout> = (0..5)
            .map(|mesh| all[4 * mesh + (first + mesh) % 4])
            .collect();
        rotation(case, &some);
    }
}

/// q, k and v in one tensor, gate and up in another: of which a rank has several ranges of rows.
#[test]
fn fused_tensors_move_too() {
    rotation(
        "phi3_window",
        &[layout(None, 2, 2, 1), layout(Some(1), 3, 1, 1)],
    );
}

/// Experts that are cut over the row, whole on one rank, and spread over ranks, evenly or not.
#[test]
fn a_mixture_of_experts_moves_too() {
    let layouts = [
        layout(None, 2, 1, 1),
        layout(Some(1), 2, 2, 2),
        layout(None, 2, 2, 4),
        layout(Some(0), 1, 2, 1),
        layout(None, 4, 1, 2),
        layout(Some(2), 1, 2, 2),
    ];
    // 7 and 3 more are prime to 6: as in the rotation of all.
    rotation("qwen3_moe", &layouts);
    rotation("qwen3_moe_aux", &layouts[1..3]);
}

#[test]
#[ignore = "1140 runs: cargo xtask test --long"]
fn every_layout_continues_every_other() {
    for case in ["qwen2_tied", "qwen2_untied", "qwen2_odd_vocab"] {
        let tiny = Tiny::new(case);
        let reference = reference(&tiny);
        for from in layouts() {
            let saved = save(&tiny, &reference, from);
            for onto in layouts() {
                load(&tiny, &reference, &saved, onto);
            }
        }
    }
}
