//! The operators that are called by name. PyTorch promises nothing about them, so each is tried once when libtorch is opened:
//! the sample arguments stand beside the name. They have no elements, so that a trial takes the arguments through libtorch's
//! checks and nothing more: kernels that nobody needs would bring memory of their own (MKL's, some 10 MB).

use crate::device::Device;
use crate::dispatch::{Arg, Operator};
use crate::kind::Kind;
use crate::tensor::Tensor;

/// An argument of a trial call.
enum Sample {
    /// fp32 `[0, 2]`.
    Floats,
    /// fp32 `[2, 2]`.
    Square,
    /// fp32 without dimensions.
    Number,
    /// bool `[0, 2]`.
    Mask,
    /// i64 `[2]`: 0 and 1.
    Index,
    /// i64 `[0, 2]`.
    Indices,
    /// i64 without dimensions.
    Integer,
    /// Some other argument.
    Plain(Arg<'static>),
    /// A list of two fp32 `[0, 2]`.
    List,
    /// fp32 `[2]`, where it may be missing.
    SomeFloats,
    /// A list of two fp32 numbers.
    Numbers,
    /// No tensor, then an index.
    SecondIndex,
}

/// An operator, and the arguments that it must accept.
type Trial = (&'static Operator, &'static [Sample]);

use Arg::{
    Bool, Float, Int, Ints, None as Nothing, SomeBool, SomeFloat, SomeInt, SomeInts, SomeKind,
    Tensors,
};
use Sample::{
    Floats, Index, Indices, Integer, List, Mask, Number, Numbers, Plain, SecondIndex, SomeFloats,
    Square,
};

macro_rules! operators {
    ($($operator:ident = $name:literal $overload:literal ($($sample:expr),*) -> $results:literal;)*) => {
        $(
            pub(crate) const $operator: Operator = Operator {
                name: $name,
                overload: $overload,
                results: $results,
            };
        )*

        /// All operators, each with the arguments that it must accept.
        const ALL: &[Trial] = &[$((&$operator, &[$($sample),*])),*];
    };
}

operators! {
    ABS = c"aten::abs" c"" (Floats) -> 1;
    ERF = c"aten::erf" c"" (Floats) -> 1;
    EXP = c"aten::exp" c"" (Floats) -> 1;
    LOG = c"aten::log" c"" (Floats) -> 1;
    SQRT = c"aten::sqrt" c"" (Floats) -> 1;
    RSQRT = c"aten::rsqrt" c"" (Floats) -> 1;
    SILU = c"aten::silu" c"" (Floats) -> 1;
    SIGMOID = c"aten::sigmoid" c"" (Floats) -> 1;
    TANH = c"aten::tanh" c"" (Floats) -> 1;
    MAXIMUM = c"aten::maximum" c"" (Floats, Floats) -> 1;
    DIV = c"aten::div" c"Tensor" (Floats, Floats) -> 1;
    FLOOR_DIVIDE = c"aten::floor_divide" c"" (Index, Integer) -> 1;
    BITWISE_XOR_ = c"aten::bitwise_xor_" c"Tensor" (Index, Integer) -> 1;
    EQ = c"aten::eq" c"Tensor" (Index, Integer) -> 1;
    LT = c"aten::lt" c"Tensor" (Index, Integer) -> 1;
    GE = c"aten::ge" c"Tensor" (Index, Integer) -> 1;
    LOGICAL_AND = c"aten::logical_and" c"" (Mask, Mask) -> 1;
    LOGICAL_OR = c"aten::logical_or" c"" (Mask, Mask) -> 1;
    MASKED_FILL = c"aten::masked_fill" c"Tensor" (Floats, Mask, Number) -> 1;
    MASKED_FILL_ = c"aten::masked_fill_" c"Tensor" (Floats, Mask, Number) -> 1;
    TRIU = c"aten::triu" c"" (Mask, Plain(Int(1))) -> 1;
    TRIL = c"aten::tril" c"" (Mask, Plain(Int(-1))) -> 1;
    SUM = c"aten::sum" c"" (Floats, Plain(SomeKind(Kind::Double))) -> 1;
    SUM_DIMS = c"aten::sum" c"dim_IntList"
        (Floats, Plain(SomeInts(&[0])), Plain(Bool(true)), Plain(SomeKind(Kind::Float))) -> 1;
    MEAN_DIMS = c"aten::mean" c"dim" (Floats, Plain(SomeInts(&[-1])), Plain(Bool(true)), Plain(Nothing)) -> 1;
    // Without an order it is the Euclidean one, over all elements. (Those that must be given one cannot be called: see `Arg`.)
    NORM = c"aten::linalg_norm" c""
        (Floats, Plain(Nothing), Plain(Nothing), Plain(Bool(false)), Plain(Nothing)) -> 1;
    MAX_DIM = c"aten::max" c"dim" (Floats, Plain(Int(1)), Plain(Bool(false))) -> 2;
    CUMSUM = c"aten::cumsum" c"" (Floats, Plain(Int(0)), Plain(SomeKind(Kind::Int))) -> 1;
    SORT = c"aten::sort" c"stable" (Floats, Plain(SomeBool(true)), Plain(Int(1)), Plain(Bool(true))) -> 2;
    LOGSUMEXP = c"aten::logsumexp" c"" (Floats, Plain(Ints(&[-1])), Plain(Bool(false))) -> 1;
    SOFTMAX = c"aten::softmax" c"int" (Floats, Plain(Int(-1)), Plain(SomeKind(Kind::Float))) -> 1;
    INDEX_SELECT = c"aten::index_select" c"" (Floats, Plain(Int(1)), Index) -> 1;
    GATHER = c"aten::gather" c"" (Floats, Plain(Int(1)), Indices, Plain(Bool(false))) -> 1;
    SCATTER_ADD_ = c"aten::scatter_add_" c"" (Floats, Plain(Int(1)), Indices, Floats) -> 1;
    INDEX_PUT_ = c"aten::index_put_" c"" (Floats, SecondIndex, Floats, Plain(Bool(true))) -> 1;
    REPEAT_INTERLEAVE = c"aten::repeat_interleave" c"self_int"
        (Floats, Plain(Int(2)), Plain(SomeInt(1)), Plain(Nothing)) -> 1;
    STACK = c"aten::stack" c"" (List, Plain(Int(0))) -> 1;
    MATMUL = c"aten::matmul" c"" (Floats, Square) -> 1;
    VIEW = c"aten::view" c"" (Floats, Plain(Ints(&[2, 0]))) -> 1;
    MUL_OUT = c"aten::mul" c"out" (Floats, Floats, Floats) -> 1;
    SILU_BACKWARD_OUT = c"aten::silu_backward" c"grad_input" (Floats, Floats, Floats) -> 1;
    FUSED_RMS_NORM = c"aten::_fused_rms_norm" c""
        (Floats, Plain(Ints(&[2])), SomeFloats, Plain(SomeFloat(1e-6))) -> 2;
    FUSED_ADAMW_ = c"aten::_fused_adamw_" c""
        (List, List, List, List, Plain(Tensors(&[])), Numbers, Plain(Float(1e-3)), Plain(Float(0.9)), Plain(Float(0.99)),
         Plain(Float(0.1)), Plain(Float(1e-8)), Plain(Bool(false)), Plain(Bool(false)), Plain(Nothing), Plain(Nothing)) -> 0;
    FOREACH_ADDCMUL_ = c"aten::_foreach_addcmul_" c"Tensor" (List, List, List, Index) -> 0;
    FLATTEN = c"aten::flatten" c"using_ints" (Floats, Plain(Int(0)), Plain(Int(-1))) -> 1;
}

/// Not tried: it has kernels for GPUs only. A test says that it is called as its schema has it.
pub(crate) const FUSED_RMS_NORM_BACKWARD: Operator = Operator {
    name: c"aten::_fused_rms_norm_backward",
    overload: c"",
    results: 2,
};

/// Not among those that must be there: whoever needs it does without where it is not (`grouped.rs` tries it).
pub(crate) const GROUPED_MM: Operator = Operator {
    name: c"aten::_grouped_mm",
    overload: c"",
    results: 1,
};

/// The names of operators that this libtorch does not have, or not as they are called here.
pub(crate) fn broken() -> Vec<String> {
    broken_among(ALL)
}

fn broken_among(trials: &[Trial]) -> Vec<String> {
    let on = |kind| (kind, Device::Cpu);
    let floats = || Tensor::zeros([0, 2], on(Kind::Float));
    let square = Tensor::zeros([2, 2], on(Kind::Float));
    let index = Tensor::from_slice(&[0i64, 1]);
    let number = Tensor::ones([], on(Kind::Float));
    let two = Tensor::ones([2], on(Kind::Float));
    let numbers = [&number, &number];
    let integer = Tensor::ones([], on(Kind::Int64));
    let mask = Tensor::zeros([0, 2], on(Kind::Bool));
    let indices = Tensor::zeros([0, 2], on(Kind::Int64));
    let mut broken = Vec::new();
    for (operator, sample) in trials {
        // Operators that write get tensors of their own.
        let (first, second, index) = (floats(), floats(), index.copy());
        let list = [&first, &second];
        let second_index = [None, Some(&index)];
        let mut taken = 0;
        let arguments: Vec<Arg<'_>> = sample
            .iter()
            .map(|sample| match sample {
                Sample::Floats => {
                    taken += 1;
                    Arg::Tensor(list[(taken - 1) % 2])
                }
                Sample::Square => Arg::Tensor(&square),
                Sample::Number => Arg::Tensor(&number),
                Sample::Mask => Arg::Tensor(&mask),
                Sample::Index => Arg::Tensor(&index),
                Sample::Indices => Arg::Tensor(&indices),
                Sample::Integer => Arg::Tensor(&integer),
                Sample::Plain(argument) => *argument,
                Sample::List => Arg::Tensors(&list),
                Sample::SomeFloats => Arg::SomeTensor(&two),
                Sample::Numbers => Arg::Tensors(&numbers),
                Sample::SecondIndex => Arg::OptionalTensors(&second_index),
            })
            .collect();
        let result = match operator.results {
            0 => operator.call_for::<0>(&arguments).map(drop),
            2 => operator.call_for::<2>(&arguments).map(drop),
            _ => operator.call(&arguments).map(drop),
        };
        if let Err(error) = result {
            broken.push(error.to_string());
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_that_is_missing_is_named() {
        assert_eq!(broken(), Vec::<String>::new());
        const MISSING: Operator = Operator {
            name: c"aten::no_such_operator",
            ..EXP
        };
        const OTHER_OVERLOAD: Operator = Operator {
            overload: c"no_such_overload",
            ..MATMUL
        };
        let found = broken_among(&[
            (&MISSING, &[Floats]),
            (&EXP, &[Floats]),
            (&OTHER_OVERLOAD, &[Floats, Square]),
        ]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("aten::no_such_operator"), "{found:?}");
        assert!(found[1].contains("aten::matmul"), "{found:?}");
    }
}
