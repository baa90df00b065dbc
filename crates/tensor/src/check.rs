//! Every operation of this crate on a device, held against the same operation in fp32 on the CPU, which tests hold against central
//! differences. It is part of the program, so that a machine with a GPU can be asked whether it computes what it should.

mod cases;

use tandem_torch::{Device, Kind, Tensor, pretend};

use crate::random;

/// An operation with its gradient, over inputs that are the same everywhere.
#[derive(Clone, Copy)]
pub struct Case {
    /// Such as `attention, sliding window`.
    pub name: &'static str,
    run: fn(&Inputs) -> Vec<Output>,
}

/// A result, and what it is called.
type Output = (&'static str, Tensor);

/// How far a result is from what it should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The result's name, such as `d_x`.
    pub output: &'static str,
    /// The norm of the difference over that of the expected numbers; not finite where a number is not.
    pub relative: f64,
    /// What rounding explains.
    pub allowed: f64,
}

impl Difference {
    /// False for NaN, too.
    pub fn is_small(&self) -> bool {
        self.relative <= self.allowed
    }
}

/// Where inputs are, and in which kind.
struct Inputs {
    device: Device,
    /// The kind that inputs are rounded to.
    rounded: Kind,
    /// The kind that they have then.
    kind: Kind,
}

impl Inputs {
    /// Normal numbers that depend on `seed` only, in the kind that is checked.
    fn randn(&self, shape: &[i64], seed: u64) -> Tensor {
        self.scaled(shape, seed, 1.0)
    }

    /// The same times `factor`.
    fn scaled(&self, shape: &[i64], seed: u64, factor: f32) -> Tensor {
        let values = normal(shape, seed, factor).to_kind(self.rounded);
        values.to_kind(self.kind).to_device(self.device)
    }

    /// In fp32, whatever kind is checked: what is kept in fp32 always.
    fn wide(&self, shape: &[i64], seed: u64) -> Tensor {
        normal(shape, seed, 1.0).to_device(self.device)
    }

    fn integers(&self, values: &[i64]) -> Tensor {
        Tensor::from_slice(values).to_device(self.device)
    }
}

fn normal(shape: &[i64], seed: u64, factor: f32) -> Tensor {
    let numel: i64 = shape.iter().product();
    let mut values = vec![0f32; usize::try_from(numel).unwrap_or(0)];
    random::fill_normal(&mut values, seed, "check", 0, factor);
    Tensor::from_slice(&values).view(shape)
}

/// All of them.
pub fn all() -> &'static [Case] {
    cases::ALL
}

impl Case {
    /// Runs the operation in `kind`, fp32 or bf16, on `device`, and in fp32 on the CPU, and compares. In the CPU's place stands a
    /// pretended GPU: what is held against our kernels is libtorch's operators, those that a GPU would run.
    ///
    /// # Panics
    /// When the device refuses an operation.
    pub fn run(&self, device: Device, kind: Kind) -> Vec<Difference> {
        let on = |device, of| Inputs {
            device,
            rounded: kind,
            kind: of,
        };
        let expected = (self.run)(&on(Device::Cpu, Kind::Float));
        let pretended = (device == Device::Cpu).then(pretend::cuda);
        let device = pretended.as_ref().map_or(device, |_| Device::Cuda(0));
        let found = (self.run)(&on(device, kind));
        let allowed = allowed(kind);
        let pairs = found.into_iter().zip(expected);
        pairs
            .map(|((output, found), (_, expected))| Difference {
                output,
                relative: relative(&found, &expected),
                allowed,
            })
            .collect()
    }
}

/// What rounding explains: sums of a few hundred products in fp32, in whatever order; and in bf16, which has 8 bits, the roundings of
/// what an operation keeps between its passes.
fn allowed(kind: Kind) -> f64 {
    match kind {
        Kind::Float => 2e-5,
        _ => 1.5e-2,
    }
}

/// Of two tensors with other sizes, infinity.
fn relative(found: &Tensor, expected: &Tensor) -> f64 {
    if found.size() != expected.size() {
        return f64::INFINITY;
    }
    let (found, expected) = (found.to_vec::<f64>(), expected.to_vec::<f64>());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let off = norm(&mut found.iter().zip(&expected).map(|(a, e)| a - e));
    // Some results are zero exactly.
    off / norm(&mut expected.iter().copied()).max(1e-3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_right_on_the_cpu() {
        for case in all() {
            for kind in [Kind::Float, Kind::BFloat16] {
                let found = case.run(Device::Cpu, kind);
                assert!(!found.is_empty(), "{}", case.name);
                for difference in found {
                    let name = case.name;
                    assert!(difference.is_small(), "{name} in {kind:?}: {difference:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_wrong_is_seen() {
        const WRONG: Case = Case {
            name: "a product that is wrong in bf16",
            run: |inputs| {
                let x = inputs.randn(&[8, 8], 1);
                let slip = if inputs.kind == Kind::Float { 0.0 } else { 0.1 };
                vec![
                    ("wrong", &x + slip),
                    ("right", x.copy()),
                    (
                        "not a number",
                        &x * (if slip > 0.0 { f64::NAN } else { 1.0 }),
                    ),
                    ("short", x.narrow(0, 0, if slip > 0.0 { 4 } else { 8 })),
                ]
            },
        };
        let small = |kind| {
            let found = WRONG.run(Device::Cpu, kind);
            found.iter().map(Difference::is_small).collect::<Vec<_>>()
        };
        assert_eq!(small(Kind::BFloat16), [false, true, false, false]);
        assert_eq!(small(Kind::Float), [true; 4]);
    }
}
