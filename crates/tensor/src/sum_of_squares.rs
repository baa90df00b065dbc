//! The squared L2 norm of tensors, without a wait of the host for a device.

use tandem_kernels::sum_of_squares as kernel;
use tandem_torch::{Device, Kind, Tensor};

use crate::cpu::element::{is_plain, slice};

/// A sum of squares that grows tensor by tensor. What a device adds up stays there.
#[derive(Debug, Default)]
pub struct SumOfSquares {
    host: f64,
    /// The norms of what is on a device: fp32, without dimensions.
    norms: Vec<Tensor>,
}

impl SumOfSquares {
    /// Adds the elements of a flat fp32 tensor: in fp64, the same number for any count of threads; on a device in fp32, in one pass.
    pub fn add(&mut self, t: &Tensor) {
        if is_plain::<f32>(t) {
            self.host += kernel::sum_of_squares(slice::<f32>(t));
        } else {
            self.norms.push(t.to_kind(Kind::Float).norm());
        }
    }

    /// Adds another sum.
    pub fn merge(&mut self, other: Self) {
        self.host += other.host;
        self.norms.extend(other.norms);
    }

    /// What a device has, fp64 without dimensions.
    fn on_device(&self) -> Option<Tensor> {
        let norms: Vec<&Tensor> = self.norms.iter().collect();
        let of_all = |norms: &[&Tensor]| Tensor::stack(norms, 0).to_kind(Kind::Double);
        (!norms.is_empty()).then(|| of_all(&norms).square().sum(Kind::Double))
    }

    /// The sum as fp64 `[1]` on `device`. The host does not wait.
    pub fn into_tensor(self, device: Device) -> Tensor {
        let host = |device| Tensor::full([1], self.host, (Kind::Double, device));
        match self.on_device() {
            None => host(device),
            Some(sum) => (sum.view([1]) + host(sum.device())).to_device(device),
        }
    }

    /// The sum. CUDA: the host waits for it.
    pub fn value(self) -> f64 {
        self.host + self.on_device().map_or(0.0, |sum| sum.double_value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::randn;

    fn of(t: &Tensor) -> SumOfSquares {
        let mut sum = SumOfSquares::default();
        sum.add(t);
        sum
    }

    #[test]
    fn sums_of_several_tensors_are_one_wherever_they_were_made() {
        let t = randn(&[1000], 7);
        // libtorch's operators, as on a device.
        let (first, second) = (
            t.narrow(0, 0, 300),
            t.narrow(0, 300, 700).to_kind(Kind::Double),
        );
        let mut sum = of(&first);
        sum.merge(of(&second));
        sum.merge(SumOfSquares::default());
        let expected = of(&t).value();
        let tensor = sum.into_tensor(Device::Cpu);
        assert_eq!((tensor.size(), tensor.kind()), (&[1][..], Kind::Double));
        let actual = tensor.get(0).double_value();
        assert!(
            (actual - expected).abs() <= 1e-6 * expected,
            "{actual} {expected}"
        );
    }

    #[test]
    fn sum_of_squares_is_accurate() {
        for n in [0, 1, 17, 100_003] {
            let t = randn(&[n], 5);
            let expected = t
                .to_kind(Kind::Double)
                .square()
                .sum(Kind::Double)
                .double_value();
            let actual = of(&t).value();
            assert!(
                (actual - expected).abs() <= 1e-6 * expected,
                "{actual} {expected}"
            );
        }
    }
}
