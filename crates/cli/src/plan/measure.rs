//! `tandem plan --measure`: what this machine's devices reach when all of them compute at once, as a device file.

use std::ffi::OsString;
use std::time::Instant;

use tandem_comm::{ReduceOp, Transport, all_gather_numbers};
use tandem_launch::env::WorkerEnv;
use tandem_launch::{exit_code, say};
use tandem_mesh::DeviceMesh;
use tandem_plan::{Device, Link};
use tandem_run::environment::Environment;
use tandem_run::failure::{Failure, Outcome};
use tandem_run::ranks::Ranks;
use tandem_run::spec::{Dtype, Network};
use tandem_tensor::attention::{self, AttentionSpec};
use tandem_tensor::device::synchronize;
use tandem_tensor::torch::cuda;
use tandem_tensor::{Accumulate, DeviceChoice, Kind, Tensor, linear, memory};
use tandem_trainer::gemm_floor::{self, LinearShape, Products};
use tandem_trainer::memory_floor;

use super::PlanArgs;
use crate::measuring::{leave, run_workers, spec};

/// Of each measurement, the best counts.
const REPEATS: usize = 5;

/// Elements of the tensor that collectives are measured with, fp32.
const ELEMENTS: usize = 4 << 20;

/// Starts a worker for each device, and prints what they measured.
pub(super) fn run(args: &PlanArgs, line: &[OsString]) -> Outcome<i32> {
    let mesh = DeviceMesh::new(args.devices, 1).map_err(|e| Failure::usage(e.to_string()))?;
    let scratch = tempfile::tempdir().map_err(Failure::other)?;
    let (ranks, place) = (mesh.world_size(), scratch.path());
    match run_workers(ranks, DeviceChoice::Auto, Transport::Auto, line, place)? {
        Ok(text) => say!("{text}")?,
        Err(code) => return Ok(code),
    }
    Ok(exit_code::OK)
}

/// What one worker does.
pub(super) fn run_worker(
    args: &PlanArgs,
    env: &WorkerEnv,
    environment: &Environment,
) -> Outcome<()> {
    let spec = spec(args.devices, DeviceChoice::Auto, Dtype::Bf16)?;
    let ranks = Ranks::join(env, &spec, &Network::default())?;
    let device = measured(&ranks, args.devices)?;
    if env.rank == 0 {
        let text = serde_json::to_string_pretty(&device).map_err(Failure::other)?;
        leave(environment, &text)?;
    }
    ranks.barrier()
}

/// Of each number the slowest rank's, since all wait for it.
fn measured(ranks: &Ranks, devices: usize) -> Outcome<Device> {
    let here = ranks.device;
    let all = |own: f64| -> Outcome<Vec<f64>> {
        let all = all_gather_numbers(ranks.everyone.as_ref(), &[own], here);
        Ok(all.map_err(Failure::comm)?.concat())
    };
    let slowest =
        |own: f64| -> Outcome<f64> { Ok(all(own)?.into_iter().fold(f64::INFINITY, f64::min)) };
    let rate = |kind, sides| -> Outcome<f64> {
        ranks.barrier()?;
        slowest(products(kind, sides, ranks))
    };
    let (bf16, fp32) = (rate(Kind::BFloat16, LONG)?, rate(Kind::Float, LONG)?);
    let short = rate(Kind::BFloat16, SHORT)?;
    ranks.barrier()?;
    // The slowest, as all of these are.
    let operation_s = 1.0 / slowest(1.0 / operation(ranks))?;
    ranks.barrier()?;
    let [forward, backward] = attentions(ranks);
    let (forward, backward) = (slowest(forward)?, slowest(backward)?);
    let a_byte = memory_floor::seconds_per_byte(here, REPEATS, || ranks.barrier())?;
    let bandwidth = slowest(1.0 / a_byte.wall)?;
    let link = match devices {
        1 => Link {
            bandwidth,
            efficiency: 1.0,
            latency_s: 0.0,
        },
        _ => link(ranks, devices)?,
    };
    let own_memory = match here {
        tandem_tensor::Device::Cuda(index) => cuda::memory(index).map(|(_, total)| total as f64),
        tandem_tensor::Device::Cpu => {
            memory::available_bytes().map(|bytes| bytes as f64 / devices as f64)
        }
    };
    let is_cpu = here == tandem_tensor::Device::Cpu;
    let device = Device {
        name: tandem_tensor::device::name(here).unwrap_or_else(|| "measured cpu".to_owned()),
        cpu: is_cpu,
        memory_bytes: slowest(own_memory.unwrap_or(f64::MAX))?,
        bf16_flops: bf16,
        fp32_flops: fp32,
        product_efficiency: 1.0,
        short_side: None,
        attention_efficiency: [forward, backward].map(|rate| (rate / bf16).min(1.0)),
        memory_bandwidth: bandwidth,
        memory_efficiency: 1.0,
        operation_s: operation_s.min(0.9),
        link,
        // One machine has no network; as good as none.
        network: link,
        devices_per_node: devices,
        overlap: if is_cpu { 0.0 } else { 0.9 },
    };
    let short_side = is_cpu.then(|| short_side(&device, short / bf16));
    Ok(Device {
        short_side,
        ..device
    })
}

/// Floating point operations per second of products with sides of these lengths, of different weights in turn.
fn products(kind: Kind, [tokens, inputs, outputs]: [usize; 3], ranks: &Ranks) -> f64 {
    let shape = LinearShape {
        name: "measured",
        tokens,
        inputs,
        outputs,
        count: 256,
        products: Products::ALL,
        from_memory: true,
    };
    let times = gemm_floor::measure(&[shape], kind, ranks.device, REPEATS);
    times.iter().map(gemm_floor::LinearTime::rate).sum()
}

/// The sides of a wide layer's products, and of an expert's.
const LONG: [usize; 3] = [512, 1024, 4096];
const SHORT: [usize; 3] = [64, 512, 384];

/// [`Device::short_side`] of a processor on which products of [`SHORT`] sides reach `part` of the rate of [`LONG`] ones.
fn short_side(device: &Device, part: f64) -> f64 {
    let of = |sides: [usize; 3], side: f64| {
        let device = Device {
            short_side: Some(side),
            ..device.clone()
        };
        device.part_of_short_sides(sides.map(|side| side as f64))
    };
    let (mut low, mut high) = (0.0, 1e3);
    for _ in 0..50 {
        let middle = (low + high) / 2.0;
        match of(SHORT, middle) / of(LONG, middle) > part {
            true => low = middle,
            false => high = middle,
        }
    }
    low
}

/// Seconds that an operation of all threads takes besides its work: of one that has little.
fn operation(ranks: &Ranks) -> f64 {
    const TIMES: usize = 200;
    let ones = |elements: i64| Tensor::ones([elements], (Kind::Float, ranks.device));
    let (a, b) = (ones(64 << 10), ones(64 << 10));
    let add = || linear::store(&a, &b, Accumulate::Add);
    best(ranks, || (0..TIMES).for_each(|_| add())) / TIMES as f64
}

/// Seconds of the best of some runs, after one that warms up.
fn best(ranks: &Ranks, mut run: impl FnMut()) -> f64 {
    let mut once = || {
        let start = Instant::now();
        run();
        synchronize(ranks.device);
        start.elapsed().as_secs_f64()
    };
    once();
    let seconds = (0..REPEATS).map(|_| once());
    seconds.fold(f64::INFINITY, f64::min)
}

/// Floating point operations per second that attention does, forward and backward, over what its mask leaves.
fn attentions(ranks: &Ranks) -> [f64; 2] {
    const SEQ: i64 = 1024;
    const HEADS: i64 = 8;
    const DIM: i64 = 64;
    let filled = |heads: i64| {
        let ones = Tensor::ones([1, SEQ, heads, DIM], (Kind::BFloat16, ranks.device));
        ones * 0.02
    };
    let (q, k, v, d_out) = (filled(HEADS), filled(2), filled(2), filled(HEADS));
    let spec = AttentionSpec {
        scale: 0.125,
        sliding_window: None,
        soft_cap: None,
    };
    let saved = attention::forward(&q, &k, &v, spec, None);
    let forward = best(ranks, || drop(attention::forward(&q, &k, &v, spec, None)));
    let backward = best(ranks, || {
        drop(attention::backward(&d_out, &q, &k, &v, &saved, spec, None));
    });
    let seen = SEQ as f64 * (SEQ + 1) as f64 / 2.0;
    let flops = 4.0 * seen * (HEADS * DIM) as f64;
    [flops / forward, 2.5 * flops / backward]
}

/// What all ranks together find of the way between them, from the sum of a large and of a small tensor.
fn link(ranks: &Ranks, devices: usize) -> Outcome<Link> {
    let sum = |elements: usize| -> Outcome<f64> {
        let tensor = Tensor::ones([elements as i64], (Kind::Float, ranks.device));
        let mut least = f64::INFINITY;
        for _ in 0..=REPEATS {
            ranks.barrier()?;
            let start = Instant::now();
            let work = ranks.everyone.all_reduce(&tensor, ReduceOp::Sum);
            work.and_then(tandem_comm::Work::wait)
                .map_err(Failure::comm)?;
            synchronize(ranks.device);
            least = least.min(start.elapsed().as_secs_f64());
        }
        Ok(least)
    };
    let (large, small) = (sum(ELEMENTS)?, sum(2)?);
    let n = devices as f64;
    let moved = 2.0 * (4 * ELEMENTS) as f64 * (n - 1.0) / n;
    let own = [
        moved / (large - small).max(1e-9),
        small / (2.0 * n.log2().ceil()),
    ];
    let all = all_gather_numbers(ranks.everyone.as_ref(), &own, ranks.device);
    let all = all.map_err(Failure::comm)?;
    let of = |index: usize| all.iter().map(move |own| own[index]);
    Ok(Link {
        bandwidth: of(0).fold(f64::INFINITY, f64::min),
        efficiency: 1.0,
        latency_s: of(1).fold(0.0, f64::max).min(0.9),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_side_is_found_again() {
        let device = Device::processor(1.0, 1e9, 1);
        for side in [0.0, 3.0, 25.0, 200.0] {
            let known = Device {
                short_side: Some(side),
                ..device.clone()
            };
            let part = |sides: [usize; 3]| known.part_of_short_sides(sides.map(|it| it as f64));
            let found = short_side(&device, part(SHORT) / part(LONG));
            assert!(
                (found - side).abs() < 1e-6 * side.max(1.0),
                "{found} {side}"
            );
        }
        // Where short ones are no slower.
        assert!(short_side(&device, 1.1) < 1e-9);
    }
}
