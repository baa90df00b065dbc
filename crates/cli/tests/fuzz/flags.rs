//! Files of flags.

use std::fs;

use tandem_cli::testing::flags_of_file;

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
