//! Files as people have them, and files that are wrong.

use std::ffi::OsString;
use std::fs;

use clap::{CommandFactory, Parser};
use serde_json::json;
use tandem_run::environment::Environment;
use tandem_run::spec::{RunSpec, Strategy};
use tandem_trainer::{Schedule, WarmupType};

use crate::command_line::complete;
use crate::flags::train::DeepSpeedFlags;

/// The run that a file and flags make, and what is said of it.
fn run(file: &serde_json::Value, args: &[&str]) -> Result<(RunSpec, String), String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ds.json");
    fs::write(&path, file.to_string()).unwrap();
    let mut line: Vec<OsString> = args.iter().map(OsString::from).collect();
    line.extend(["--deepspeed".into(), path.into_os_string()]);
    let complete = complete(&DeepSpeedFlags::command(), &line, &Environment::read());
    let complete = complete.map_err(|failure| {
        assert_eq!(failure.exit_code, 2);
        failure.message
    })?;
    let line = std::iter::once(OsString::from("train_deepspeed")).chain(complete.args);
    let flags = DeepSpeedFlags::try_parse_from(line).map_err(|error| error.to_string())?;
    let spec = flags.into_spec().map_err(|failure| failure.message)?;
    Ok((spec, complete.notes.join("\n")))
}

#[test]
fn a_file_as_people_have_it() {
    let file = json!({
        "train_batch_size": 32, "train_micro_batch_size_per_gpu": 2, "gradient_clipping": 0.5, "steps_per_print": 20,
        "zero_optimization": {"stage": 2, "overlap_comm": true, "reduce_bucket_size": 5e8, "contiguous_gradients": true,
            "offload_optimizer": {"device": "none"}},
        "bf16": {"enabled": true}, "fp16": {"enabled": false, "loss_scale": 0},
        "optimizer": {"type": "AdamW", "params": {"lr": 3e-5, "betas": [0.8, 0.99], "eps": 1e-7, "weight_decay": 0.1}},
        "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_min_lr": 1e-5, "warmup_max_lr": 1e-4,
            "warmup_num_steps": 10, "total_num_steps": 1e2, "warmup_type": "linear"}},
        "tensor_parallel": {"autotp_size": 2},
        "wall_clock_breakdown": false,
    });
    let (spec, notes) = run(&file, &["--num_workers", "4"]).unwrap();
    let mesh = spec.compute.engine.mesh;
    assert_eq!((mesh.tp_size(), mesh.dp_size()), (2, 2));
    let training = &spec.compute.training;
    assert_eq!(
        (training.batch_size, training.gradient_accumulation_steps),
        (2, 8)
    );
    assert_eq!(
        (training.max_grad_norm, spec.output.shown.log_interval),
        (0.5, 20)
    );
    assert_eq!((training.adam_beta1, training.adam_beta2), (0.8, 0.99));
    assert_eq!((training.adam_eps, training.weight_decay), (1e-7, 0.1));
    assert_eq!(training.lr_scheduler, Schedule::WarmupDecayLr);
    assert_eq!(training.warmup_type, WarmupType::Linear);
    assert_eq!(
        (training.learning_rate, training.warmup_min_ratio),
        (1e-4, 0.1)
    );
    assert_eq!((training.warmup_steps, training.schedule_steps), (10, 100));
    // The schedule ends where the file says, however long the run is.
    assert!((training.learning_rate(5000).at(102) - 1e-5).abs() < 1e-12);
    let Strategy::DeepSpeed(own) = &spec.compute.engine.strategy else {
        panic!("{notes}")
    };
    assert_eq!(own.zero_stage, 2);
    for words in [
        "--gradient_accumulation_steps 8",
        "zero_optimization.overlap_comm",
        "fp16.loss_scale",
        "wall_clock_breakdown",
    ] {
        assert!(notes.contains(words), "{words}: {notes}");
    }
}

#[test]
fn auto_is_the_flags_and_what_is_left_out_deepspeeds() {
    let auto = json!({
        "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto", "zero_optimization": {"stage": 1}, "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto",
            "warmup_num_steps": "auto"}},
    });
    let args = [
        "--num_workers=2",
        "--tp_size=1",
        "--batch_size=3",
        "--learning_rate=2e-4",
        "--warmup_steps=7",
    ];
    let (spec, _) = run(&auto, &args).unwrap();
    let training = &spec.compute.training;
    assert_eq!((training.batch_size, training.warmup_steps), (3, 7));
    assert_eq!(
        (training.learning_rate, training.max_grad_norm),
        (2e-4, 1.0)
    );
    assert_eq!(spec.compute.engine.mesh.dp_size(), 2);
    let bare = json!({"train_micro_batch_size_per_gpu": 4, "optimizer": {"type": "Adam"}});
    let (spec, notes) = run(&bare, &["--num_workers", "1"]).unwrap();
    let training = &spec.compute.training;
    assert_eq!(
        (training.max_grad_norm, training.learning_rate),
        (0.0, 1e-3)
    );
    assert_eq!(training.weight_decay, 0.0);
    assert!(
        notes.contains("as DeepSpeed has it: --dtype fp32"),
        "{notes}"
    );
    let (spec, _) = run(
        &bare,
        &["--num_workers=1", "--max_grad_norm=2", "--dtype=bf16"],
    )
    .unwrap();
    assert_eq!(spec.compute.training.max_grad_norm, 2.0);
    let torch = json!({"optimizer": {"type": "AdamW", "params": {"torch_adam": true}}});
    let (spec, _) = run(&torch, &["--num_workers", "1"]).unwrap();
    assert_eq!(spec.compute.training.weight_decay, 0.01);
}

#[test]
fn two_of_three_give_the_batch() {
    let args = ["--num_workers", "4", "--tp_size", "2"];
    let of = |file| {
        let (spec, _) = run(&file, &args)?;
        let training = spec.compute.training;
        Ok::<_, String>((training.batch_size, training.gradient_accumulation_steps))
    };
    let (train, micro, steps) = (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
    );
    assert_eq!(of(json!({train: 12, micro: 2})), Ok((2, 3)));
    assert_eq!(of(json!({train: 12, steps: 2})), Ok((3, 2)));
    assert_eq!(of(json!({micro: 5, steps: 2})), Ok((5, 2)));
    assert_eq!(of(json!({train: 12})), Ok((6, 1)));
    assert_eq!(of(json!({micro: 5})), Ok((5, 1)));
    assert_eq!(of(json!({train: 12, micro: 2, steps: 3})), Ok((2, 3)));
    let problem = of(json!({train: 12, micro: 2, steps: 2})).unwrap_err();
    let sum = "train_batch_size is 12, but train_micro_batch_size_per_gpu 2 x gradient_accumulation_steps 2 x dp_size 2 is 8";
    assert!(problem.contains(sum), "{problem}");
    let problem = of(json!({train: 10, micro: 2})).unwrap_err();
    assert!(
        problem.contains("is 4, of which 10 is no multiple"),
        "{problem}"
    );
    let given = [&args[..], &["--batch_size", "3"]].concat();
    let (spec, _) = run(&json!({train: 12}), &given).unwrap();
    assert_eq!(spec.compute.training.gradient_accumulation_steps, 2);
    let problem = run(&json!({micro: 2}), &given).unwrap_err();
    let words = "--batch_size 3 contradicts train_micro_batch_size_per_gpu";
    assert!(problem.contains(words), "{problem}");
}

#[test]
fn schedules_take_their_rates_from_where_deepspeed_does() {
    let rates = |scheduler: serde_json::Value| {
        let optimizer = json!({"type": "AdamW", "params": {"lr": 2e-4}});
        let file = json!({"optimizer": optimizer, "scheduler": scheduler});
        run(&file, &["--num_workers", "1"]).map(|(spec, _)| spec.compute.training)
    };
    let training = rates(json!({"type": "WarmupLR"})).unwrap();
    assert_eq!(
        (training.learning_rate, training.warmup_steps),
        (2e-4, 1000)
    );
    let training =
        rates(json!({"type": "WarmupDecayLR", "params": {"total_num_steps": "auto"}})).unwrap();
    assert_eq!((training.learning_rate, training.schedule_steps), (1e-3, 0));
    let cosine = json!({"type": "WarmupCosineLR", "params": {"total_num_steps": 50, "warmup_min_ratio": 0.2}});
    let training = rates(cosine).unwrap();
    assert_eq!(training.learning_rate, 2e-4);
    assert_eq!(
        (training.warmup_min_ratio, training.min_lr_ratio),
        (0.2, 1e-4)
    );
    for (scheduler, words) in [
        (json!({"type": "OneCycle"}), "WarmupCosineLR"),
        (
            json!({"type": "WarmupLR", "params": {"warmup_type": "exp"}}),
            "log or linear",
        ),
        (
            json!({"type": "WarmupLR", "params": {"warmup_num_steps": 0}}),
            "at least 1",
        ),
        (
            json!({"type": "WarmupLR", "params": {"warmup_min_lr": 1.0}}),
            "from 0 to warmup_max_lr",
        ),
        (json!({"params": {}}), "scheduler has no type"),
    ] {
        let problem = rates(scheduler).unwrap_err();
        assert!(problem.contains(words), "{problem}");
    }
}

#[test]
fn corrections_of_the_plan_are_overrides() {
    let file = json!({"tensor_parallel": {"autotp_size": 2, "partition_config": {"use_default_specs": true, "layer_specs": [
        {"patterns": [".*\\.o_proj\\.weight$", ".*\\.down_proj\\.weight$"], "partition_type": "row"},
        {"patterns": [".*\\.[qkv]_proj\\.weight$"], "partition_type": "column"},
        {"patterns": [".*\\.mlp\\."], "partition_type": "skip"},
    ]}}});
    let (spec, _) = run(&file, &["--num_workers", "2"]).unwrap();
    let Strategy::DeepSpeed(own) = &spec.compute.engine.strategy else {
        panic!("not DeepSpeed")
    };
    // The first that matches counts for DeepSpeed, the last here.
    let expected = [
        r"^(?:(?:.*\.mlp\.))=replicate",
        r"^(?:(?:.*\.[qkv]_proj\.weight$))=colwise",
        r"^(?:(?:.*\.o_proj\.weight$)|(?:.*\.down_proj\.weight$))=rowwise",
    ];
    assert_eq!(own.autotp_override, expected);
    let spec = |spec: serde_json::Value| {
        let config = json!({"layer_specs": [spec]});
        let file = json!({"tensor_parallel": {"partition_config": config}});
        run(&file, &["--num_workers", "1"]).unwrap_err()
    };
    assert!(
        spec(json!({"patterns": ["a"], "partition_type": "diagonal"}))
            .contains("row, column or skip")
    );
    assert!(spec(json!({"patterns": "a"})).contains("must be a list"));
    assert!(spec(json!({"patterns": ["a"], "model_types": ["llama"]})).contains("model_types"));
    assert!(
        spec(json!({"patterns": ["a"], "partition_dim": 1})).contains("partition_dim must be 0")
    );
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    for (file, words) in [
        (json!({"zero_optimization": {"stage": 3}}), "use train_fsdp"),
        (json!({"fp16": {"enabled": true}}), "bf16 costs the same"),
        (
            json!({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}),
            "offload_optimizer: states stay",
        ),
        (json!({"optimizer": {"type": "Lamb"}}), "there is AdamW"),
        (
            json!({"optimizer": {"type": "Adam", "params": {"adam_w_mode": false, "weight_decay": 0.1}}}),
            "adam_w_mode is false",
        ),
        (
            json!({"zero_optimisation": {}}),
            "did you mean zero_optimization?",
        ),
        (
            json!({"zero_optimization": {"stge": 1}}),
            "did you mean zero_optimization.stage?",
        ),
        (
            json!({"optimizer": {"type": "AdamW", "params": {"learning_rat": 1}}}),
            "no key that is known",
        ),
        (json!({"gradient_clipping": "much"}), "a number"),
        (json!({"bf16": true}), "bf16 is true; it must be an object"),
        (json!({"train_batch_size": 0}), "at least 1"),
        (json!({"wandb": {"enabled": true}}), "wandb"),
        (json!([]), "an object of JSON"),
    ] {
        let problem = run(&file, &["--num_workers", "1"]).unwrap_err();
        assert!(problem.contains(words), "{file}: {problem}");
    }
    let file = json!({"tensor_parallel": {"autotp_size": 2}});
    let problem = run(&file, &["--num_workers=4", "--tp_size=4"]).unwrap_err();
    assert!(
        problem.contains("--tp_size 4 contradicts tensor_parallel.autotp_size"),
        "{problem}"
    );
}
