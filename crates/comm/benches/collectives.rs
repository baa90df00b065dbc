//! How fast collectives are, beside a plain copy on the same machine.
//!
//! `cargo bench -p tandem-comm --bench collectives` runs 2 and 4 processes over shared memory and TCP; `-- shm 2` only some. For every collective and size it prints
//! the median and the best time of one operation, the size of the whole tensor divided by the best, and how that compares with
//! one process copying as many bytes meanwhile (best against best: on a busy machine medians say more about the others). Every element of an all-reduce over 2 ranks is read and written about three times, so a ratio of
//! 0.3 is what a copy-bound implementation can reach when every rank has a core and bandwidth of its own.

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use tandem_comm::{ProcessGroup, ReduceOp, Result, RunSecret, Transport, Work, World, WorldConfig};
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

/// Rounds that are not counted.
const WARM_UP: usize = 3;

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
    let words: Vec<String> = std::env::args().skip(1).collect();
    // Cargo adds flags of its own.
    let wanted = |choices: &[String], word: &str| {
        let named: Vec<&String> = words.iter().filter(|word| choices.contains(word)).collect();
        named.is_empty() || named.iter().any(|named| *named == word)
    };
    let (transports, sizes) = (["shm", "tcp"], ["2", "4"]);
    for transport in transports {
        for size in sizes {
            let is_wanted = wanted(&transports.map(String::from), transport)
                && wanted(&sizes.map(String::from), size);
            if is_wanted {
                run_ranks(transport, size.parse().unwrap_or(2));
            }
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
        secret: RunSecret::guessable("a benchmark"),
        timeout: Duration::from_secs(60),
        network_interface: None,
        transport: match std::env::var("TANDEM_BENCH_TRANSPORT").as_deref() {
            Ok("tcp") => Transport::Tcp,
            _ => Transport::Shm,
        },
    })?;
    let ranks: Vec<usize> = (0..size).collect();
    let group = world.new_group("bench", &ranks)?;
    for bytes in SIZES {
        measure_size(&*group, bytes)?;
    }
    Ok(())
}

/// Times all operations on tensors of this size, and the copy beside them, in turns: whatever else the machine does, it
/// does to all of them.
fn measure_size(group: &dyn ProcessGroup, bytes: usize) -> Result<()> {
    let cases: Vec<(&str, Operation, Tensor)> = OPERATIONS
        .iter()
        .flat_map(|(name, operation)| {
            [Kind::Float, Kind::BFloat16].map(|kind| (*name, *operation, kind))
        })
        .filter(|(name, _, kind)| *kind == Kind::Float || *name == "all_reduce")
        .map(|(name, operation, kind)| {
            let len = bytes / if kind == Kind::Float { 4 } else { 2 };
            let tensor = Tensor::zeros([len as i64], (kind, Device::Cpu));
            (name, operation, tensor)
        })
        .collect();
    let source = vec![1u8; bytes];
    let mut target = vec![0u8; bytes];
    let mut copies = Vec::new();
    let mut times = vec![Vec::new(); cases.len()];
    for repeat in 0..(128 * MIB / bytes).clamp(11, 500) + WARM_UP {
        for ((_, operation, tensor), times) in cases.iter().zip(&mut times) {
            let counts = vec![tensor.numel() / group.size(); group.size()];
            group.barrier()?.wait()?;
            let begin = Instant::now();
            operation(group, tensor, &counts)?.wait()?;
            if repeat >= WARM_UP {
                times.push(begin.elapsed());
            }
        }
        if group.rank() == 0 {
            let begin = Instant::now();
            target.copy_from_slice(std::hint::black_box(&source));
            std::hint::black_box(&mut target);
            copies.push(begin.elapsed());
        }
    }
    if group.rank() > 0 {
        return Ok(());
    }
    let [_, copy] = median_and_best(copies);
    println!(
        "{}, memcpy at best {} ({:.1} GB/s):",
        size_text(bytes),
        time_text(copy),
        rate(bytes, copy)
    );
    for ((name, _, tensor), times) in cases.iter().zip(times) {
        let [median, best] = median_and_best(times);
        println!(
            "{name:>15} {:>8}  median {:>9}  best {:>9}  {:6.2} GB/s  {:5.2} x memcpy",
            format!("{:?}", tensor.kind()).to_lowercase(),
            time_text(median),
            time_text(best),
            rate(bytes, best),
            copy.as_secs_f64() / best.as_secs_f64(),
        );
    }
    // Lines of a benchmark that is still running should be seen.
    let _shown = std::io::stdout().flush();
    Ok(())
}

fn median_and_best(mut times: Vec<Duration>) -> [Duration; 2] {
    times.sort();
    [times[times.len() / 2], times[0]]
}

fn own_part(group: &dyn ProcessGroup, tensor: &Tensor, counts: &[usize]) -> Tensor {
    let start: usize = counts[..group.rank()].iter().sum();
    tensor.narrow(0, start as i64, counts[group.rank()] as i64)
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
