//! How fast collectives are, beside a plain copy on the same machine.
//!
//! `cargo bench -p tandem-comm` runs 2 and 4 processes over shared memory and TCP. For every collective and size it prints
//! the median and the best time of one operation, the size of the whole tensor divided by the best, and how that compares with
//! one process copying as many bytes (best against best: on a busy machine medians say more about the others). Every element of an all-reduce over 2 ranks is read and written about three times, so a ratio of
//! 0.3 is what a copy-bound implementation can reach when every rank has a core and bandwidth of its own.

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use tandem_comm::{ProcessGroup, ReduceOp, Result, Transport, Work, World, WorldConfig};
use tandem_tensor::{Device, Kind, Tensor};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const SIZES: [usize; 7] = [
    4 * KIB,
    32 * KIB,
    256 * KIB,
    MIB,
    4 * MIB,
    16 * MIB,
    64 * MIB,
];

const RANK: &str = "TANDEM_BENCH_RANK";

type Operation = fn(&dyn ProcessGroup, &Tensor, &[usize]) -> Result<Work>;

const OPERATIONS: [(&str, Operation); 3] = [
    ("all_reduce", |group, tensor, _| {
        group.all_reduce(tensor, ReduceOp::Sum)
    }),
    ("all_gather", |group, tensor, counts| {
        group.all_gather_into(tensor, &own_part(group, tensor, counts), counts)
    }),
    ("reduce_scatter", |group, tensor, counts| {
        let own = own_part(group, tensor, counts);
        group.reduce_scatter_into(&own, tensor, counts, ReduceOp::Sum)
    }),
];

fn main() -> Result<()> {
    if let Ok(rank) = std::env::var(RANK) {
        return run_rank(rank.parse().unwrap_or(0));
    }
    println!("one process copying (memcpy):");
    for bytes in SIZES {
        let [median, best] = copies(bytes);
        println!(
            "{:>10}  median {:>9}  best {:>9}  {:6.2} GB/s",
            size_text(bytes),
            time_text(median),
            time_text(best),
            rate(bytes, best)
        );
    }
    for transport in ["shm", "tcp"] {
        for ranks in [2, 4] {
            run_ranks(transport, ranks);
        }
    }
    Ok(())
}

fn run_ranks(transport: &str, ranks: usize) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("\n{ranks} ranks over {transport}, {cores} cores:");
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .expect("a free port");
    let children: Vec<_> = (0..ranks)
        .map(|rank| {
            Command::new(std::env::current_exe().expect("this binary has a path"))
                .env(RANK, rank.to_string())
                .env("TANDEM_BENCH_SIZE", ranks.to_string())
                .env("TANDEM_BENCH_TRANSPORT", transport)
                .env("TANDEM_BENCH_PORT", port.to_string())
                .env("OMP_NUM_THREADS", "1")
                .spawn()
                .expect("a rank starts")
        })
        .collect();
    for mut child in children {
        let status = child.wait().expect("a rank can be waited for");
        assert!(status.success(), "a rank failed: {status}");
    }
}

fn run_rank(rank: usize) -> Result<()> {
    let number = |name: &str| {
        let text = std::env::var(name).unwrap_or_default();
        text.parse::<usize>().unwrap_or(0)
    };
    let size = number("TANDEM_BENCH_SIZE");
    let world = World::connect(&WorldConfig {
        rank,
        world_size: size,
        local_rank: rank,
        local_world_size: size,
        master_addr: "127.0.0.1".to_owned(),
        master_port: number("TANDEM_BENCH_PORT") as u16,
        master_fd: None,
        timeout: Duration::from_secs(60),
        network_interface: None,
        transport: match std::env::var("TANDEM_BENCH_TRANSPORT").as_deref() {
            Ok("tcp") => Transport::Tcp,
            _ => Transport::Shm,
        },
    })?;
    let ranks: Vec<usize> = (0..size).collect();
    let group = world.new_group("bench", &ranks)?;
    for (name, operation) in OPERATIONS {
        for kind in [Kind::Float, Kind::BFloat16] {
            if kind == Kind::BFloat16 && name != "all_reduce" {
                continue;
            }
            for bytes in SIZES {
                let [median, best] = operations(&*group, operation, kind, bytes)?;
                if rank == 0 {
                    let [_, copying] = copies(bytes);
                    println!(
                        "{:>15} {:>8} {:>10}  median {:>9}  best {:>9}  {:6.2} GB/s  {:5.2} x memcpy",
                        name,
                        format!("{kind:?}").to_lowercase(),
                        size_text(bytes),
                        time_text(median),
                        time_text(best),
                        rate(bytes, best),
                        copying.as_secs_f64() / best.as_secs_f64(),
                    );
                    // Lines of a benchmark that is still running should be seen.
                    let _shown = std::io::stdout().flush();
                }
                group.barrier()?.wait()?;
            }
        }
    }
    Ok(())
}

fn operations(
    group: &dyn ProcessGroup,
    operation: Operation,
    kind: Kind,
    bytes: usize,
) -> Result<[Duration; 2]> {
    let len = bytes / if kind == Kind::Float { 4 } else { 2 };
    let tensor = Tensor::ones([len as i64], (kind, Device::Cpu));
    let counts = vec![len / group.size(); group.size()];
    let repeats = repeats(bytes);
    let mut times = Vec::new();
    for repeat in 0..repeats + 2 {
        let begin = Instant::now();
        operation(group, &tensor, &counts)?.wait()?;
        if repeat >= 2 {
            times.push(begin.elapsed());
        }
    }
    Ok(median_and_best(times))
}

fn copies(bytes: usize) -> [Duration; 2] {
    let source = vec![1u8; bytes];
    let mut target = vec![0u8; bytes];
    let times = (0..repeats(bytes))
        .map(|_| {
            let begin = Instant::now();
            target.copy_from_slice(std::hint::black_box(&source));
            std::hint::black_box(&mut target);
            begin.elapsed()
        })
        .collect();
    median_and_best(times)
}

fn median_and_best(mut times: Vec<Duration>) -> [Duration; 2] {
    times.sort();
    [times[times.len() / 2], times[0]]
}

fn own_part(group: &dyn ProcessGroup, tensor: &Tensor, counts: &[usize]) -> Tensor {
    let start: usize = counts[..group.rank()].iter().sum();
    tensor.narrow(0, start as i64, counts[group.rank()] as i64)
}

fn repeats(bytes: usize) -> usize {
    (128 * MIB / bytes).clamp(11, 1000)
}

fn rate(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() / 1e9
}

fn size_text(bytes: usize) -> String {
    match bytes {
        bytes if bytes >= MIB => format!("{} MiB", bytes / MIB),
        bytes => format!("{} KiB", bytes / KIB),
    }
}

fn time_text(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    match micros {
        micros if micros >= 1e4 => format!("{:.1} ms", micros / 1e3),
        micros => format!("{micros:.1} us"),
    }
}
