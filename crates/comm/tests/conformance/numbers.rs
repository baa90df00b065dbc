//! Data that every rank can compute for every other, and what the collectives must make of it.

use tandem_comm::ReduceOp;
use tandem_tensor::{Kind, Tensor};

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
    let number = |i: usize| {
        let mixed = (i + rank * 7919 + salt * 104_729) as i64 * 48_271;
        mixed.rem_euclid(65_521) - 32_760
    };
    let numbers: Vec<i64> = (0..len).map(number).collect();
    match kind {
        Kind::Int64 | Kind::Int => Tensor::from_slice(&numbers).to_kind(kind),
        Kind::Uint8 => {
            let bytes: Vec<u8> = numbers.iter().map(|n| n.rem_euclid(100) as u8).collect();
            Tensor::from_slice(&bytes)
        }
        // Not a power of two, so that the low bits are all in use.
        _ => {
            let fractions: Vec<f64> = numbers.iter().map(|&n| n as f64 / 777.0).collect();
            Tensor::from_slice(&fractions).to_kind(kind)
        }
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
            ReduceOp::Max => chosen(&result, &input, f64::max),
            ReduceOp::Min => chosen(&result, &input, f64::min),
        };
    }
    result.to_kind(kind)
}

/// `choose` of every pair of elements; fp64 holds all of them exactly.
fn chosen(a: &Tensor, b: &Tensor, choose: fn(f64, f64) -> f64) -> Tensor {
    let pairs = a.to_vec::<f64>().into_iter().zip(b.to_vec::<f64>());
    let chosen: Vec<f64> = pairs.map(|(a, b)| choose(a, b)).collect();
    Tensor::from_slice(&chosen).to_kind(a.kind())
}

/// Fails unless all bits are equal.
#[track_caller]
pub fn assert_bits_equal(what: &str, actual: &Tensor, expected: &Tensor) {
    assert_eq!(actual.size(), expected.size(), "{what}");
    if !actual.equal(expected) {
        let pairs = actual
            .to_vec::<f64>()
            .into_iter()
            .zip(expected.to_vec::<f64>());
        let differing = pairs.filter(|(a, b)| a != b).count();
        panic!("{what}: {differing} elements differ");
    }
}
