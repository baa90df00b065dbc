//! The flags about who starts the workers, and where.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgAction, Args, ValueEnum};
use tandem_run::failure::{Failure, Outcome};
use tandem_run::spec::{self, Network, Ray};
use tandem_tensor::DeviceChoice;

use crate::flags::choices::{CheckChoice, PlacementStrategy, TransportChoice};

/// Who starts the workers, and what of a cluster they get.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Cluster")]
pub struct ClusterFlags {
    /// Who starts the workers: this program on this machine, or Ray Train on a Ray cluster (needs Python with the
    /// package `tandem[ray]`; see docs/ray.md).
    #[arg(long, value_enum, default_value_t = Cluster::Local)]
    pub cluster: Cluster,

    /// Ray: the cluster, HOST:PORT. `auto` (what holds when not given) is RAY_ADDRESS or the one that runs on this machine;
    /// `local` starts one for this run.
    #[arg(long, value_name = "ADDRESS")]
    pub ray_address: Option<String>,

    /// Ray: every worker gets a GPU. (Follows from --device cuda.)
    #[arg(long, num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub use_gpu: Option<bool>,

    /// Ray: what a worker takes of its node, such as CPU=4,memory=16e9; when not given, one CPU.
    #[arg(long, value_name = "NAME=AMOUNT", value_delimiter = ',')]
    pub resources_per_worker: Vec<Amount>,

    /// Ray: how workers are spread over nodes; when not given, PACK, with tensor parallel rows kept within nodes.
    #[arg(long, value_enum, ignore_case = true)]
    pub placement_strategy: Option<PlacementStrategy>,

    /// Ray: the kind of GPU, in Ray's words, such as H100.
    #[arg(long, value_name = "NAME")]
    pub accelerator_type: Option<String>,

    /// Ray: only nodes with this label. May be repeated.
    #[arg(long, value_name = "LABEL=VALUE")]
    pub label_selector: Vec<Label>,

    /// Ray: seconds to wait for a busy cluster; when not given, 600.
    #[arg(long, value_name = "S")]
    pub resource_timeout_s: Option<u64>,

    /// The network interface over which ranks on other hosts are reached; when not given, the one on the way to rank 0.
    #[arg(long, value_name = "NAME")]
    pub network_interface: Option<String>,

    /// A file with a secret that the ranks prove to each other that they know, the same on all hosts (`openssl rand -hex 32`).
    /// For launchers that give none, such as torchrun, Slurm and mpirun; see docs/security.md.
    #[arg(long, value_name = "FILE")]
    pub rendezvous_secret_file: Option<PathBuf>,

    /// How ranks move data. On CPUs: shared memory within a host and TCP between hosts (auto), or one of them always. GPUs use
    /// NCCL, or with staged go through host memory, which is slower, but lets ranks share a GPU and needs no NCCL.
    #[arg(long, value_enum, default_value_t = TransportChoice::Auto)]
    pub transport: TransportChoice,

    /// Look whether the run could begin, start nothing, and exit with 0 or 2: at the flags, the model's files, the data, the
    /// storage, and the run to continue; or at the flags alone.
    #[arg(long, value_enum, value_name = "WHAT", num_args = 0..=1, default_missing_value = "all")]
    pub check_flags: Option<CheckChoice>,
}

impl ClusterFlags {
    /// Refuses what only Ray could honour where Ray is not asked for, and what contradicts `device`.
    pub fn check(&self, device: DeviceChoice) -> Outcome<()> {
        if let (Cluster::Local, Some(flag)) = (self.cluster, self.for_ray_only()) {
            return Err(Failure::usage(format!(
                "--{flag} is about a Ray cluster, but the workers are to run on this machine; leave it out, or pass --cluster ray"
            )));
        }
        if self.resource_timeout_s == Some(0) {
            return Err(Failure::usage(
                "--resource_timeout_s is 0; it must be at least 1",
            ));
        }
        match (device, self.use_gpu) {
            (DeviceChoice::Cuda, Some(false)) => Err(Failure::usage(
                "--device cuda contradicts --use_gpu false: Ray would give the workers no GPU",
            )),
            (DeviceChoice::Cpu, Some(true)) => Err(Failure::usage(
                "--device cpu contradicts --use_gpu: the workers would hold GPUs and not use them",
            )),
            _ => Ok(()),
        }
    }

    /// Their sections, and where workers compute: those that get a GPU must use it, where `auto` would fall back to the CPU.
    pub fn into_spec(self, device: DeviceChoice) -> (spec::Cluster, DeviceChoice) {
        let Self {
            cluster,
            ray_address,
            use_gpu,
            resources_per_worker,
            placement_strategy,
            accelerator_type,
            label_selector,
            resource_timeout_s,
            network_interface,
            rendezvous_secret_file,
            transport,
            check_flags: _,
        } = self;
        let network = Network {
            network_interface,
            rendezvous_secret_file,
            transport: transport.into(),
        };
        if cluster == Cluster::Local {
            return (spec::Cluster { network, ray: None }, device);
        }
        let use_gpu = use_gpu.unwrap_or(device == DeviceChoice::Cuda);
        let resources = resources_per_worker.into_iter();
        let resources: BTreeMap<String, f64> =
            resources.map(|one| (one.name, one.amount)).collect();
        let labels = label_selector.into_iter();
        let labels: BTreeMap<String, String> = labels.map(|one| (one.name, one.value)).collect();
        let ray = Ray {
            address: ray_address.unwrap_or_else(|| "auto".to_owned()),
            use_gpu,
            resources_per_worker: (!resources.is_empty()).then_some(resources),
            placement_strategy: placement_strategy.map(Into::into),
            accelerator_type,
            label_selector: (!labels.is_empty()).then_some(labels),
            resource_timeout_s,
            binary: None,
        };
        let device = if use_gpu { DeviceChoice::Cuda } else { device };
        let ray = Some(ray);
        (spec::Cluster { network, ray }, device)
    }

    fn for_ray_only(&self) -> Option<&'static str> {
        [
            ("ray_address", self.ray_address.is_some()),
            ("use_gpu", self.use_gpu.is_some()),
            (
                "resources_per_worker",
                !self.resources_per_worker.is_empty(),
            ),
            ("placement_strategy", self.placement_strategy.is_some()),
            ("accelerator_type", self.accelerator_type.is_some()),
            ("label_selector", !self.label_selector.is_empty()),
            ("resource_timeout_s", self.resource_timeout_s.is_some()),
        ]
        .into_iter()
        .find_map(|(flag, given)| given.then_some(flag))
    }
}

/// Who starts the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Cluster {
    /// This program, on this machine.
    Local,
    /// Ray Train.
    Ray,
}

/// So much of a resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Amount {
    /// Ray's name for it: CPU, GPU, memory (in bytes), or one of the cluster's own.
    pub name: String,
    /// How much.
    pub amount: f64,
}

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.split_once('=').and_then(|(name, amount)| {
            let amount: f64 = amount.trim().parse().ok()?;
            let good = !name.trim().is_empty() && amount.is_finite() && amount >= 0.0;
            good.then(|| Self {
                name: name.trim().to_owned(),
                amount,
            })
        });
        parsed.ok_or_else(|| {
            format!("{text:?} is no amount of a resource; write NAME=AMOUNT, such as CPU=4")
        })
    }
}

/// A label that nodes must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: String,
    /// Its value, or one of Ray's conditions, such as `in(a,b)`.
    pub value: String,
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() && !value.is_empty() => Ok(Self {
                name: name.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err(format!(
                "{text:?} is no label; write LABEL=VALUE, such as ray.io/accelerator-type=H100"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        cluster: ClusterFlags,
    }

    fn parse(line: &[&str]) -> Result<ClusterFlags, clap::Error> {
        Only::try_parse_from(["train"].iter().chain(line)).map(|only| only.cluster)
    }

    fn refusal(line: &[&str], device: DeviceChoice) -> String {
        let failure = parse(line).unwrap().check(device).unwrap_err();
        assert_eq!(failure.exit_code, 2);
        failure.message
    }

    #[test]
    fn what_only_ray_can_honour_is_refused_without_it() {
        for line in [
            &["--ray_address", "auto"][..],
            &["--use_gpu"],
            &["--use_gpu", "false"],
            &["--resources_per_worker", "CPU=1"],
            &["--placement_strategy", "SPREAD"],
            &["--accelerator_type", "H100"],
            &["--label_selector", "zone=a"],
            &["--resource_timeout_s", "9"],
        ] {
            let message = refusal(line, DeviceChoice::Auto);
            assert!(
                message.contains(line[0]) && message.contains("--cluster ray"),
                "{message}"
            );
            let with_ray = [&["--cluster", "ray"], line].concat();
            assert!(parse(&with_ray).unwrap().check(DeviceChoice::Auto).is_ok());
        }
        assert!(parse(&[]).unwrap().check(DeviceChoice::Cuda).is_ok());
        let here = parse(&["--network_interface", "lo"]).unwrap();
        assert!(here.check(DeviceChoice::Auto).is_ok());
    }

    #[test]
    fn gpus_follow_from_the_device_and_must_not_contradict_it() {
        let ray = ["--cluster", "ray"];
        let gpu = |line: &[&str], device| {
            let (cluster, _) = parse(line).unwrap().into_spec(device);
            cluster.ray.unwrap().use_gpu
        };
        assert!(gpu(&ray, DeviceChoice::Cuda));
        assert!(!gpu(&ray, DeviceChoice::Auto));
        let with = ["--cluster", "ray", "--use_gpu"];
        assert!(gpu(&with, DeviceChoice::Auto));
        assert!(refusal(&with, DeviceChoice::Cpu).contains("--device cpu"));
        let without = ["--cluster", "ray", "--use_gpu", "false"];
        assert!(refusal(&without, DeviceChoice::Cuda).contains("--device cuda"));
        let never = ["--cluster", "ray", "--resource_timeout_s", "0"];
        assert!(refusal(&never, DeviceChoice::Auto).contains("at least 1"));
    }

    #[test]
    fn amounts_and_labels_are_pairs() {
        let line = [
            "--cluster=ray",
            "--resources_per_worker=CPU=0.5, memory=2e9",
            "--resources_per_worker=slot=1",
            "--label_selector=ray.io/accelerator-type=H100",
            "--label_selector=zone=in(a,b)",
            "--placement_strategy=spread",
        ];
        let (cluster, _) = parse(&line).unwrap().into_spec(DeviceChoice::Auto);
        let json = serde_json::to_value(&cluster.ray).unwrap();
        assert_eq!(
            json["resources_per_worker"],
            serde_json::json!({"CPU": 0.5, "memory": 2e9, "slot": 1.0})
        );
        assert_eq!(
            json["label_selector"],
            serde_json::json!({"ray.io/accelerator-type": "H100", "zone": "in(a,b)"})
        );
        assert_eq!(json["placement_strategy"], "SPREAD");
        for bad in ["CPU", "=1", "CPU=", "CPU=-1", "CPU=many", "CPU=inf"] {
            let error = parse(&["--resources_per_worker", bad]).expect_err(bad);
            assert!(error.to_string().contains("NAME=AMOUNT"), "{error}");
        }
        assert!(parse(&["--label_selector", "zone"]).is_err());
        assert!(parse(&["--cluster", "slurm"]).is_err());
    }
}
