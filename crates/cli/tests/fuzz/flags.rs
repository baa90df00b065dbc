//! Files of flags.

use std::fs;

use tandem_cli::testing::{flags_of_deepspeed, flags_of_file, flags_of_run};

pub mod seeds {
    pub fn yaml() -> Vec<Vec<u8>> {
        [
            "# a comment\ntp_size: 2\nnum_workers: 2\nlearning_rate: 1e-4\nsequence_parallel: true\nmodel_name: -x\n",
            "base: &base {seed: 3, tp_size: 1}\n<<: *base\nautotp_override:\n  - a=b\n  - 'c=d'\n",
            "model_name: |\n  two\n  lines\nseed: 0x10\n---\nseed: !!int 3\n",
            "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
    }

    pub fn toml() -> Vec<Vec<u8>> {
        [
            "# a comment\ntp_size = 2\nlearning_rate = 1e-4\nsequence_parallel = true\nmodel_name = '-x'\n",
            "autotp_override = [\"a=b\", 'c=d']\nseed = 0x10\nmodel_name = \"\"\"\ntwo\nlines\"\"\"\n[table]\nx.y = 1979-05-27\n",
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
    }

    pub fn run_config() -> Vec<Vec<u8>> {
        let flags = br#"{"tp_size": 2, "num_workers": 2, "learning_rate": 1e-4, "dataset_config": null, "seed": 3}"#;
        let run = br#"{"entry_point": "train_fsdp", "cluster": "ray", "num_workers": 2, "flags": {"tp_size": 2, "autocast": true,
            "autotp_override": [], "learning_rate": 0.001, "dtype": "bf16", "dataset_name": "x", "seq_length": 64},
            "run": {"storage_path": "runs", "name": "old", "resume_from": null, "max_failures": 3, "num_to_keep": 2},
            "ray": {"address": "auto", "hang_timeout_s": 9, "resources_per_worker": {"CPU": 1.5}},
            "version": "0.1.0", "binary": null}"#;
        vec![run.to_vec(), flags.to_vec()]
    }

    pub fn deepspeed() -> Vec<Vec<u8>> {
        let file = br#"{"train_batch_size": 8, "gradient_accumulation_steps": 2, "gradient_clipping": 0.5, "steps_per_print": 10,
            "zero_optimization": {"stage": 2, "overlap_comm": true, "offload_optimizer": {"device": "none"}},
            "bf16": {"enabled": "auto"}, "fp16": {"enabled": false}, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3,
            "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "torch_adam": true}},
            "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 2, "total_num_steps": 4, "warmup_min_lr": 1e-6,
            "warmup_max_lr": 1e-3, "warmup_type": "linear"}}, "tensor_parallel": {"autotp_size": 2, "partition_config":
            {"use_default_specs": false, "layer_specs": [{"patterns": [".*o_proj$"], "partition_type": "row"}]}}}"#;
        vec![file.to_vec()]
    }

    pub fn resumed() -> Vec<Vec<u8>> {
        run_config()
    }
}

/// What is deep takes the stack of whoever recurses, and an alias in YAML makes much of little.
#[test]
fn fuzz_what_is_deep_or_grows() {
    let laughs = (1..40).fold("a0: &a0 [x, x]\n".to_owned(), |text, n| {
        let alias = format!("*a{}", n - 1);
        text + &format!("a{n}: &a{n} [{}]\n", [&*alias; 9].join(", "))
    });
    let merged = (1..40).fold("a0: &a0 {x: 1}\n".to_owned(), |text, n| {
        text + &format!("a{n}: &a{n} {{<<: [*a{0}, *a{0}], k{n}: *a{0}}}\n", n - 1)
    });
    let many = |text: &str| text.repeat(200_000).into_bytes();
    let block: String = (0..1000).map(|depth| " ".repeat(depth) + "a:\n").collect();
    let yaml = [
        laughs.into_bytes(),
        merged.into_bytes(),
        b"a: &a [*a]\n".to_vec(),
        many("["),
        many("{a: "),
        many("- "),
        many("? "),
        block.into_bytes(),
        many("!!a "),
        many("&a "),
    ];
    crate::harness::each("yaml", &yaml, &self::yaml);
    let toml = [
        [b"a = ".to_vec(), many("[")].concat(),
        [b"a = ".to_vec(), many("{a=")].concat(),
        [many("a."), b"a = 1".to_vec()].concat(),
        [b"[".to_vec(), many("a."), b"a]".to_vec()].concat(),
        (0..50_000)
            .map(|n| format!("[[a{n}]]\n"))
            .collect::<String>()
            .into_bytes(),
        [b"a = 1".to_vec(), many("0")].concat(),
    ];
    crate::harness::each("toml", &toml, &self::toml);
    let json = [
        many("["),
        many("{\"a\":"),
        [
            b"{\"entry_point\": \"train_fsdp\", \"flags\": ".to_vec(),
            many("{\"a\":"),
        ]
        .concat(),
        [b"{\"seed\": 1".to_vec(), many("0"), b"}".to_vec()].concat(),
    ];
    crate::harness::each("run_config", &json, &run_config);
}

fn read(name: &str, bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    for said in flags_of_file(&path) {
        assert!(!said.is_empty(), "it is refused without a word");
    }
}

pub fn yaml(bytes: &[u8]) {
    read("flags.yaml", bytes);
}

pub fn toml(bytes: &[u8]) {
    read("flags.toml", bytes);
}

pub fn run_config(bytes: &[u8]) {
    read("run_config.json", bytes);
}

pub fn deepspeed(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ds.json");
    fs::write(&path, bytes).unwrap();
    if let Some(said) = flags_of_deepspeed(&path) {
        assert!(!said.is_empty(), "it is refused without a word");
    }
}

/// The flags of a run that goes on.
pub fn resumed(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("run_config.json"), bytes).unwrap();
    for said in flags_of_run(folder.path()) {
        assert!(!said.is_empty(), "it is refused without a word");
    }
}
