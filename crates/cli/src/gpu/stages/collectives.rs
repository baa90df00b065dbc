//! Every collective over numbers whose results are known exactly, on every number of ranks; and how fast the largest is.

use std::ffi::OsString;
use std::time::Instant;

use tandem_comm::{ProcessGroup, ReduceOp, Result as CommResult};
use tandem_launch::env::WorkerEnv;
use tandem_run::environment::Environment;
use tandem_run::failure::{Failure, Outcome};
use tandem_run::ranks::Ranks;
use tandem_run::spec::{Dtype, EngineSpec, Network};
use tandem_tensor::device::synchronize;
use tandem_tensor::{Device, Kind, Tensor};

use crate::flags::choices::TransportChoice;
use crate::flags::gpu::GpuFlags;
use crate::gpu::finding::Finding;
use crate::gpu::stage::{Context, transport_name};
use crate::measuring::{leave, run_workers, spec};

pub(in crate::gpu) const NAME: &str = "collectives";

pub(super) fn run(context: &Context) -> Outcome<Finding> {
    let own = (2..=context.devices).map(|ranks| (ranks, TransportChoice::Auto));
    // What ranks of a processor take otherwise, no GPU does.
    let shared = [(2, TransportChoice::Staged)];
    let mut finding = Finding::ok();
    for (ranks, transport) in own.chain(shared) {
        match of_ranks(context, ranks, transport)? {
            Ok(rate) => {
                let transport = transport_name(transport);
                let name = format!("all_reduce of 64 MB, {ranks} ranks, {transport}");
                finding = finding.number(name, rate, "GB/s of a rank's tensor");
            }
            Err(why) => return Ok(Finding::failed(why)),
        }
    }
    Ok(finding)
}

/// The rate, or what is wrong.
fn of_ranks(
    context: &Context,
    ranks: usize,
    transport: TransportChoice,
) -> Outcome<Result<f64, String>> {
    let name = transport_name(transport);
    let run_dir = context.scratch.join(format!("{ranks}-{name}"));
    std::fs::create_dir_all(&run_dir).map_err(Failure::other)?;
    let mut line: Vec<OsString> = std::env::args_os().skip(1).collect();
    line.extend(["--transport", &name].map(OsString::from));
    let device = context.flags.device;
    match run_workers(ranks, device, transport.into(), &line, &run_dir)? {
        Ok(text) => serde_json::from_str(&text).map(Ok).map_err(Failure::other),
        Err(code) => Ok(Err(format!("{ranks} ranks, {name}: exit code {code}"))),
    }
}

/// What one rank does.
pub(in crate::gpu) fn run_worker(
    flags: &GpuFlags,
    env: &WorkerEnv,
    environment: &Environment,
) -> Outcome<()> {
    let spec = EngineSpec {
        comm_timeout_s: 60,
        ..spec(env.world_size, flags.device, Dtype::Fp32)?
    };
    let network = Network {
        transport: flags.transport.into(),
        ..Network::default()
    };
    let ranks = Ranks::join(env, &spec, &network)?;
    let group = ranks.everyone.as_ref();
    for kind in [Kind::Float, Kind::BFloat16, Kind::Int64] {
        for elements in [1, 1000, 1 << 18] {
            let what = Numbers {
                group,
                kind,
                elements,
                device: ranks.device,
            };
            let problem = what.check().map_err(Failure::comm)?;
            if let Some(problem) = problem {
                return Err(Failure::other(format!(
                    "rank {} of {}: {problem} of {elements} numbers a rank in {kind:?} is wrong",
                    env.rank, env.world_size
                )));
            }
        }
    }
    let rate = rate(group, ranks.device).map_err(Failure::comm)?;
    if env.rank == 0 {
        leave(environment, &rate.to_string())?;
    }
    ranks.barrier()
}

/// Small whole numbers, so that sums of all ranks' are exact in bf16.
struct Numbers<'a> {
    group: &'a dyn ProcessGroup,
    kind: Kind,
    elements: usize,
    device: Device,
}

impl Numbers<'_> {
    /// The name of the first collective whose result is wrong.
    fn check(&self) -> CommResult<Option<&'static str>> {
        let (rank, size) = (self.group.rank(), self.group.size());
        // Uneven parts, one of them empty.
        let counts: Vec<usize> = (0..size).map(|rank| self.elements * rank).collect();
        let starts = |rank: usize| counts[..rank].iter().sum::<usize>();
        let total = starts(size);

        let sum = self.of(rank, 0..self.elements);
        let largest = sum.copy();
        // Both are under way at the same time.
        let mut first = self.group.all_reduce(&sum, ReduceOp::Sum)?;
        first.start();
        self.group.all_reduce(&largest, ReduceOp::Max)?.wait()?;
        first.wait()?;
        let all = |element: usize| (0..size).map(move |rank| value(rank, element));
        let sums: Vec<i64> = (0..self.elements).map(|i| all(i).sum()).collect();
        let maxima: Vec<i64> = (0..self.elements).filter_map(|i| all(i).max()).collect();
        if sum.to_vec::<i64>() != sums {
            return Ok(Some("all_reduce (sum)"));
        }
        if largest.to_vec::<i64>() != maxima {
            return Ok(Some("all_reduce (max)"));
        }

        let gathered = self.filled(total);
        let own = self.of(rank, 0..counts[rank]);
        self.group
            .all_gather_into(&gathered, &own, &counts)?
            .wait()?;
        let parts = counts.iter().enumerate();
        let expected: Vec<i64> = parts
            .flat_map(|(rank, count)| (0..*count).map(move |i| value(rank, i)))
            .collect();
        if gathered.to_vec::<i64>() != expected {
            return Ok(Some("all_gather"));
        }

        let (whole, part) = (self.of(rank, 0..total), self.filled(counts[rank]));
        self.group
            .reduce_scatter_into(&part, &whole, &counts, ReduceOp::Sum)?
            .wait()?;
        let own = starts(rank)..starts(rank) + counts[rank];
        if part.to_vec::<i64>() != own.map(|i| all(i).sum()).collect::<Vec<i64>>() {
            return Ok(Some("reduce_scatter"));
        }

        for root in 0..size {
            let tensor = self.of(rank, 0..self.elements);
            self.group.broadcast(&tensor, root)?.wait()?;
            let expected = (0..self.elements).map(|i| value(root, i));
            if tensor.to_vec::<i64>() != expected.collect::<Vec<i64>>() {
                return Ok(Some("broadcast"));
            }
        }
        self.group.barrier()?.wait()?;
        Ok(None)
    }

    fn of(&self, rank: usize, elements: std::ops::Range<usize>) -> Tensor {
        let values: Vec<i64> = elements.map(|element| value(rank, element)).collect();
        Tensor::from_slice(&values)
            .to_kind(self.kind)
            .to_device(self.device)
    }

    /// To be overwritten.
    fn filled(&self, elements: usize) -> Tensor {
        Tensor::full([elements as i64], 77, (self.kind, self.device))
    }
}

/// From -6 to 6.
fn value(rank: usize, element: usize) -> i64 {
    (rank * 31 + element * 7) as i64 % 13 - 6
}

/// Bytes of a rank's tensor per second, in units of 10^9: the best of a few.
fn rate(group: &dyn ProcessGroup, device: Device) -> CommResult<f64> {
    const ELEMENTS: i64 = 16 << 20;
    let tensor = Tensor::zeros([ELEMENTS], (Kind::Float, device));
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        group.barrier()?.wait()?;
        synchronize(device);
        let begin = Instant::now();
        group.all_reduce(&tensor, ReduceOp::Sum)?.wait()?;
        synchronize(device);
        best = best.min(begin.elapsed().as_secs_f64());
    }
    Ok(4.0 * ELEMENTS as f64 / best / 1e9)
}
