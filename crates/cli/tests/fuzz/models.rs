//! The files of a model's folder.

use std::fs;

use serde_json::{Map, Value};
use tandem_checkpoint::HfWeights;
use tandem_data::Tokenizer;
use tandem_mesh::{DeviceMesh, ShardSlice};
use tandem_model::{ModelConfig, ModuleTree, Recompute};
use tandem_plan::{Device, Kernels, Memory, Place, Settings, Share, StepTime};
use tandem_run::spec::{Dtype, Fsdp, Strategy};

pub mod seeds {
    use std::fs;
    use std::path::Path;

    use serde_json::json;
    use tandem_checkpoint::{FloatKind, NamedTensor, write_safetensors};

    pub fn config() -> Vec<Vec<u8>> {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests-data/golden");
        let cases = ["llama3_rope", "mistral", "qwen2_tied", "qwen3_qknorm"];
        let files = ["config.json", "config_v4.json"];
        let all = cases
            .iter()
            .flat_map(|case| files.map(|file| golden.join(case).join(file)));
        all.map(|path| fs::read(path).unwrap()).collect()
    }

    /// A file with these tensors of two rows and two columns.
    pub fn safetensors(names: &[&str]) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let tensors: Vec<NamedTensor<'_>> = names
            .iter()
            .map(|name| NamedTensor {
                name,
                shape: &[2, 2],
                data: &[1.0, -2.0, 0.5, 0.0],
            })
            .collect();
        write_safetensors(&path, &tensors, FloatKind::Bf16).unwrap();
        fs::read(path).unwrap()
    }

    pub fn weights() -> Vec<Vec<u8>> {
        let names = [
            "model.embed_tokens.weight",
            "model.norm.weight",
            "lm_head.weight",
        ];
        let prefixed = names.map(|name| format!("_orig_mod.{name}"));
        vec![
            safetensors(&names),
            safetensors(&prefixed.each_ref().map(String::as_str)),
            safetensors(&[]),
        ]
    }

    pub fn index() -> Vec<Vec<u8>> {
        let map = json!({"a": "one.safetensors", "b": "two.safetensors"});
        let index = json!({"metadata": {"total_size": 16}, "weight_map": map});
        vec![
            index.to_string().into_bytes(),
            br#"{"weight_map": {}}"#.to_vec(),
        ]
    }

    pub fn tokenizer() -> Vec<Vec<u8>> {
        let added = json!([{"id": 5, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}]);
        let template = json!({"type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<end>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<end>": {"id": "<end>", "ids": [5], "tokens": ["<end>"]}}});
        let words = json!({"version": "1.0", "added_tokens": added, "pre_tokenizer": {"type": "WhitespaceSplit"},
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
            "post_processor": template,
            "model": {"type": "WordLevel", "vocab": {"[unk]": 0, "a": 1, "b": 2, "c": 3, "d": 4}, "unk_token": "[unk]"}});
        let bytes = json!({"version": "1.0", "added_tokens": added,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "post_processor": {"type": "RobertaProcessing", "sep": ["<end>", 5], "cls": ["<end>", 5],
                "trim_offsets": true, "add_prefix_space": false},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": {"a": 0, "b": 1, "ab": 2, "\u{120}": 3, "c": 4}, "merges": [["a", "b"]]}});
        let pieces = json!({"version": "1.0", "added_tokens": added,
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"},
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[ab]+|\\s"}, "behavior": "Isolated", "invert": false},
            "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": false,
                "vocab": [["<unk>", 0.0], ["a", -1.0], ["b", -2.5], ["\u{2581}", -3.0], ["ab", -1.5]]}});
        [words, bytes, pieces]
            .map(|json| json.to_string().into_bytes())
            .to_vec()
    }
}

/// All that a config decides before anything is allocated.
pub fn config(bytes: &[u8]) {
    let Ok(Value::Object(map)) = serde_json::from_slice(bytes) else {
        return;
    };
    let Ok(config) = ModelConfig::from_json(&map) else {
        return;
    };
    assert!(config.norm.eps > 0.0 && config.head_dim > 0, "{config:?}");
    assert_eq!(config.sliding_window.len(), config.num_layers);
    assert_eq!(config.rope.len(), config.num_layers);
    let few = config.num_layers.min(3);
    let Ok(config) = config.truncated(few) else {
        panic!("a model with {few} layers at least has not so many");
    };
    let tree = ModuleTree::new(&config);
    let strategy = Strategy::Fsdp(Fsdp {
        autocast: false,
        reshard_after_forward: true,
        reduce_dtype: Dtype::Fp32,
    });
    let Ok(strategy) = strategy.for_model(Dtype::Bf16, &tree) else {
        return;
    };
    for tp in [1, 3] {
        let Ok(share) = Share::new(&config, &strategy.plan, tp, tp > 1, None) else {
            continue;
        };
        // More tokens than any flag allows.
        let settings = Settings {
            mesh: DeviceMesh::new(tp, 2).unwrap(),
            level: strategy.level,
            precision: strategy.precision,
            reshard_after_forward: true,
            sequence_parallel: tp > 1,
            recompute: Recompute::None,
            seq_length: 1 << 23,
            batch_size: 1 << 22,
            micro_batches: 3,
            head_chunk_rows: 4096,
        };
        let memory = Memory::of(&share, &settings, Place::Cuda);
        assert!(memory.total() >= memory.parameters);
        let device = Device::named("h100").unwrap();
        let time = StepTime::of(&share, &settings, &device, Kernels::Operators);
        assert!(
            time.total_s() > 0.0 && time.total_s().is_finite(),
            "{time:?}"
        );
    }
}

fn expected(names: &[&str]) -> Vec<(String, Vec<usize>)> {
    names
        .iter()
        .map(|name| ((*name).to_owned(), vec![2, 2]))
        .collect()
}

/// Opens the weights of a folder and reads what is small.
fn read_all(folder: &std::path::Path) {
    let Ok(mut weights) = HfWeights::open(folder) else {
        return;
    };
    let (table, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let needed = expected(&[table, "model.norm.weight", head]);
    let _ = weights.fit_names(&needed, (table, head));
    let _ = weights.expect(&needed, &|_| true);
    let _ = weights.are_equal(table, head);
    let names: Vec<String> = weights.names().map(str::to_owned).collect();
    for name in names {
        let slice = ShardSlice::whole(weights.shape(&name).unwrap());
        if slice.numel() < 1 << 20 {
            let _ = weights.read(&name, &slice, &mut vec![0.0; slice.numel()]);
        }
    }
}

pub fn weights(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    read_all(folder.path());
}

pub fn index(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    for (name, tensor) in [("one", "a"), ("two", "b")] {
        let path = folder.path().join(format!("{name}.safetensors"));
        fs::write(path, seeds::safetensors(&[tensor])).unwrap();
    }
    fs::write(folder.path().join("model.safetensors.index.json"), bytes).unwrap();
    read_all(folder.path());
}

/// A tokenizer, and what it makes of some texts: no token may be beyond the vocabulary.
pub fn tokenizer(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer.json"), bytes).unwrap();
    let eos: Map<String, Value> = [("eos_token".to_owned(), Value::from("<end>"))]
        .into_iter()
        .collect();
    fs::write(
        folder.path().join("tokenizer_config.json"),
        Value::from(eos).to_string(),
    )
    .unwrap();
    let Ok(tokenizer) = Tokenizer::load(folder.path()) else {
        return;
    };
    for text in [
        "",
        "a",
        "ab c  b<end>a",
        "\u{e9}\u{1f600} \u{0} x",
        &"ab ".repeat(300),
    ] {
        let Ok(tokens) = tokenizer.encode(text) else {
            continue;
        };
        let last = tokens.iter().max().copied().unwrap_or(0);
        assert!(
            (last as usize) < tokenizer.vocab_size(),
            "{last} in {}",
            tokenizer.vocab_size()
        );
    }
}
