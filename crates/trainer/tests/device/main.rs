//! The training step on a device that is not the host's memory: a pretended one (`tandem_tensor::torch::pretend`), which takes
//! every decision that a CUDA device takes. An access of the host to its tensors panics, in debug builds.

// Clippy's exception for tests does not reach the functions that tests share.
#![allow(clippy::unwrap_used)]

mod ranks;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tandem_comm::{ProcessGroup, SingleGroup, World};
use tandem_data::Rows;
use tandem_mesh::DeviceMesh;
use tandem_model::{ModelConfig, ModuleTree, Recompute};
use tandem_parallel::{Fsdp, Precision, RandomInit};
use tandem_tensor::torch::pretend;
use tandem_tensor::torch::recorder::{self, Action, Call, Detail};
use tandem_tensor::{Device, Kind, Tensor};
use tandem_trainer::{
    Engine, EngineSetup, EvalSet, MicroBatch, StepReport, TrainError, UpdateRule, evaluate,
    train_step,
};

const SEQ: usize = 32;
const STEPS: u64 = 3;

/// Where a rank is, and the groups that it is in.
pub struct Groups {
    mesh: (usize, usize),
    device: Device,
    world: Arc<dyn ProcessGroup>,
    tp: Arc<dyn ProcessGroup>,
    dp: Arc<dyn ProcessGroup>,
}

impl Groups {
    fn alone(device: Device) -> Self {
        let alone = |name| -> Arc<dyn ProcessGroup> { Arc::new(SingleGroup::new(name, 0, device)) };
        Self {
            mesh: (1, 1),
            device,
            world: alone("world"),
            tp: alone("tp"),
            dp: alone("dp"),
        }
    }

    pub fn of(world: &World, (tp, dp): (usize, usize), device: Device) -> Self {
        let (mesh, rank) = (DeviceMesh::new(tp, dp).unwrap(), world.rank());
        let group = |name, ranks: &[usize]| world.new_device_group(name, ranks, device).unwrap();
        let everyone: Vec<usize> = (0..world.size()).collect();
        Self {
            mesh: (tp, dp),
            device,
            world: group("world", &everyone),
            tp: group("tp", &mesh.tp_group(rank)),
            dp: group("dp", &mesh.dp_group(rank)),
        }
    }
}

fn engine(case: &str, precision: Precision, device: Device) -> Engine {
    engine_in(case, precision, &Groups::alone(device))
}

/// In fp32.
pub fn engine_of(case: &str, groups: &Groups) -> Engine {
    engine_in(case, Precision::fp32(), groups)
}

fn engine_in(case: &str, precision: Precision, groups: &Groups) -> Engine {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests-data/golden");
    let config = ModelConfig::from_dir(&folder.join(case)).unwrap();
    let strategy = Fsdp {
        precision,
        reshard_after_forward: true,
    };
    let mut engine = Engine::new(EngineSetup {
        trains: true,
        lora: None,
        strategy: strategy.strategy(&ModuleTree::new(&config)),
        mesh: DeviceMesh::new(groups.mesh.0, groups.mesh.1).unwrap(),
        world: groups.world.clone(),
        tp: groups.tp.clone(),
        dp: groups.dp.clone(),
        experts: None,
        device: groups.device,
        seq: SEQ,
        sequence_parallel: false,
        recompute: Recompute::Light,
        head_chunk_rows: 48,
        config,
    })
    .unwrap();
    let weights = RandomInit {
        seed: 1,
        initializer_range: engine.config.initializer_range,
    };
    engine.load(&weights).unwrap();
    engine.set_balance(0.02);
    engine
}

/// Two rows that depend on `seed`, without the first `ignored` targets of each.
pub fn batch(seed: u64, ignored: u64, device: Device) -> MicroBatch {
    let ids: Vec<i64> = (0..2 * SEQ as u64)
        .map(|i| ((i * 7 + seed * 13) % 100) as i64)
        .collect();
    let mut labels = ids.clone();
    for row in labels.chunks_mut(SEQ) {
        row[..=ignored as usize].fill(-100);
    }
    // The last tokens of a row are padding, which only the experts' balance asks for.
    let mask: Vec<u8> = (0..2 * SEQ).map(|i| u8::from(i % SEQ < SEQ - 5)).collect();
    MicroBatch::new(&ids, &labels, SEQ, seed, device).with_mask(&mask)
}

/// A step with these batches.
pub fn step_with(
    engine: &mut Engine,
    batches: &[MicroBatch],
    step: u64,
) -> Result<StepReport, TrainError> {
    train_step(engine, batches, 1e-3, &UpdateRule::USUAL, step)
}

fn step(engine: &mut Engine, step: u64, device: Device) -> StepReport {
    let batch = || batch(step, 0, device);
    step_with(engine, &[batch(), batch()], step).unwrap()
}

fn train(case: &str, precision: Precision, device: Device) -> Vec<StepReport> {
    let mut engine = engine(case, precision, device);
    (1..=STEPS)
        .map(|number| step(&mut engine, number, device))
        .collect()
}

/// 0 where there are no experts.
fn aux_loss(report: &StepReport) -> f64 {
    report.experts.as_ref().map_or(0.0, |it| it.aux_loss)
}

/// Trains on both and compares. The kernels of the CPU and libtorch's operators round differently.
fn compare(case: &str, precision: Precision, tolerance: f64) {
    let host = train(case, precision, Device::Cpu);
    let _pretended = pretend::cuda();
    let device = train(case, precision, Device::Cuda(0));
    for (number, (host, device)) in host.iter().zip(&device).enumerate() {
        for (what, a, b) in [
            ("loss", host.loss, device.loss),
            ("gradient norm", host.grad_norm, device.grad_norm),
            ("auxiliary loss", aux_loss(host), aux_loss(device)),
        ] {
            println!("{case}, step {}: {what} {a} and {b}", number + 1);
            assert!(
                (a - b).abs() <= tolerance * a.abs(),
                "{case}: {what}: {a} and {b}"
            );
        }
    }
}

/// One of each kind of attention, norm, activation and block.
const CASES: [&str; 6] = [
    "qwen2_tied",
    "qwen3_qknorm",
    "gemma2_gqa3",
    "granite",
    "olmo2",
    "mixtral",
];

#[test]
fn a_step_on_a_device_computes_what_the_cpu_does() {
    for case in CASES {
        compare(case, Precision::fp32(), 2e-4);
    }
}

#[test]
fn so_does_one_in_half_precision() {
    // bf16 has 8 bits; what differs are roundings in sums that the fused kernels keep in fp32. Experts of the second
    // mixture are too narrow for products by groups, so its host chooses.
    for case in ["qwen2_tied", "mixtral", "qwen3_moe_aux"] {
        compare(case, Precision::bf16(), 3e-2);
    }
}

/// Where the host waits in a step: for the loss and the gradient's norm, which are read together when all is under way.
#[test]
fn the_host_waits_for_a_step_once_however_large_it_is() {
    waits_once("qwen2_tied");
}

/// Its router chooses on the device, and what its experts got is read with the loss. With two micro-batches there is a pass ahead.
#[test]
fn it_waits_once_for_a_mixture_too() {
    let kinds = waits_once("mixtral");
    // Two layers and micro-batches: two products ahead, two forward, two for gradients of rows, two for those of weights.
    assert_eq!(kinds["aten::_grouped_mm"], 2 * 2 * 8);
}

/// With several micro-batches or layers; the number of calls of each operator.
fn waits_once(case: &str) -> BTreeMap<String, usize> {
    let device = Device::Cuda(0);
    let _pretended = pretend::cuda();
    let mut engine = engine(case, Precision::bf16(), device);
    step(&mut engine, 1, device);
    let (_, recorded) = recorder::record(Detail::Counts, || step(&mut engine, 2, device));
    let mut kinds = BTreeMap::<&str, (usize, u64)>::new();
    for call in &recorded {
        let kind = kinds.entry(&call.name).or_default();
        kind.0 += 1;
        kind.1 += call.bytes();
    }
    for (operator, (calls, bytes)) in &kinds {
        println!("{operator}: {calls} calls, {bytes} bytes");
    }
    let waits: Vec<(usize, String)> = recorded
        .iter()
        .enumerate()
        .filter_map(|(place, call)| match call.action {
            Action::ToHost(line) => Some((place, line.to_string())),
            Action::Compute | Action::ToDevice => None,
        })
        .collect();
    let [(place, line)] = waits.as_slice() else {
        panic!("{waits:?}");
    };
    // Of each of two micro-batches the tokens, targets and padding, which are made outside of a step, and nothing else.
    let copies = recorded.iter().filter(|it| it.action == Action::ToDevice);
    assert_eq!(copies.count(), 2 * 3);
    assert!(line.contains("outcome.rs"), "{line}");
    // It is the end: nothing is left to be computed.
    let is_update = |call: &Call| call.name == "aten::_fused_adamw_";
    assert!(recorded.len() > 100, "only {} operators", recorded.len());
    assert_eq!(*place, recorded.len() - 1);
    assert!(recorded.iter().any(is_update));
    let counts = kinds.into_iter();
    counts
        .map(|(name, (calls, _))| (name.to_owned(), calls))
        .collect()
}

/// Rows to evaluate.
struct Numbers;

impl Rows for Numbers {
    fn len(&self) -> u64 {
        3
    }

    fn seq_length(&self) -> usize {
        SEQ
    }

    fn fill(&self, sample: u64, input_ids: &mut [i64], labels: &mut [i64], mask: &mut [u8]) {
        for (at, id) in input_ids.iter_mut().enumerate() {
            *id = (at as i64 * 7 + sample as i64 * 13) % 100;
        }
        labels.copy_from_slice(input_ids);
        mask.fill(1);
    }
}

/// Batches of a loader are on their way to a device while others are computed: who reads one before it has arrived is noticed.
#[test]
fn batches_of_a_loader_arrive_before_they_are_read() {
    let loss = |device| {
        let mut engine = engine("qwen2_tied", Precision::fp32(), device);
        let set = EvalSet {
            rows: Arc::new(Numbers),
            batch_size: 2,
            max_batches: 0,
        };
        let result = evaluate(&mut engine, &set, 1, &mut |_| Ok(true)).unwrap();
        result.expect("nobody stops it").eval_loss
    };
    let host = loss(Device::Cpu);
    let _pretended = pretend::cuda();
    let device = loss(Device::Cuda(0));
    assert!((host - device).abs() <= 2e-4 * host, "{host} and {device}");
}

#[test]
#[should_panic(expected = "the host cannot access")]
#[cfg(debug_assertions)]
fn an_access_of_the_host_is_noticed() {
    let _pretended = pretend::cuda();
    let there = Tensor::zeros([4], (Kind::Float, Device::Cuda(0)));
    let _address = there.host_ptr();
}
