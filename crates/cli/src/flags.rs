//! The command line as it is typed: clap's types, and the one conversion of each into its sections of a
//! [`tandem_run::spec::RunSpec`].

pub mod checkpoints;
pub mod choices;
pub mod cluster;
pub mod data;
pub mod eval;
pub mod gpu;
pub mod lora;
pub mod train;

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use clap::{CommandFactory, Parser};
    use serde_json::{Value, json};
    use tandem_run::failure::Outcome;
    use tandem_run::spec::{RunSpec, wire};

    use crate::flags::train::{DeepSpeedFlags, FsdpFlags};

    const MESH: [&str; 7] = [
        "train",
        "--tp_size=2",
        "--dp_size=2",
        "--num_workers=4",
        "--cluster=ray",
        "--storage_path=runs",
        "--model_name=Qwen/Qwen2-0.5B",
    ];

    fn request(spec: Outcome<RunSpec>, binary: Option<PathBuf>) -> Value {
        let spec = spec.unwrap().for_other_folders("night", binary).unwrap();
        serde_json::to_value(spec).unwrap()
    }

    fn fsdp(extra: &[&str]) -> Value {
        let flags = FsdpFlags::try_parse_from(MESH.iter().chain(extra)).unwrap();
        request(flags.into_spec(), None)
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
        let object = |name: &str| request[name].as_object().unwrap();
        let decided = object("run").keys().chain(object("ray").keys());
        let top = [
            "cluster",
            "num_workers",
            "ray_address",
            "check_flags",
            "experiment_name",
        ];
        for decided in decided.map(String::as_str).chain(top) {
            assert!(!flags.contains_key(decided), "{decided}");
        }
        assert!(!flags.values().any(Value::is_null));
    }

    /// A flag that clap knows and no conversion does would be silently ignored.
    #[test]
    fn every_flag_has_a_place_in_the_spec() {
        // What is absent when it is not given.
        let written = fsdp(&[
            "--dataset_config=c",
            "--recompute=full",
            "--loss_output_dir=d",
            "--network_interface=lo",
            "--rendezvous_secret_file=f",
            "--packing=true",
            "--packing_strategy=bfd",
            "--document_mask=false",
            "--dataset_format=messages",
            "--chat_template_path=t",
            "--eos_token=e",
            "--eval_strategy=steps",
            "--eval_steps=1",
            "--eval_dataset_name=n",
            "--eval_dataset_config=c",
            "--eval_split=s",
            "--eval_batch_size=1",
            "--router_aux_loss_coef=0.1",
            "--lora_r=2",
            "--lora_alpha=4",
            "--lora_dropout=0.1",
            "--lora_target_modules=q_proj",
            "--use_rslora",
            "--adapter=a",
        ]);
        let object = |pointer: &str| written.pointer(pointer).unwrap().as_object().unwrap();
        let command = FsdpFlags::command();
        let flags: Vec<&str> = command
            .get_arguments()
            .map(|arg| arg.get_id().as_str())
            .collect();
        assert!(flags.len() > 50, "{flags:?}");
        for flag in flags {
            let name = match flag {
                "experiment_name" => "name",
                "ray_address" => "address",
                // They end or only check.
                "help" | "version" | "check_flags" => continue,
                // All that it says is said by other flags.
                "config" => continue,
                same => same,
            };
            let places = ["", "/flags", "/run", "/ray"];
            assert!(
                places.iter().any(|place| object(place).contains_key(name)),
                "--{flag} is nowhere in {written}"
            );
        }
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
        let flags = DeepSpeedFlags::try_parse_from(MESH.iter().chain(&[
            "--zero_stage=2",
            "--autotp_override=x=vocab",
            "--autotp_override=y=colwise",
        ]))
        .unwrap();
        let request = request(flags.into_spec(), Some("/bin/x".into()));
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
        let again = DeepSpeedFlags::try_parse_from(line).unwrap();
        assert_eq!(again.zero_stage, 2);
        assert_eq!(again.autotp_override, ["x=vocab", "y=colwise"]);
        assert_eq!(again.common.model_name, "Qwen/Qwen2-0.5B");
    }

    #[test]
    fn the_driver_has_the_schema_of_what_is_written() {
        let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../python/tandem_ray");
        let text = std::fs::read_to_string(package.join("request.schema.json")).unwrap();
        let schema = serde_json::to_value(wire::request_schema()).unwrap();
        let kept: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            kept, schema,
            "write it anew: tandem schema > python/tandem_ray/request.schema.json"
        );
        let request = fsdp(&["--use_gpu", "--num_to_keep=2"]);
        for section in ["", "/run", "/ray"] {
            let at = section.replace('/', "/properties/");
            let known = schema.pointer(&format!("{at}/properties")).unwrap();
            let written = request.pointer(section).unwrap().as_object().unwrap();
            for name in written.keys() {
                assert!(
                    known.get(name).is_some(),
                    "{section}/{name} is not in the schema"
                );
            }
        }
    }
}
