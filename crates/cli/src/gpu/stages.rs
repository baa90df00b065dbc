//! The stages, in the order in which they are run: what takes least and tells most comes first.

pub(super) mod collectives;
mod floor;
mod memory;
mod operations;
mod peers;
mod profile;
mod replays;
mod resume;
mod steps;

use std::time::Duration;

use super::finding::Finding;
use super::stage::{Context, Stage};
use tandem_run::failure::Outcome;

const fn stage(name: &'static str, seconds: u64, run: fn(&Context) -> Outcome<Finding>) -> Stage {
    Stage {
        name,
        limit: Duration::from_secs(seconds),
        run,
    }
}

/// All of them.
pub(super) static ALL: [Stage; 11] = [
    stage("floor", 60, floor::run),
    stage("operations", 90, operations::run),
    stage("replays", 150, replays::run),
    stage(collectives::NAME, 90, collectives::run),
    stage("resume", 120, resume::run),
    stage("memory", 90, memory::run),
    stage("step-0.5b", 120, steps::small),
    stage("step-7b", 120, steps::large),
    stage("profile", 90, profile::run),
    stage("peer-eager", 90, peers::eager),
    stage("peer-compiled", 150, peers::compiled),
];
