//! Several ranks on a pretended device, as threads: what the host waits for, and what comes of it.

use std::net::TcpListener;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use tandem_comm::{RunSecret, Transport, World, WorldConfig};
use tandem_parallel::{OptimizerState, ParallelError};
use tandem_tensor::Device;
use tandem_tensor::torch::pretend;
use tandem_tensor::torch::recorder::{self, Action, Detail};
use tandem_trainer::{Engine, MicroBatch, StepReport, TrainError};

use crate::{Groups, SEQ, batch, engine_of, step_with};

/// Runs `body` as every rank of a world; each has `device`, which is pretended unless it is the CPU.
fn as_ranks<T: Send>(
    (tp, dp): (usize, usize),
    device: Device,
    body: impl Fn(&Groups) -> T + Sync,
) -> Vec<T> {
    let port = {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listener.local_addr().unwrap().port()
    };
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for rank in 0..tp * dp {
            let (results, body) = (&results, &body);
            scope.spawn(move || {
                let _pretended = device.is_cuda().then(pretend::cuda);
                let world = World::connect(&WorldConfig {
                    rank,
                    world_size: tp * dp,
                    local_rank: rank,
                    local_world_size: tp * dp,
                    master_addr: "127.0.0.1".to_owned(),
                    master_port: port,
                    master_fd: None,
                    timeout: Duration::from_secs(60),
                    network_interface: None,
                    transport: Transport::Tcp,
                    secret: RunSecret::guessable("a test"),
                });
                let world = world.unwrap();
                let groups = Groups::of(&world, (tp, dp), device);
                let result = body(&groups);
                results.lock().unwrap().push((rank, result));
            });
        }
    });
    let mut results = results.into_inner().unwrap();
    results.sort_by_key(|(rank, _)| *rank);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Two micro-batches of a column, of which the last has fewer targets in each.
fn batches(column: u64, step: u64, device: Device) -> Vec<MicroBatch> {
    let batches = (0..2).map(|index| batch(step + 10 * index + 100 * column, column, device));
    batches.collect()
}

/// Some steps of a model on all ranks, and where the hosts wait in the last.
fn train(case: &str, mesh: (usize, usize), device: Device) -> Vec<(Vec<StepReport>, Vec<String>)> {
    as_ranks(mesh, device, |groups| {
        let mut engine = engine_of(case, groups);
        let column = engine.coords.dp_rank as u64;
        let mut step = |number| {
            let batches = batches(column, number, device);
            let (report, calls) = recorder::record(Detail::Counts, || {
                step_with(&mut engine, &batches, number).unwrap()
            });
            let last = calls
                .iter()
                .rposition(|call| call.name == "aten::_fused_adamw_");
            let waits = calls.iter().enumerate().filter_map(|(place, call)| {
                let Action::ToHost(line) = call.action else {
                    return None;
                };
                let order = match last {
                    Some(last) if place > last => "after the update",
                    _ => "before the update",
                };
                Some(format!("{order}, {}", line.file()))
            });
            (report, waits.collect())
        };
        let (first, _) = step(1);
        let (second, _) = step(2);
        let (third, waits) = step(3);
        (vec![first, second, third], waits)
    })
}

#[test]
fn the_host_waits_once_at_the_end_whatever_the_mesh() {
    for (case, mesh) in [
        ("qwen2_tied", (2, 1)),
        ("qwen2_tied", (1, 2)),
        ("qwen2_untied", (2, 2)),
        ("gemma2_gqa3", (1, 2)),
    ] {
        let host = train(case, mesh, Device::Cpu);
        let device = train(case, mesh, Device::Cuda(0));
        for (rank, ((host, _), (device, waits))) in host.iter().zip(&device).enumerate() {
            assert_eq!(waits.len(), 1, "{case}, rank {rank} of {mesh:?}: {waits:?}");
            assert!(waits[0].starts_with("after the update"), "{waits:?}");
            assert!(waits[0].ends_with("outcome.rs"), "{waits:?}");
            for (a, b) in host.iter().zip(device) {
                assert_eq!(a.n_tokens, b.n_tokens);
                for (what, a, b) in [
                    ("loss", a.loss, b.loss),
                    ("gradient norm", a.grad_norm, b.grad_norm),
                ] {
                    let is_close = (a - b).abs() <= 2e-4 * a.abs();
                    assert!(is_close, "{case}, {mesh:?}: {what}: {a} and {b}");
                }
            }
        }
    }
}

/// The balance of experts depends on how many real tokens the global batch has.
#[test]
fn a_mixture_reads_the_size_of_the_batch_with_its_loads() {
    let mesh = (1, 2);
    let host = train("qwen3_moe_aux", mesh, Device::Cpu);
    let device = train("qwen3_moe_aux", mesh, Device::Cuda(0));
    for ((host, _), (device, _)) in host.iter().zip(&device) {
        for (a, b) in host.iter().zip(device) {
            let aux = |report: &StepReport| report.experts.as_ref().unwrap().aux_loss;
            assert!((aux(a) - aux(b)).abs() <= 2e-4 * aux(a), "{a:?} and {b:?}");
            assert!((a.loss - b.loss).abs() <= 2e-4 * a.loss, "{a:?} and {b:?}");
        }
    }
}

/// All that a rank keeps of its model, as bits.
fn state(engine: &Engine) -> Vec<Vec<u32>> {
    let states = [
        OptimizerState::Param,
        OptimizerState::ExpAvg,
        OptimizerState::ExpAvgSq,
    ];
    let mut all = Vec::new();
    for unit in &engine.units {
        for state in states {
            for piece in unit.pieces(state) {
                let values = piece.values.to_vec::<f32>();
                all.push(values.into_iter().map(f32::to_bits).collect());
            }
        }
    }
    all
}

/// A second step that must fail on a device, with the batches that `prepare` makes: its errors, and on all ranks nothing is changed.
fn fails(
    mesh: (usize, usize),
    prepare: impl Fn(&mut Engine, Device) -> Vec<MicroBatch> + Sync,
) -> Vec<TrainError> {
    let device = Device::Cuda(0);
    as_ranks(mesh, device, |groups| {
        let mut engine = engine_of("qwen2_tied", groups);
        let column = engine.coords.dp_rank as u64;
        step_with(&mut engine, &batches(column, 1, device), 1).unwrap();
        let batches = prepare(&mut engine, device);
        let before = state(&engine);
        let error = step_with(&mut engine, &batches, 2).unwrap_err();
        assert!(state(&engine) == before, "changed in spite of {error}");
        error
    })
}

#[test]
fn ranks_of_a_row_that_see_different_batches_change_nothing_on_a_device() {
    let errors = fails((2, 1), |engine, device| {
        vec![batch(engine.world.rank() as u64, 0, device)]
    });
    for error in errors {
        let TrainError::Parallel(ParallelError::DifferentBatches {
            step,
            ranks,
            hashes,
        }) = &error
        else {
            panic!("{error}");
        };
        assert_eq!((*step, ranks.as_slice()), (2, &[0, 1][..]));
        assert_eq!(hashes.as_slice(), [0, 1]);
    }
    // Of two rows one is right; it must not go on alone.
    let errors = fails((2, 2), |engine, device| {
        let rank = engine.world.rank() as u64;
        vec![batch(if rank < 2 { rank } else { 7 }, 0, device)]
    });
    for (rank, error) in errors.iter().enumerate() {
        let is_told = matches!(
            error,
            TrainError::Parallel(ParallelError::DifferentBatches { .. })
        );
        assert_eq!(is_told, rank < 2, "rank {rank}: {error}");
    }
}

#[test]
fn a_batch_without_targets_changes_nothing_on_a_device() {
    let errors = fails((1, 2), |_, device| {
        let ids: Vec<i64> = (0..SEQ as i64).collect();
        vec![MicroBatch::new(&ids, &[-100; SEQ], SEQ, 0, device)]
    });
    for error in errors {
        assert!(
            matches!(error, TrainError::NoTargets { step: 2 }),
            "{error}"
        );
    }
}

#[test]
fn a_number_that_is_none_changes_nothing_on_a_device() {
    let errors = fails((1, 2), |engine, device| {
        let column = engine.coords.dp_rank as u64;
        let flat = engine.units[1].unshard(&mut engine.pool).unwrap();
        if column == 1 {
            flat.narrow(0, 100, 1).fill_(f64::NAN);
        }
        batches(column, 2, device)
    });
    for error in errors {
        let TrainError::NotFinite { step, ranks, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!((*step, ranks.as_slice()), (2, &[1][..]), "{error}");
    }
}
