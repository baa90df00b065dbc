//! What each phase of a run takes with so many ranks.

use tandem_mesh::{DeviceMesh, MeshError};
use tandem_model::lora::LoraConfig;
use tandem_model::{ModelConfig, ModuleTree};
use tandem_parallel::{Plan, TpSlices, TpSlicesError};

use super::groups::{Hosts, Way, Wire};
use super::list::{List, Saved};
use super::store::{self, Said};
use crate::group::Group;
use crate::links;
use crate::memory::Memory;
use crate::place::Place;
use crate::settings::Settings;
use crate::share::Share;
use crate::talk;

/// Files of a worker besides its connections: data, weights, logs, libraries. What it makes sure of, which is more than it has.
pub const FILES_BESIDES: u64 = 64;

/// Connections of a worker to each of the others, at most: the store's, and one for each group.
const CONNECTIONS: u64 = 4;

/// Open files of a rank that are no connection: standard streams, data, the log. Counted on 64 and 256 ranks.
const FILES: u64 = 6;

/// Of rank 0, those of the run besides: its log, its lock, its measurements.
const FILES_OF_FIRST: u64 = 4;

/// The listening socket of the store, and its clone at the door (`Server::start`).
const LISTENING: u64 = 2;

/// The connection to the store, and its clone for the thread that reads it (`Client::connect`).
const TO_STORE: u64 = 2;

/// Bytes of all rings of a group over TCP, of the smallest ring, and of the largest (`crates/comm/src/transport/tcp/ring.rs`).
const RINGS: u64 = 16 << 20;
const SMALLEST_RING: u64 = 4 << 10;
const LARGEST_RING: u64 = 1 << 19;

/// Open files and connections that a worker makes sure of before a run begins.
pub fn descriptors_asked(ranks: usize) -> u64 {
    FILES_BESIDES + CONNECTIONS * ranks as u64
}

/// The most bytes of a member's buffers in a group of so many over TCP: a ring for each of the others.
pub fn ring_buffers(members: usize) -> u64 {
    let all = members.next_power_of_two() as u64;
    let each = (RINGS / all).clamp(SMALLEST_RING, LARGEST_RING);
    each * (members as u64 - 1)
}

/// Open files of a rank, or of rank 0, which has the store and the run's.
pub fn open_files(hosts: &Hosts, is_first: bool) -> u64 {
    let own = FILES + TO_STORE + hosts.connections() as u64 + hosts.watched() as u64;
    match is_first {
        true => own + FILES_OF_FIRST + LISTENING + hosts.ranks as u64,
        false => own,
    }
}

/// How a model is trained, by which the ranks are made more.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    /// The model.
    pub config: &'a ModelConfig,
    /// How a row cuts it, experts included.
    pub plan: &'a Plan,
    /// What is trained in its place, if anything, and its modules.
    pub adapters: Option<(&'a LoraConfig, &'a ModuleTree)>,
    /// All else. Rows stay as long as they are, columns grow, and a step with them.
    pub settings: Settings,
    /// Ranks of a host.
    pub ranks_per_host: usize,
    /// How groups move data.
    pub wire: Wire,
    /// Where tensors are.
    pub place: Place,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum ScaleError {
    /// The model is too small for such rows.
    #[error(transparent)]
    Slices(#[from] TpSlicesError),
    /// There is no such mesh.
    #[error(transparent)]
    Mesh(#[from] MeshError),
}

/// What does not depend on the number of ranks.
pub(super) struct Known<'a> {
    subject: &'a Subject<'a>,
    share: Share,
    saved: Saved,
}

/// Numbers of a run of so many ranks. Where nothing else is said, of the rank that has most.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    /// Where the ranks are.
    pub hosts: Hosts,
    /// What the store hears and says until all have met.
    pub meeting: Said,
    /// The same for the groups.
    pub joining: Said,
    /// Seconds of the store's thread until there are groups, at most, where connections are looked at as fast as on one idle core.
    pub store_s: f64,
    /// Connections of a rank in the group of all ranks over TCP, and in all groups.
    pub to_all: u64,
    /// The same in all groups.
    pub connections: u64,
    /// Bytes of the buffers of these, at most.
    pub rings: u64,
    /// Open files of a rank other than rank 0.
    pub descriptors: u64,
    /// Those of rank 0, which has the store.
    pub descriptors_of_first: u64,
    /// Those that a worker makes sure of.
    pub descriptors_asked: u64,
    /// Descriptors of processes on a host, all its ranks together.
    pub watched: u64,
    /// Messages of a rank to all others in a step that are a few bytes: the gradient's norm, requests, the load of spread experts.
    pub small_to_all: u64,
    /// The same to its row and its column: whether the batch is one, its size, the loss, the load of experts.
    pub small_to_few: u64,
    /// Bytes that a rank sends in a step, by group.
    pub step: Vec<(Group, f64)>,
    /// Files of a checkpoint.
    pub files: u64,
    /// Its list.
    pub list: List,
    /// Bytes of the state that a rank writes.
    pub written: u64,
    /// What is said of ends, at most.
    pub ends: Said,
    /// Bytes of the state that a rank reads at a restart.
    pub read: u64,
}

impl<'a> Known<'a> {
    pub fn new(subject: &'a Subject<'a>) -> Result<Self, ScaleError> {
        let Subject {
            config,
            plan,
            adapters,
            settings,
            ..
        } = subject;
        let tp = settings.tp();
        let share = Share::new(config, plan, tp, settings.sequence_parallel, *adapters)?;
        let slices = TpSlices::new(config, tp)?;
        let whole = ModuleTree::new(config);
        let tree = adapters.map_or(&whole, |(_, tree)| tree);
        Ok(Self {
            subject,
            share,
            saved: Saved::new(config, plan, &slices, tree),
        })
    }

    pub fn hosts(&self, ranks: usize) -> Hosts {
        Hosts {
            ranks,
            each: self.subject.ranks_per_host.max(1),
            tp: self.subject.settings.tp(),
            experts: self.share.expert_ranks,
            wire: self.subject.wire,
        }
    }

    /// Numbers of ranks are multiples of this.
    pub fn unit(&self) -> usize {
        let (tp, experts) = (self.subject.settings.tp(), self.share.expert_ranks);
        let mut common = (tp, experts);
        while common.1 > 0 {
            common = (common.1, common.0 % common.1);
        }
        tp / common.0 * experts
    }

    pub fn list(&self, ranks: usize) -> List {
        self.saved.list(ranks)
    }

    pub fn figures(&self, ranks: usize) -> Result<Figures, ScaleError> {
        let hosts = self.hosts(ranks);
        let settings = Settings {
            mesh: DeviceMesh::new(hosts.tp, ranks / hosts.tp)?,
            ..self.subject.settings
        };
        let memory = Memory::of(&self.share, &settings, self.subject.place);
        let (meeting, joining) = (store::meeting(ranks), store::all_joining(&hosts));
        let connections = hosts.connections() as u64;
        let here = ranks.min(hosts.each) as u64;
        let over_tcp = |way| matches!(way, Way::Tcp { .. });
        let list = self.list(ranks);
        Ok(Figures {
            hosts,
            meeting,
            joining,
            store_s: store::thread_s(store::starting(&hosts), ranks),
            to_all: hosts.connections_to_all() as u64,
            connections,
            rings: hosts.largest_by(over_tcp, |size| ring_buffers(size) as usize) as u64,
            descriptors: open_files(&hosts, false),
            descriptors_of_first: open_files(&hosts, true),
            descriptors_asked: descriptors_asked(ranks),
            watched: here * hosts.watched() as u64,
            // What NCCL makes of them is its own.
            small_to_all: match hosts.wire {
                Wire::Nccl => 0,
                _ => self.small_to_all() * (ranks as u64 - 1),
            },
            small_to_few: match hosts.wire {
                Wire::Nccl => 0,
                _ => self.small_to_few(&settings),
            },
            step: self.step(&settings),
            files: self.saved.files(ranks),
            list,
            written: memory.saving,
            ends: store::ends(ranks),
            // Both moments are two thirds of what is saved, and are cut as all of it is.
            read: memory.moments / 2 * 3,
        })
    }

    /// Of the table at the top of `crates/trainer/src/train_step.rs`, the rows of all ranks, and what they agree on after a step
    /// (`agreement.rs`, beside it).
    fn small_to_all(&self) -> u64 {
        let spreads = self.share.experts > 0 && self.share.expert_ranks > 1;
        2 + u64::from(spreads)
    }

    /// Of the same table, the rows of a few bytes.
    fn small_to_few(&self, settings: &Settings) -> u64 {
        let cuts = self.share.experts > 0 && self.share.expert_ranks == 1;
        let (row, column) = (settings.tp() as u64 - 1, settings.dp() as u64 - 1);
        row + (2 + u64::from(cuts)) * column
    }

    fn step(&self, settings: &Settings) -> Vec<(Group, f64)> {
        let mut sent: Vec<(Group, f64)> = Vec::new();
        for (collective, times) in talk::of_step(&self.share, settings) {
            let members = collective
                .group
                .members(settings, self.share.expert_ranks)
                .count;
            let bytes = links::sent(&collective, members) * times as f64;
            match sent
                .iter_mut()
                .find(|(group, _)| *group == collective.group)
            {
                Some((_, all)) => *all += bytes,
                None => sent.push((collective.group, bytes)),
            }
        }
        sent.sort_by_key(|(group, _)| *group);
        sent.retain(|(_, bytes)| *bytes > 0.0);
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tiny models on hosts of 16 ranks, rows of four: 157 open files of rank 0 and 87 of the others were counted with 64 ranks, and at most
    /// 587 with 256 (docs/plan.md).
    #[test]
    fn open_files_are_as_many_as_64_and_256_real_ranks_had() {
        let files = |ranks: usize| {
            let hosts = Hosts::of_16(ranks);
            [false, true].map(|is_first| open_files(&hosts, is_first))
        };
        assert_eq!(files(64), [87, 157]);
        let [_, first] = files(256);
        assert!(first.abs_diff(587) <= 2, "{first}");
    }

    #[test]
    fn buffers_over_tcp_are_16_mb_at_most_until_there_are_thousands() {
        for members in [2, 64, 256, 1024, 4096] {
            assert!(ring_buffers(members) <= RINGS, "{members}");
        }
        assert_eq!(ring_buffers(8192), 8191 * SMALLEST_RING);
    }
}
