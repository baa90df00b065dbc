//! A spec as JSON: `run_config.json` of every run, and the request that `tandem_ray.driver` gets.
//!
//! Three objects say who reads what: `flags` are the workers', `run` is for Ray's RunConfig, and `ray` for the cluster and
//! the bridge to it. What was not given is absent from `flags`. Where this program starts the workers itself, it keeps to
//! `run` by itself, and `ray` has nothing about a cluster.

use std::path::{Path, PathBuf};

use schemars::{JsonSchema, Schema, schema_for};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::{Kept, Name, NamedDataset, Ray, RunSpec, Watch, object};
use crate::failure::{Failure, Outcome};

/// A run, as it is written.
#[derive(Serialize, JsonSchema)]
#[schemars(
    title = "The request of tandem_ray.driver",
    deny_unknown_fields,
    extend("required" = ["entry_point", "num_workers", "run"])
)]
struct Wire<'a> {
    /// The workers' program.
    #[schemars(extend("enum" = ["train_fsdp", "train_deepspeed"]))]
    entry_point: &'static str,
    /// The version of the program that wrote this.
    version: &'static str,
    /// Who starts the workers.
    #[schemars(extend("enum" = ["local", "ray"]))]
    cluster: &'static str,
    /// Workers in all.
    #[schemars(range(min = 1))]
    num_workers: usize,
    /// The file of the workers' program, where it is not to be found beside Python or on PATH.
    #[schemars(extend("minLength" = 1))]
    binary: Option<&'a Path>,
    /// The flags of the workers by name, without those that are in `run`. The program itself checks them.
    flags: Map<String, Value>,
    /// What Ray's RunConfig decides.
    run: Run<'a>,
    /// The cluster, and how the workers are looked after.
    ray: RaySection<'a>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(inline, deny_unknown_fields, extend("required" = ["storage_path"]))]
struct Run<'a> {
    /// Where the folders of runs are.
    #[schemars(length(min = 1))]
    storage_path: &'a str,
    /// The name of a new run.
    #[schemars(length(min = 1))]
    name: Option<&'a str>,
    /// The name of a run that goes on.
    #[schemars(length(min = 1))]
    resume_from: Option<&'a str>,
    #[serde(flatten)]
    kept: &'a Kept,
}

#[derive(Serialize, JsonSchema)]
#[schemars(inline, deny_unknown_fields, extend("required" = []))]
struct RaySection<'a> {
    #[serde(flatten)]
    ray: Option<&'a Ray>,
    #[serde(flatten)]
    watch: &'a Watch,
    /// Seconds that the workers may take to save after a signal. The command line has no flag for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0, "x-expected" = "a number of seconds above 0"))]
    stop_grace_s: Option<f64>,
}

impl<'a> From<&'a RunSpec> for Wire<'a> {
    fn from(spec: &'a RunSpec) -> Self {
        let mut flags = Map::new();
        for section in [
            object(&spec.identity),
            object(&spec.compute),
            object(&spec.output.shown),
            object(&spec.output.local),
            object(&spec.checkpoints.saving),
            object(&spec.cluster.network),
        ] {
            flags.extend(section);
        }
        flags.retain(|_, value| !value.is_null());
        let experiment = &spec.output.experiment;
        let ray = spec.cluster.ray.as_ref();
        let name = match &experiment.name {
            Name::New(name) => name.as_deref(),
            Name::Continued(_) => None,
        };
        Self {
            entry_point: spec.compute.engine.strategy.entry_point(),
            version: env!("CARGO_PKG_VERSION"),
            cluster: if ray.is_some() { "ray" } else { "local" },
            num_workers: spec.compute.engine.mesh.world_size(),
            binary: ray.and_then(|ray| ray.binary.as_deref()),
            flags,
            run: Run {
                storage_path: &experiment.storage_path,
                name,
                resume_from: experiment.name.continued(),
                kept: &spec.checkpoints.kept,
            },
            ray: RaySection {
                ray,
                watch: &spec.checkpoints.watch,
                stop_grace_s: None,
            },
        }
    }
}

impl Serialize for RunSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Wire::from(self).serialize(serializer)
    }
}

impl RunSpec {
    /// The run as processes in other folders can start it, under the name that it has got: all paths are absolute.
    /// `binary` is the workers' program, where it cannot be found by its name.
    pub fn for_other_folders(mut self, name: &str, binary: Option<PathBuf>) -> Outcome<Self> {
        let Self {
            identity,
            output,
            cluster,
            compute,
            ..
        } = &mut self;
        // A name on a hub stays as it is.
        if Path::new(&identity.model_name).exists() {
            identity.model_name = absolute("model_name", &identity.model_name)?;
        }
        for text in &mut identity.selection.data.dataset_name {
            let mut dataset = NamedDataset::parse(text);
            dataset.name = absolute_dataset("dataset_name", dataset.name)?;
            *text = dataset.text();
        }
        if let Some(name) = &mut compute.evaluation.eval_dataset_name {
            *name = absolute_dataset("eval_dataset_name", std::mem::take(name))?;
        }
        let storage_path = &mut output.experiment.storage_path;
        *storage_path = absolute("storage_path", storage_path)?;
        let local = &mut output.local;
        let folders = [
            ("local_path", Some(&mut local.local_path)),
            ("loss_output_dir", local.loss_output_dir.as_mut()),
            ("adapter", identity.selection.lora.adapter.as_mut()),
            (
                "chat_template_path",
                identity.selection.data.chat_template_path.as_mut(),
            ),
            (
                "rendezvous_secret_file",
                cluster.network.rendezvous_secret_file.as_mut(),
            ),
        ];
        for (flag, folder) in folders {
            if let Some(folder) = folder {
                *folder = absolute(flag, &folder.to_string_lossy())?.into();
            }
        }
        if let Name::New(own) = &mut output.experiment.name {
            *own = Some(name.to_owned());
        }
        if let Some(ray) = &mut self.cluster.ray {
            ray.binary = binary;
        }
        Ok(self)
    }
}

fn absolute_dataset(flag: &str, name: String) -> Outcome<String> {
    if Path::new(&name).exists() {
        return absolute(flag, &name);
    }
    match tandem_data::file_list(&name) {
        Some(parts) => {
            let parts = parts.into_iter().map(|part| absolute(flag, part));
            Ok(parts.collect::<Outcome<Vec<String>>>()?.join(","))
        }
        None => Ok(name),
    }
}

/// `path` as processes in other folders can use it. The address of a store stays as it is.
fn absolute(flag: &str, path: &str) -> Outcome<String> {
    if path.contains("://") {
        return Ok(path.to_owned());
    }
    let absolute = std::path::absolute(path)
        .map_err(|error| Failure::usage(format!("--{flag} {path}: {error}")))?;
    Ok(absolute.to_string_lossy().into_owned())
}

/// What a request must look like: the JSON schema that `tandem_ray` checks it against.
pub fn request_schema() -> Schema {
    schema_for!(Wire<'_>)
}
