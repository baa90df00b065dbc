//! Data that every rank can compute for every other, and what the collectives must make of it.

use tandem_comm::ReduceOp;
use tandem_tensor::{Device, Kind, Tensor};

pub const KINDS: [Kind; 6] = [
    Kind::Float,
    Kind::BFloat16,
    Kind::Int64,
    Kind::Half,
    Kind::Double,
    Kind::Uint8,
];

/// `len` numbers of rank `rank`, whose sums depend on the order of summation where the kind rounds.
pub fn data(rank: usize, len: usize, kind: Kind, salt: usize) -> Tensor {
    let values = Tensor::arange(len as i64, (Kind::Int64, Device::Cpu));
    let mixed = (values + (rank * 7919 + salt * 104_729) as i64) * 48_271;
    let bounded = mixed.remainder(65_521) - 32_760;
    match kind {
        Kind::Int64 | Kind::Int => bounded.to_kind(kind),
        Kind::Uint8 => bounded.remainder(100).to_kind(kind),
        // Not a power of two, so that the low bits are all in use.
        _ => (bounded.to_kind(Kind::Double) / 777.0).to_kind(kind),
    }
}

/// The reduction in rank order, in the type that reductions are done in, rounded once.
pub fn reduced(inputs: &[Tensor], op: ReduceOp) -> Tensor {
    let kind = inputs[0].kind();
    let wide = match kind {
        Kind::BFloat16 | Kind::Half => Kind::Float,
        kind => kind,
    };
    let mut result = inputs[0].to_kind(wide);
    for input in &inputs[1..] {
        let input = input.to_kind(wide);
        result = match op {
            ReduceOp::Sum => result + input,
            ReduceOp::Max => result.maximum(&input),
            ReduceOp::Min => result.minimum(&input),
        };
    }
    result.to_kind(kind)
}

/// Fails unless all bits are equal.
#[track_caller]
pub fn assert_bits_equal(what: &str, actual: &Tensor, expected: &Tensor) {
    assert_eq!(actual.size(), expected.size(), "{what}");
    let differing = actual
        .not_equal_tensor(expected)
        .sum(Kind::Int64)
        .int64_value(&[]);
    assert_eq!(differing, 0, "{what}: {differing} elements differ");
}
