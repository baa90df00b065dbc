//! The request that `tandem_ray.driver` gets: the flags, sorted into what the workers, the run and the cluster need.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::cluster_args::STARTING;
use crate::failure::{Failure, Outcome};
use crate::request::Request;

/// Flags that Ray decides for the run as a whole. Workers are not told.
const OF_THE_RUN: [&str; 4] = [
    "max_failures",
    "num_to_keep",
    "checkpoint_score_attribute",
    "checkpoint_score_order",
];

/// Flags that workers have no use for, besides those of the cluster.
const NOT_FOR_WORKERS: [&str; 3] = ["num_workers", "experiment_name", "resume_from"];

/// Flags with files or folders, which workers, in folders of their own, need as absolute paths.
const PATHS: [&str; 5] = [
    "model_name",
    "dataset_name",
    "storage_path",
    "local_path",
    "loss_output_dir",
];

/// The request for the run `name`. `binary` is the workers' program, where it cannot be found by its name.
pub fn build(request: &Request, name: &str, binary: Option<&Path>) -> Outcome<Value> {
    let common = request.common();
    let cluster = &common.cluster;
    let Value::Object(mut flags) = request.to_json()["flags"].take() else {
        return Err(Failure::other("the flags cannot be written as JSON"));
    };
    flags.retain(|flag, value| {
        let kept = |names: &[&str]| !names.contains(&flag.as_str());
        !value.is_null() && kept(&STARTING) && kept(&NOT_FOR_WORKERS)
    });
    for flag in PATHS {
        if let Some(Value::String(path)) = flags.get_mut(flag) {
            *path = absolute(flag, path)?;
        }
    }
    let use_gpu = cluster.gpu(common.device);
    if use_gpu {
        // `auto` would fall back to the CPU on a node whose GPU cannot be used.
        flags.insert("device".to_owned(), "cuda".into());
    }
    let mut run: Map<String, Value> = OF_THE_RUN
        .into_iter()
        .filter_map(|flag| Some((flag.to_owned(), flags.remove(flag)?)))
        .collect();
    run.insert(
        "storage_path".to_owned(),
        flags.remove("storage_path").unwrap_or_default(),
    );
    let key = match common.checkpoints.resume_from {
        Some(_) => "resume_from",
        None => "name",
    };
    run.insert(key.to_owned(), name.into());
    let resources: Map<String, Value> = cluster
        .resources_per_worker
        .iter()
        .map(|resource| (resource.name.clone(), resource.amount.into()))
        .collect();
    let labels: Map<String, Value> = cluster
        .label_selector
        .iter()
        .map(|label| (label.name.clone(), label.value.clone().into()))
        .collect();
    Ok(json!({
        "entry_point": request.entry_point(),
        "num_workers": common.num_workers,
        "binary": binary,
        "ray": {
            "address": cluster.ray_address.as_deref().unwrap_or("auto"),
            "use_gpu": use_gpu,
            "resources_per_worker": (!resources.is_empty()).then_some(resources),
            "placement_strategy": cluster.placement_strategy,
            "accelerator_type": cluster.accelerator_type,
            "label_selector": (!labels.is_empty()).then_some(labels),
            "resource_timeout_s": cluster.resource_timeout_s,
            "hang_timeout_s": flags.remove("hang_timeout_s"),
        },
        "flags": flags,
        "run": run,
    }))
}

/// `path` as workers in other folders can use it. A name on a hub and the address of a store stay as they are.
fn absolute(flag: &str, path: &str) -> Outcome<String> {
    let is_output = flag.ends_with("_path") || flag.ends_with("_dir");
    if path.contains("://") || !is_output && !Path::new(path).exists() {
        return Ok(path.to_owned());
    }
    let absolute = std::path::absolute(path)
        .map_err(|error| Failure::usage(format!("--{flag} {path}: {error}")))?;
    Ok(absolute.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{DeepSpeedArgs, FsdpArgs};
    use clap::Parser;

    const MESH: [&str; 7] = [
        "train",
        "--tp_size=2",
        "--dp_size=2",
        "--num_workers=4",
        "--cluster=ray",
        "--storage_path=runs",
        "--model_name=Qwen/Qwen2-0.5B",
    ];

    fn fsdp(extra: &[&str]) -> Value {
        let args = FsdpArgs::try_parse_from(MESH.iter().chain(extra)).unwrap();
        build(&Request::Fsdp(args), "night", None).unwrap()
    }

    #[test]
    fn every_flag_reaches_its_place_and_only_that() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("a.txt");
        std::fs::write(&text, "").unwrap();
        let request = fsdp(&[
            "--learning_rate=3e-5",
            "--packing=false",
            "--resources_per_worker=CPU=2,slot=1",
            "--label_selector=zone=a",
            "--placement_strategy=SPREAD",
            "--resource_timeout_s=60",
            "--ray_address=head:6379",
            "--network_interface=eth1",
            "--dataset_name",
            text.to_str().unwrap(),
        ]);
        let here = std::env::current_dir().unwrap();
        assert_eq!(request["entry_point"], "train_fsdp");
        assert_eq!(request["num_workers"], 4);
        assert_eq!(request["binary"], Value::Null);
        assert_eq!(request["run"]["name"], "night");
        assert_eq!(
            request["run"]["storage_path"],
            here.join("runs").to_str().unwrap()
        );
        let ray = &request["ray"];
        assert_eq!(ray["address"], "head:6379");
        assert_eq!(
            ray["resources_per_worker"],
            json!({"CPU": 2.0, "slot": 1.0})
        );
        assert_eq!(ray["label_selector"], json!({"zone": "a"}));
        assert_eq!(ray["placement_strategy"], "SPREAD");
        assert_eq!(
            (&ray["use_gpu"], &ray["resource_timeout_s"]),
            (&json!(false), &json!(60))
        );
        let flags = request["flags"].as_object().unwrap();
        assert_eq!(flags["learning_rate"], 3e-5);
        assert_eq!(flags["packing"], false);
        assert_eq!(flags["network_interface"], "eth1");
        assert_eq!(flags["model_name"], "Qwen/Qwen2-0.5B", "a name on the hub");
        assert_eq!(flags["dataset_name"], text.to_str().unwrap());
        let decided = STARTING.iter().chain(&OF_THE_RUN).chain(&NOT_FOR_WORKERS);
        for decided in decided.chain(&["storage_path", "hang_timeout_s"]) {
            assert!(!flags.contains_key(*decided), "{decided}");
        }
        assert!(!flags.values().any(Value::is_null));
    }

    #[test]
    fn workers_with_gpus_must_use_them() {
        let request = fsdp(&["--use_gpu"]);
        assert_eq!(request["ray"]["use_gpu"], true);
        assert_eq!(request["flags"]["device"], "cuda");
        assert_eq!(fsdp(&[])["flags"]["device"], "auto");
    }

    #[test]
    fn what_is_left_is_a_command_line_again() {
        let args = DeepSpeedArgs::try_parse_from(MESH.iter().chain(&[
            "--zero_stage=2",
            "--autotp_override=x=vocab",
            "--autotp_override=y=colwise",
        ]))
        .unwrap();
        let request = build(
            &Request::DeepSpeed(args),
            "night",
            Some(Path::new("/bin/x")),
        )
        .unwrap();
        assert_eq!(request["binary"], "/bin/x");
        let mut line = vec!["train_deepspeed".to_owned(), "--num_workers=4".to_owned()];
        for (flag, value) in request["flags"].as_object().unwrap() {
            match value {
                Value::Array(items) => line.extend(
                    items
                        .iter()
                        .map(|item| format!("--{flag}={}", item.as_str().unwrap())),
                ),
                Value::String(text) => line.push(format!("--{flag}={text}")),
                other => line.push(format!("--{flag}={other}")),
            }
        }
        let again = DeepSpeedArgs::try_parse_from(line).unwrap();
        assert_eq!(again.zero_stage, 2);
        assert_eq!(again.autotp_override, ["x=vocab", "y=colwise"]);
        assert_eq!(again.common.model_name, "Qwen/Qwen2-0.5B");
    }
}
