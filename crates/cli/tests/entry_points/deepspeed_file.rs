//! `train_deepspeed --deepspeed FILE` trains as the flags would that say the same.

use std::fs;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::demo::{Run, losses, train};

#[test]
fn a_file_of_deepspeeds_trains_as_flags_do() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("ds.json");
    let config = json!({
        "train_batch_size": 8, "gradient_accumulation_steps": 2, "gradient_clipping": 0.5,
        "zero_optimization": {"stage": 2, "overlap_comm": true}, "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}},
        "scheduler": {"type": "WarmupCosineLR", "params": {"warmup_num_steps": 2, "total_num_steps": 4,
            "warmup_type": "linear"}},
        "tensor_parallel": {"autotp_size": 1, "partition_config": {"layer_specs": [
            {"patterns": [".*\\.o_proj\\.weight$", ".*\\.down_proj\\.weight$"], "partition_type": "row"}]}},
    });
    fs::write(&file, config.to_string()).unwrap();
    let steps = ["--max_steps", "4", "--dtype", "fp32"];
    let by_flags = Run::new("deepspeed", 1, 2).args(steps).args([
        "--batch_size",
        "2",
        "--gradient_accumulation_steps",
        "2",
        "--max_grad_norm",
        "0.5",
        "--zero_stage",
        "2",
        "--learning_rate",
        "1e-3",
        "--adam_beta2",
        "0.95",
        "--weight_decay",
        "0.1",
        "--lr_scheduler",
        "warmup_cosine_lr",
        "--warmup_steps",
        "2",
        "--warmup_type",
        "linear",
        "--min_lr_ratio",
        "0.0001",
    ]);
    let expected = losses(&by_flags.succeed());
    let by_file = Run::new("deepspeed", 1, 2)
        .args(steps)
        .args(["--deepspeed", file.to_str().unwrap()]);
    let output = train(&by_file).stderr(Stdio::piped()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert_eq!(losses(&by_file.dir()), expected, "bit for bit");
    for words in [
        "--batch_size 2",
        "zero_optimization.overlap_comm",
        "without effect here",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    // What the program sets first, then its steps 0, 1 and 2 (linear up, then a half of the cosine).
    let metrics = fs::read_to_string(by_file.dir().join("metrics.jsonl")).unwrap();
    let rates: Vec<f64> = metrics
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["lr"]
                .as_f64()
                .unwrap()
        })
        .collect();
    let half = 1e-4 + (1.0 - 1e-4) / 2.0;
    for (found, expected) in rates.iter().zip([0.0, 0.0, 0.5e-3, half * 1e-3]) {
        assert!((found - expected).abs() < 1e-12, "{rates:?}");
    }
    let (code, text) = by_file.args(["--batch_size", "3"]).fail();
    assert_eq!(code, Some(2));
    assert!(text.contains("--batch_size 3"), "{text}");
}

/// A block that is skipped is computed whole by every rank of a row, with the same numbers.
#[test]
fn a_block_that_is_skipped_trains_as_one_that_is_cut() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("ds.json");
    let skip = json!({"patterns": [".*layers\\.0\\.self_attn\\.", ".*\\.mlp\\."], "partition_type": "skip"});
    let config = json!({"bf16": {"enabled": false}, "tensor_parallel": {"autotp_size": 2,
        "partition_config": {"layer_specs": [skip]}}});
    fs::write(&file, config.to_string()).unwrap();
    let flags = [
        "--max_steps",
        "3",
        "--dtype",
        "fp32",
        "--sequence_parallel",
        "true",
        "--check_interval",
        "1",
    ];
    let run = |tp| Run::new("deepspeed", tp, 1).args(flags);
    let cut = losses(
        &run(2)
            .args(["--max_grad_norm", "0", "--zero_stage", "0"])
            .succeed(),
    );
    let whole = losses(
        &run(2)
            .args(["--deepspeed", file.to_str().unwrap()])
            .succeed(),
    );
    for (cut, whole) in cut.iter().zip(&whole) {
        // Sums of two parts instead of one, in fp32.
        assert!((cut - whole).abs() < 2e-5, "{cut} {whole}");
    }
    assert_eq!(whole.len(), 3);
}
