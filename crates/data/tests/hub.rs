//! Names on the hub to local files, against a server of the hub's protocol.

#![allow(clippy::unwrap_used)] // a failed helper is a failed test

mod hub_server;
// The tests of sources use more of it.
#[allow(dead_code)]
mod parquet_file;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::thread;

use hub_server::{HubServer, Repository};
use parquet::file::properties::WriterProperties;
use parquet_file::without_nulls;
use serde_json::json;
use tandem_data::hub::Settings;
use tandem_data::{DatasetOptions, Hub, HubError, Source, Weights};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn hub(server: &HubServer, home: &Path, extra: &[(&str, &str)]) -> Hub {
    let endpoint = server.endpoint();
    let mut variables: HashMap<&str, &str> = extra.iter().copied().collect();
    variables.insert("HF_ENDPOINT", &endpoint);
    variables.insert("HF_HOME", home.to_str().unwrap());
    let settings = Settings::from_variables(|name| variables.get(name).map(|v| (*v).into()));
    Hub::new(settings.unwrap())
}

/// Bytes that differ from place to place.
fn content(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|i| (i * 7 + i / 256) as u8 ^ seed)
        .collect()
}

/// A model in two shards, with files beside it that training does not need.
fn model() -> Repository {
    let index = json!({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors",
                                      "c": "model-00001-of-00002.safetensors"}});
    let files = [
        ("README.md", b"# About".to_vec()),
        ("config.json", b"{\"model_type\": \"qwen2\"}".to_vec()),
        ("generation_config.json", b"{}".to_vec()),
        ("tokenizer.json", content(5000, 1)),
        ("tokenizer_config.json", b"{\"eos_token\": \"x\"}".to_vec()),
        (
            "model.safetensors.index.json",
            index.to_string().into_bytes(),
        ),
        ("model-00001-of-00002.safetensors", content(70_000, 2)),
        ("model-00002-of-00002.safetensors", content(30_000, 3)),
        ("consolidated.safetensors", content(100_000, 4)),
        ("pytorch_model.bin", content(100_000, 5)),
    ];
    Repository {
        commit: COMMIT.into(),
        files: files
            .into_iter()
            .map(|(name, bytes)| (name.into(), bytes))
            .collect(),
        token: None,
        is_gated: false,
    }
}

fn files_in(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

fn fetch(hub: &Hub) -> Result<std::path::PathBuf, HubError> {
    hub.model_dir("owner/model", Weights::Needed, &mut ())
}

#[test]
fn a_model_arrives_whole_once_and_stays_for_offline() {
    let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
    server.put("models/owner/model", model());
    let online = hub(&server, home.path(), &[]);
    let dir = fetch(&online).unwrap();
    assert!(
        dir.ends_with(format!("hub/models--owner--model/snapshots/{COMMIT}")),
        "{dir:?}"
    );
    let found = files_in(&dir);
    let expected = [
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(found, expected);
    for name in &found {
        assert!(
            fs::read(dir.join(name)).unwrap() == model().files[name],
            "{name}"
        );
    }
    let downloads = server.downloads().len();
    assert_eq!(fetch(&online).unwrap(), dir);
    assert_eq!(
        server.downloads().len(),
        downloads,
        "nothing is downloaded twice"
    );

    let requests = server.request_count();
    let offline = hub(&server, home.path(), &[("HF_HUB_OFFLINE", "1")]);
    assert_eq!(fetch(&offline).unwrap(), dir);
    assert_eq!(fetch(&online.offline()).unwrap(), dir);
    assert_eq!(
        server.request_count(),
        requests,
        "nobody is contacted offline"
    );
}

/// What a hub, or whoever answers in its place, calls a file or a commit becomes a part of a path.
#[test]
fn no_name_from_the_hub_leads_out_of_the_cache() {
    let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
    let online = hub(&server, home.path(), &[]);
    let file = "../../../../victim.jsonl";
    let dataset = Repository {
        commit: COMMIT.into(),
        files: [(file.into(), b"{\"text\": \"x\"}\n".to_vec())].into(),
        token: None,
        is_gated: false,
    };
    server.put("datasets/owner/data", dataset);
    let source = Source::resolve(&DatasetOptions::new("owner/data"), &online, &mut ());
    let error = source.map(drop).unwrap_err();
    assert!(error.to_string().contains("victim.jsonl"), "{error}");

    let mut is_elsewhere = model();
    is_elsewhere.commit = "../../../../elsewhere".into();
    server.put("models/owner/model", is_elsewhere);
    let error = fetch(&online).unwrap_err();
    assert!(error.to_string().contains("no commit"), "{error}");

    server.put("models/owner/model", model());
    fetch(&online).unwrap();
    let reference = home.path().join("hub/models--owner--model/refs/main");
    fs::write(reference, "../../models--owner--model/snapshots").unwrap();
    let error = fetch(&online.offline()).unwrap_err();
    assert!(matches!(error, HubError::NotCached { .. }), "{error}");
    assert_eq!(files_in(home.path()), ["hub"]);
}

#[test]
fn offline_says_what_is_not_cached() {
    let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
    server.put("models/owner/model", model());
    let online = hub(&server, home.path(), &[]);
    let error = fetch(&online.offline()).unwrap_err();
    println!("{error}");
    assert!(matches!(error, HubError::NotCached { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("owner/model is not in the cache")
    );

    online
        .model_dir("owner/model", Weights::NotNeeded, &mut ())
        .unwrap();
    let safetensors = server
        .downloads()
        .into_iter()
        .filter(|path| path.contains("safetensors"));
    assert_eq!(
        safetensors.count(),
        0,
        "weights are not downloaded when training begins with random ones"
    );
    let error = fetch(&online.offline()).unwrap_err();
    println!("{error}");
    assert!(
        error.to_string().contains("without model.safetensors"),
        "{error}"
    );
    online
        .offline()
        .model_dir("owner/model", Weights::NotNeeded, &mut ())
        .unwrap();

    // A shard that is gone is noticed, not left out.
    let dir = fetch(&online).unwrap();
    fs::remove_file(dir.join("model-00002-of-00002.safetensors")).unwrap();
    let error = fetch(&online.offline()).unwrap_err();
    assert!(
        error.to_string().contains("without model-00002-of-00002"),
        "{error}"
    );
}

#[test]
fn of_ranks_that_start_together_one_downloads() {
    let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
    server.put("models/owner/model", model());
    let dirs: Vec<_> = thread::scope(|scope| {
        let ranks: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| fetch(&hub(&server, home.path(), &[])).unwrap()))
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    assert!(dirs.iter().all(|dir| *dir == dirs[0]));
    let downloads = server.downloads();
    for name in files_in(&dirs[0]) {
        let count = downloads
            .iter()
            .filter(|path| path.contains(&format!("/{name} ")) && !path.starts_with("/storage/"));
        assert_eq!(count.count(), 1, "{name}: {downloads:#?}");
    }
}

#[test]
fn a_download_that_breaks_off_goes_on() {
    let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
    server.put("models/owner/model", model());
    server.break_next_answer_at(50_000);
    let dir = fetch(&hub(&server, home.path(), &[])).unwrap();
    let name = "model-00001-of-00002.safetensors";
    assert!(fs::read(dir.join(name)).unwrap() == model().files[name]);
    let resumed = |path: &&String| path.contains(name) && !path.contains("bytes=0-");
    let downloads = server.downloads();
    assert!(
        downloads.iter().any(|path| resumed(&path)),
        "{downloads:#?}"
    );
}

#[test]
fn the_token_is_sent() {
    let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
    let private = Repository {
        token: Some("hf_secret".into()),
        ..model()
    };
    server.put("models/owner/model", private);
    let error = fetch(&hub(&server, home.path(), &[])).unwrap_err();
    println!("{error}");
    assert!(
        matches!(error, HubError::Refused { status: 401, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("HF_TOKEN"));
    fetch(&hub(&server, home.path(), &[("HF_TOKEN", "hf_secret")])).unwrap();
}

#[test]
fn a_gated_model_says_where_to_ask_for_access() {
    let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
    let gated = Repository {
        is_gated: true,
        ..model()
    };
    server.put("models/owner/model", gated);
    let error = fetch(&hub(&server, home.path(), &[])).unwrap_err();
    assert!(matches!(error, HubError::Gated { .. }), "{error}");
    let message = error.to_string();
    assert!(
        message.contains("ask for access at http://127.0.0.1:"),
        "{message}"
    );
    assert!(
        message.contains("/owner/model, and set HF_TOKEN"),
        "{message}"
    );
}

#[test]
fn answers_that_are_no_model_are_named() {
    let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
    let hub = hub(&server, home.path(), &[]);
    let said = |change: &dyn Fn(&mut Repository)| {
        let mut repository = model();
        change(&mut repository);
        server.put("models/owner/model", repository);
        let message = fetch(&hub).unwrap_err().to_string();
        println!("{message}");
        message
    };
    let message = hub
        .model_dir("owner/other", Weights::Needed, &mut ())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("404") && message.contains("no such repository"),
        "{message}"
    );
    let message = said(&|repository| {
        repository.files.remove("config.json");
    });
    assert!(message.contains("has no config.json"), "{message}");
    let message = said(&|repository| {
        repository
            .files
            .retain(|name, _| !name.contains("safetensors"))
    });
    assert!(message.contains("no .safetensors weights"), "{message}");
    let message = said(&|repository| {
        let evil = json!({"weight_map": {"a": "../../../evil.safetensors"}}).to_string();
        repository
            .files
            .insert("model.safetensors.index.json".into(), evil.into_bytes());
        repository.commit = "f".repeat(40); // another revision, because the first one's index is cached
    });
    assert!(
        message.contains("evil.safetensors` is not the name"),
        "{message}"
    );
    let message = said(&|repository| {
        repository.files.remove("model-00002-of-00002.safetensors");
        repository.commit = "e".repeat(40);
    });
    assert!(
        message.contains("model-00002-of-00002.safetensors of owner/model failed"),
        "{message}"
    );
}

#[test]
fn without_network_the_cache_serves() {
    let home = tempfile::tempdir().unwrap();
    let server = HubServer::start();
    server.put("models/owner/model", model());
    let hub = hub(&server, home.path(), &[]);
    let dir = fetch(&hub).unwrap();
    drop(server);
    assert_eq!(fetch(&hub).unwrap(), dir);
    let error = hub
        .model_dir("owner/other", Weights::Needed, &mut ())
        .unwrap_err();
    println!("{error}");
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
}

#[test]
fn a_new_revision_is_taken_whole() {
    let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
    server.put("models/owner/model", model());
    let hub = hub(&server, home.path(), &[]);
    let old = fetch(&hub).unwrap();
    let mut newer = model();
    newer.commit = "fedcba9876543210fedcba9876543210fedcba98".into();
    newer.files.insert("config.json".into(), b"{}".to_vec());
    server.put("models/owner/model", newer);
    let new = fetch(&hub).unwrap();
    assert_ne!(new, old);
    assert_eq!(fs::read(new.join("config.json")).unwrap(), b"{}");
    assert_eq!(files_in(&new), files_in(&old));
    assert_eq!(fetch(&hub.offline()).unwrap(), new);
}

#[test]
fn wikitext_is_known_by_its_short_name() {
    let (server, home) = (HubServer::start(), tempfile::tempdir().unwrap());
    let files = ["wikitext-103-raw-v1", "wikitext-2-raw-v1"]
        .into_iter()
        .flat_map(|config| {
            ["test", "train", "validation"].map(|split| {
                let name = format!("{config}/{split}-00000-of-00001.parquet");
                let texts = ["", &format!(" = {config} {split} = \n")];
                (name, without_nulls(&texts, WriterProperties::default()))
            })
        });
    let dataset = Repository {
        commit: COMMIT.into(),
        files: files.collect(),
        token: None,
        is_gated: false,
    };
    server.put("datasets/Salesforce/wikitext", dataset);
    let hub = hub(&server, home.path(), &[]);
    let read = |options: &DatasetOptions, hub: &Hub| -> Vec<String> {
        let source = Source::resolve(options, hub, &mut ()).unwrap();
        source
            .documents()
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap()
    };
    let train = DatasetOptions::new("wikitext");
    let expected = ["", " = wikitext-2-raw-v1 train = \n"];
    assert_eq!(read(&train, &hub), expected);
    let downloads = server.downloads();
    assert!(
        downloads
            .iter()
            .all(|path| path.contains("wikitext-2-raw-v1/train-")),
        "only what is asked for is downloaded: {downloads:#?}"
    );
    assert_eq!(read(&train, &hub.offline()), expected);

    let test = DatasetOptions {
        config: Some("wikitext-103-raw-v1".into()),
        split: "test".into(),
        ..train.clone()
    };
    let error = Source::resolve(&test, &hub.offline(), &mut ())
        .unwrap_err()
        .to_string();
    println!("{error}");
    assert!(error.contains("as far as it is cached"), "{error}");
    assert_eq!(read(&test, &hub), ["", " = wikitext-103-raw-v1 test = \n"]);
    let unclear = DatasetOptions::new("Salesforce/wikitext");
    let error = Source::resolve(&unclear, &hub, &mut ())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("wikitext-103-raw-v1, wikitext-2-raw-v1"),
        "{error}"
    );
}
