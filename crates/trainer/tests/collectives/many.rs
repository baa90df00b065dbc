//! What `tandem_plan` reckons of many ranks, against what ranks do: the store's messages, the buffers of groups over TCP, and the files
//! and the list of a checkpoint.

use std::net::TcpListener;
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::Duration;

use tandem_checkpoint::store::{LocalStore, MAX_READ_BYTES};
use tandem_checkpoint::{NewCheckpoint, Piece, Role, TrainState, commit, write_shard};
use tandem_comm::testing::{StoreTraffic, ring_bytes, store_traffic};
use tandem_comm::{RunSecret, Transport, World, WorldConfig};
use tandem_mesh::DeviceMesh;
use tandem_model::ModuleTree;
use tandem_parallel::{OptimizerState, Plan, TpSlices};
use tandem_plan::scale::{Hosts, LARGEST_LIST, Saved, Wire, ring_buffers, starting};

use crate::step::{self, Case};
use crate::{as_ranks, cases};

/// What rank 0's store has heard and said when all of `ranks` ranks, rows of `tp`, have met and made the groups of a run.
fn said(ranks: usize, tp: usize, transport: Transport) -> StoreTraffic {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let mesh = DeviceMesh::new(tp, ranks / tp).unwrap();
    let everyone: Vec<usize> = (0..ranks).collect();
    let (together, found) = (Barrier::new(ranks), Mutex::new(None));
    let rank = |rank: usize| {
        let world = World::connect(&WorldConfig {
            rank,
            world_size: ranks,
            local_rank: rank,
            local_world_size: ranks,
            master_addr: "127.0.0.1".to_owned(),
            master_port: port,
            master_fd: None,
            timeout: Duration::from_secs(300),
            network_interface: None,
            transport,
            secret: RunSecret::guessable("a test"),
        })
        .unwrap();
        let group = |name: &str, ranks: &[usize]| world.new_group(name, ranks).unwrap();
        // In the order of a run.
        let groups = [
            group("world", &everyone),
            group("tp", &mesh.tp_group(rank)),
            group("dp", &mesh.dp_group(rank)),
        ];
        together.wait();
        if let Some(traffic) = store_traffic(&world) {
            *found.lock().unwrap() = Some(traffic);
        }
        together.wait();
        drop(groups);
    };
    thread::scope(|scope| {
        for number in 0..ranks {
            let rank = &rank;
            scope.spawn(move || rank(number));
        }
    });
    found.into_inner().unwrap().expect("rank 0 has the store")
}

#[test]
fn the_store_hears_and_says_what_is_calculated() {
    for (ranks, tp) in [(2, 1), (8, 2), (48, 4)] {
        for (transport, wire) in [(Transport::Auto, Wire::Host), (Transport::Tcp, Wire::Tcp)] {
            let hosts = Hosts {
                ranks,
                each: ranks,
                tp,
                experts: 1,
                wire,
            };
            let (real, planned) = (said(ranks, tp, transport), starting(&hosts));
            let which = format!("{ranks} ranks, {transport:?}: {real:?}, {planned:?}");
            assert_eq!(
                (real.received, real.sent),
                (planned.received, planned.sent),
                "{which}"
            );
            // Processes have fewer digits here than they may have, and the address of this host far fewer.
            let least = match transport {
                Transport::Tcp => 0.7,
                _ => 0.9,
            };
            for (real, planned) in [
                (real.received_bytes, planned.received_bytes),
                (real.sent_bytes, planned.sent_bytes),
            ] {
                let of_planned = real as f64 / planned as f64;
                assert!((least..=1.0).contains(&of_planned), "{which}");
            }
        }
    }
}

#[test]
fn buffers_over_tcp_are_those_that_are_calculated() {
    for members in [2, 3, 64, 1000, 1024, 10_000] {
        let rings = ring_bytes(members, usize::MAX >> 1) * (members - 1);
        assert_eq!(ring_buffers(members), rings as u64, "{members}");
    }
}

/// The JSON of the list has as many bytes as is calculated, but for so small a part: of places in files, only their digits on average.
const MARGIN: f64 = 0.03;

#[test]
fn a_checkpoints_files_and_list_are_those_that_are_calculated() {
    tandem_tensor::device::set_threads(1);
    assert_eq!(LARGEST_LIST, MAX_READ_BYTES);
    // Of each model and mesh, one level: who saves what is the same at all of them.
    let mut saved: Vec<Case> = Vec::new();
    for case in cases() {
        let same = |it: &Case| {
            let key = |it: &Case| (it.model, it.tp, it.dp, it.ep, it.lora);
            key(it) == key(&case)
        };
        if !saved.iter().any(same) {
            saved.push(case);
        }
    }
    assert!(saved.len() > 12, "{}", saved.len());
    let folder = tempfile::tempdir().unwrap();
    let reports = Mutex::new(Vec::new());
    as_ranks(4, |world| {
        for (number, case) in saved.iter().enumerate() {
            let ranks = case.tp * case.dp;
            if world.rank() >= ranks {
                continue;
            }
            let engine = case.engine(world);
            let store = LocalStore::new(folder.path());
            let name = number.to_string();
            let states = [
                (OptimizerState::Param, Role::Param),
                (OptimizerState::ExpAvg, Role::ExpAvg),
                (OptimizerState::ExpAvgSq, Role::ExpAvgSq),
            ];
            let mut owned = Vec::new();
            for (state, role) in states {
                for unit in engine.units.iter().filter(|unit| unit.is_trained()) {
                    let pieces = unit.pieces(state).into_iter();
                    owned.extend(pieces.map(|it| (role.clone(), it)));
                }
            }
            let values: Vec<Vec<f32>> = owned
                .iter()
                .map(|(_, piece)| piece.values.to_vec::<f32>())
                .collect();
            let pieces = owned
                .iter()
                .zip(&values)
                .map(|((role, piece), data)| Piece {
                    tensor: &piece.tensor,
                    role: role.clone(),
                    slice: piece.slice.clone(),
                    data,
                });
            let pieces: Vec<Piece<'_>> = pieces.collect();
            let report = write_shard(&store, &name, world.rank(), &pieces).unwrap();
            reports.lock().unwrap().push(report);
            engine.world.barrier().unwrap().wait().unwrap();
            if world.rank() == 0 {
                let reports = std::mem::take(&mut *reports.lock().unwrap());
                let new = NewCheckpoint::in_folder(&name);
                let state = TrainState::default();
                let list = commit(&store, &new, &engine.tensor_specs(), reports, state).unwrap();
                let bytes = std::fs::metadata(folder.path().join(&name).join("manifest.json"));
                let tensors = list.tensors.values().flat_map(|it| it.roles.values());
                let pieces: usize = tensors.map(Vec::len).sum();
                let real = (list.files.len() as u64, pieces as u64, bytes.unwrap().len());
                check(case, real);
            }
            engine.world.barrier().unwrap().wait().unwrap();
        }
    });
}

fn check(case: &Case, (files, pieces, bytes): (u64, u64, u64)) {
    let config = case.config();
    let tree = ModuleTree::new(&config);
    let plan = Plan::declared(&tree).with_spread_experts(&config, &tree, case.ep);
    let slices = TpSlices::new(&config, case.tp).unwrap();
    let adapters = ModuleTree::adapters(&config, &step::adapters(&config)).unwrap();
    let tree = if case.lora { &adapters } else { &tree };
    let saved = Saved::new(&config, &plan.unwrap(), &slices, tree);
    let ranks = case.tp * case.dp;
    let list = saved.list(ranks);
    assert_eq!(saved.files(ranks), files, "{case:?}");
    assert_eq!(list.pieces, pieces, "{case:?}");
    // The state of a real run has its flags, two kilobytes; here there is none.
    let without_state = list.bytes as f64 - 2000.0 + 500.0;
    let off = without_state / bytes as f64 - 1.0;
    assert!(off.abs() < MARGIN, "{case:?}: {list:?}, {bytes} bytes");
}
