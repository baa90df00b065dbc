//! Every collective, for every kind of element, size and number of ranks, in place and not, against a plain computation.

use std::ops::{Range, RangeInclusive};

use tandem_comm::{
    ProcessGroup, ReduceOp, Transport, World, all_gather_bytes, all_gather_numbers, broadcast_bytes,
};
use tandem_tensor::{Device, Kind, Tensor};

use crate::numbers::{KINDS, assert_bits_equal, data, reduced};
use tandem_comm::testing::{Over, Setup, everyone, lines};

/// From nothing over one element, an odd number and the one-round limit to several chunks.
const SIZES: [usize; 7] = [0, 1, 7, 1000, 4099, 30_001, 3_000_000];

const OPS: [ReduceOp; 3] = [ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min];

fn suite(test: &'static str, ranks: RangeInclusive<usize>, over: impl Into<Over>) {
    let over = over.into();
    for ranks in ranks {
        let outputs = Setup::new(test, ranks, over).run(|world| every_collective(&world));
        for output in outputs {
            println!("  {ranks} ranks: {}", lines(&output, "checked ").join(", "));
        }
    }
}

#[test]
fn collectives_over_shared_memory() {
    suite(
        "collectives::collectives_over_shared_memory",
        1..=4,
        Transport::Shm,
    );
}

#[test]
fn collectives_over_tcp() {
    suite("collectives::collectives_over_tcp", 1..=4, Transport::Tcp);
}

#[test]
fn collectives_over_nccl() {
    suite("collectives::collectives_over_nccl", 2..=4, Over::Nccl);
}

#[test]
fn collectives_of_devices_through_host_memory() {
    const TEST: &str = "collectives::collectives_of_devices_through_host_memory";
    suite(TEST, 2..=3, Over::Staged(Transport::Shm));
}

#[test]
fn collectives_of_devices_through_host_memory_and_tcp() {
    const TEST: &str = "collectives::collectives_of_devices_through_host_memory_and_tcp";
    suite(TEST, 2..=3, Over::Staged(Transport::Tcp));
}

#[test]
fn collectives_through_a_stage() {
    suite(
        "collectives::collectives_through_a_stage",
        2..=3,
        Transport::Staged,
    );
}

fn every_collective(world: &World) {
    let group = everyone(world);
    assert_eq!((group.rank(), group.size()), (world.rank(), world.size()));
    host_values(&*group);
    let mut checked = 0;
    for kind in KINDS {
        for len in SIZES {
            let is_large = len > 10_000;
            // Making the numbers takes longer than moving them.
            if is_large && !matches!(kind, Kind::Float | Kind::BFloat16 | Kind::Int64) {
                continue;
            }
            let inputs: Vec<Tensor> = (0..group.size())
                .map(|rank| data(rank, len, kind, 0))
                .collect();
            for op in if is_large { &OPS[..1] } else { &OPS[..] } {
                all_reduce(&*group, &inputs, *op);
                checked += 1;
            }
            let sum = reduced(&inputs, ReduceOp::Sum);
            for counts in splits(len, group.size()) {
                all_gather(&*group, &inputs, &counts);
                reduce_scatter(&*group, &inputs, &sum, &counts);
                checked += 4;
            }
            for counts in exchanges(len, group.size()) {
                all_to_all(&*group, kind, &counts);
                checked += 1;
            }
            for root in 0..group.size() {
                broadcast(&*group, &inputs, root);
                checked += 1;
            }
        }
        group.barrier().unwrap().wait().unwrap();
    }
    println!("checked {checked} operations on rank {}", world.rank());
}

/// Even and ragged ways to split `len` elements, with ranks that get nothing.
fn splits(len: usize, ranks: usize) -> Vec<Vec<usize>> {
    let even = (0..ranks).map(|rank| len / ranks + usize::from(rank < len % ranks));
    let mut only_last = vec![0; ranks];
    only_last[ranks - 1] = len;
    let mut ragged = vec![0; ranks];
    ragged[0] = len / 3;
    ragged[ranks / 2] += len - len / 3;
    vec![even.collect(), only_last, ragged]
}

fn own_range(counts: &[usize], rank: usize) -> Range<i64> {
    let start = counts[..rank].iter().sum::<usize>() as i64;
    start..start + counts[rank] as i64
}

fn narrow(tensor: &Tensor, range: Range<i64>) -> Tensor {
    tensor.narrow(0, range.start, range.end - range.start)
}

fn all_reduce(group: &dyn ProcessGroup, inputs: &[Tensor], op: ReduceOp) {
    let tensor = inputs[group.rank()].copy();
    group.all_reduce(&tensor, op).unwrap().wait().unwrap();
    let what = format!("all_reduce({op:?}) of {tensor:?}");
    assert_bits_equal(&what, &tensor, &reduced(inputs, op));
}

/// Rank `i` contributes the range `i` of its own numbers.
fn all_gather(group: &dyn ProcessGroup, inputs: &[Tensor], counts: &[usize]) {
    let parts: Vec<Tensor> = (0..group.size())
        .map(|rank| narrow(&inputs[rank], own_range(counts, rank)))
        .collect();
    let expected = Tensor::cat(&parts, 0);
    let what = format!("all_gather of {counts:?} {:?}", expected.kind());
    let own = &parts[group.rank()];

    let output = expected.zeros_like();
    let work = group.all_gather_into(&output, own, counts).unwrap();
    work.wait().unwrap();
    assert_bits_equal(&what, &output, &expected);

    let output = expected.zeros_like();
    let view = narrow(&output, own_range(counts, group.rank()));
    view.copy_(own);
    let work = group.all_gather_into(&output, &view, counts).unwrap();
    work.wait().unwrap();
    assert_bits_equal(&format!("{what} in place"), &output, &expected);
}

fn reduce_scatter(group: &dyn ProcessGroup, inputs: &[Tensor], sum: &Tensor, counts: &[usize]) {
    let own = own_range(counts, group.rank());
    let expected = narrow(sum, own.clone());
    let what = format!("reduce_scatter of {counts:?} {:?}", sum.kind());

    let input = inputs[group.rank()].copy();
    let output = expected.zeros_like();
    let work = group.reduce_scatter_into(&output, &input, counts, ReduceOp::Sum);
    work.unwrap().wait().unwrap();
    assert_bits_equal(&what, &output, &expected);
    assert_bits_equal(
        &format!("{what}: the input stays"),
        &input,
        &inputs[group.rank()],
    );

    let view = narrow(&input, own);
    let work = group.reduce_scatter_into(&view, &input, counts, ReduceOp::Sum);
    work.unwrap().wait().unwrap();
    assert_bits_equal(&format!("{what} in place"), &view, &expected);
}

/// Ways to send about `len` elements in all: each rank as much to each, all to one, one to all, to a neighbour alone, and all
/// different, with pairs that have nothing for each other.
fn exchanges(len: usize, ranks: usize) -> Vec<Vec<usize>> {
    let each = len / (ranks * ranks);
    let pairs = |count: &dyn Fn(usize, usize) -> usize| -> Vec<usize> {
        let pair = |at: usize| count(at / ranks, at % ranks);
        (0..ranks * ranks).map(pair).collect()
    };
    let if_so = |is_so: bool, count: usize| if is_so { count } else { 0 };
    vec![
        pairs(&|_, _| each),
        pairs(&|from, to| if_so(to == ranks - 1, each * (from + 1))),
        pairs(&|from, to| if_so(from == ranks / 2, each * (to + 1))),
        pairs(&|from, to| if_so(to == (from + 1) % ranks, len / ranks)),
        pairs(&|from, to| if_so((from + to) % 3 != 1, each * (1 + from) + 5 * to)),
    ]
}

/// Every rank can compute what every rank sends.
fn all_to_all(group: &dyn ProcessGroup, kind: Kind, counts: &[usize]) {
    let (own, size) = (group.rank(), group.size());
    let sent = |rank: usize| &counts[rank * size..][..size];
    let input_of = |rank: usize| data(rank, sent(rank).iter().sum(), kind, 1);
    let parts: Vec<Tensor> = (0..size)
        .map(|from| narrow(&input_of(from), own_range(sent(from), own)))
        .collect();
    let expected = Tensor::cat(&parts, 0);
    let (input, output) = (input_of(own), expected.zeros_like());
    let work = group.all_to_all_into(&output, &input, counts).unwrap();
    work.wait().unwrap();
    let what = format!("all_to_all of {counts:?} {kind:?}");
    assert_bits_equal(&what, &output, &expected);
    assert_bits_equal(&format!("{what}: the input stays"), &input, &input_of(own));
}

fn broadcast(group: &dyn ProcessGroup, inputs: &[Tensor], root: usize) {
    let tensor = inputs[group.rank()].copy();
    group.broadcast(&tensor, root).unwrap().wait().unwrap();
    let what = format!("broadcast of {tensor:?} from {root}");
    assert_bits_equal(&what, &tensor, &inputs[root]);
}

#[test]
fn a_group_of_one_checks_its_arguments_like_any_other() {
    let group = tandem_comm::SingleGroup::new("one", 5, Device::Cpu);
    assert_eq!(
        (group.rank(), group.size(), group.ranks()),
        (0, 1, &[5][..])
    );
    let tensor = data(0, 6, Kind::Float, 0);
    let output = Tensor::zeros([6], (Kind::Float, Device::Cpu));
    let work = group.all_gather_into(&output, &tensor, &[6]).unwrap();
    assert!(work.is_finished());
    work.wait().unwrap();
    assert_bits_equal("a gathering of one", &output, &tensor);
    let other = output.zeros_like();
    let work = group.all_to_all_into(&other, &tensor, &[6]).unwrap();
    work.wait().unwrap();
    assert_bits_equal("what it sends to itself", &other, &tensor);
    let error = group.all_gather_into(&output, &tensor, &[5]).err().unwrap();
    println!("{error}");
    assert!(error.to_string().contains("the counts [5] make it 5"));
}

/// Numbers, and byte strings of different lengths, none among them.
fn host_values(group: &dyn ProcessGroup) {
    let numbers = all_gather_numbers(group, &[group.rank() as f64, 0.5], Device::Cpu).unwrap();
    let expected = (0..group.size()).map(|rank| vec![rank as f64, 0.5]);
    assert_eq!(numbers, expected.collect::<Vec<_>>());
    let of = |rank: usize| vec![b'a' + rank as u8; rank * 1000];
    let all = all_gather_bytes(group, &of(group.rank()), Device::Cpu).unwrap();
    assert_eq!(all, (0..group.size()).map(of).collect::<Vec<_>>());
    for root in 0..group.size() {
        let got = broadcast_bytes(group, &of(group.rank()), root, Device::Cpu).unwrap();
        assert_eq!(got, of(root));
    }
}
