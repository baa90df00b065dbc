//! `--scale`: what the best candidate takes with more ranks, phase by phase, and what ends it first.

use clap::ValueEnum;
use rustix::process::{Resource, getrlimit};
use tandem_model::lora::LoraConfig;
use tandem_model::{ModelConfig, ModuleTree};
use tandem_parallel::Plan;
use tandem_plan::scale::{Descriptors, Limit, Quantity, Scale, Subject, Then, Wire};
use tandem_plan::{Candidate, Device, Place};
use tandem_run::failure::{Failure, Outcome};

/// How groups move data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ScaleTransport {
    /// NCCL on GPUs; on CPUs, shared memory within a host and TCP between hosts.
    Auto,
    /// Shared memory within a host and TCP between hosts, on GPUs too.
    Staged,
    /// TCP everywhere.
    Tcp,
}

impl ScaleTransport {
    fn wire(self, device: &Device) -> Wire {
        match self {
            Self::Auto if !device.cpu => Wire::Nccl,
            Self::Auto | Self::Staged => Wire::Host,
            Self::Tcp => Wire::Tcp,
        }
    }
}

/// What `best` takes with many ranks.
pub(super) fn of(
    transport: ScaleTransport,
    (config, plan): (&ModelConfig, &Plan),
    adapters: Option<(&LoraConfig, &ModuleTree)>,
    device: &Device,
    best: &Candidate,
) -> Outcome<Scale> {
    let failed = |error: &dyn std::fmt::Display| Failure::usage(format!("--scale: {error}"));
    // The candidate may spread experts where the question's plan does not.
    let tree = ModuleTree::new(config);
    let plan = match best.expert_parallel {
        1 => plan.clone(),
        size => plan
            .clone()
            .with_spread_experts(config, &tree, size)
            .map_err(|error| failed(&error))?,
    };
    let subject = Subject {
        config,
        plan: &plan,
        adapters,
        settings: best.settings,
        ranks_per_host: device.devices_per_node,
        wire: transport.wire(device),
        place: match device.cpu {
            true => Place::Cpu,
            false => Place::Cuda,
        },
    };
    let open_files = getrlimit(Resource::Nofile);
    let descriptors = Descriptors {
        soft: open_files.current,
        hard: open_files.maximum,
    };
    Scale::of(&subject, descriptors).map_err(|error| failed(&error))
}

/// The table, and what ends first.
pub(super) fn lines(scale: &Scale) -> Vec<String> {
    let what = "many ranks, by calculation: rows stay, columns and the batch grow";
    let mut lines = vec![
        String::new(),
        format!("{what} ({} ranks a host)", scale.ranks_per_host),
    ];
    let count = |value: usize| Quantity::Count.show(value as f64);
    let line = |cells: [&str; 2], formula: &str, values: Vec<String>| {
        let values: String = values.iter().map(|it| format!(" {it:>11}")).collect();
        let [phase, what] = cells;
        format!("  {phase:<8} {what:<72} {formula:<46}{values}")
    };
    let ranks = scale.columns.iter().map(|it| count(*it)).collect();
    lines.push(line(["phase", "what"], "each", ranks));
    lines.extend(scale.rows.iter().map(|row| {
        let values = row.values.iter().map(|it| row.quantity.show(*it));
        line([row.phase, row.what], row.formula, values.collect())
    }));
    lines.push("limits, those that are met first in front:".to_owned());
    lines.extend(scale.limits.iter().map(limit));
    lines.push(verdict(scale));
    lines
}

fn limit(it: &Limit) -> String {
    let count = |value: f64| match value < 10.0 && value.fract() > 0.0 {
        true => format!("{value:.2}"),
        false => Quantity::Count.show(value),
    };
    let met = match it.met_at {
        None => "whatever the ranks".to_owned(),
        Some(ranks) => {
            let then = match it.then {
                Then::Ends => "it ends there",
                Then::Slows => "slower from there on",
                Then::IsRaised => "the run raises it there",
            };
            format!("met at {} ranks: {then}", count(ranks as f64))
        }
    };
    let (needs, has) = (count(it.needs), count(it.has));
    format!("  {:<82} {needs:>13} of {has:>13}, {met}", it.what)
}

fn verdict(scale: &Scale) -> String {
    let count = |ranks: usize| Quantity::Count.show(ranks as f64);
    let ranks = count(scale.ranks);
    let Some((first, met_at)) = scale.first_end().and_then(|it| Some((it, it.met_at?))) else {
        return format!("first     nothing ends a run of such rows; this one has {ranks} ranks");
    };
    let is = match scale.ranks < met_at {
        true => "below it",
        false => "not below it",
    };
    format!(
        "first     {} ({}), at {} ranks; a run of {ranks} is {is}, where all hosts are as this one",
        first.what,
        Quantity::Count.show(first.has),
        count(met_at),
    )
}
