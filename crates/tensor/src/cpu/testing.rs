//! What the tests of this crate share.

use tandem_torch::{Kind, Tensor};

/// Normal numbers that depend on `seed` only.
pub fn randn(shape: &[i64], seed: u64) -> Tensor {
    let numel: i64 = shape.iter().product();
    let mut values = vec![0f32; numel as usize];
    crate::random::fill_normal(&mut values, seed, "test", 0, 1.0);
    Tensor::from_slice(&values).view(shape)
}

/// The cosines and sines of some fp32 angles.
pub fn cos_and_sin(angles: &Tensor) -> (Tensor, Tensor) {
    let map = |f: fn(f32) -> f32| {
        let values: Vec<f32> = angles.to_vec::<f32>().into_iter().map(f).collect();
        Tensor::from_slice(&values).view(angles.size())
    };
    (map(f32::cos), map(f32::sin))
}

/// The L2 norm.
pub fn norm(t: &Tensor) -> f64 {
    t.to_vec::<f64>().iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// Fails when shapes differ or an element differs by more than `tolerance`, absolutely and relatively.
#[track_caller]
pub fn assert_close(label: &str, actual: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(actual.size(), expected.size(), "{label}: shapes differ");
    let pairs = actual
        .to_vec::<f64>()
        .into_iter()
        .zip(expected.to_vec::<f64>());
    for (index, (a, e)) in pairs.enumerate() {
        let excess = (a - e).abs() - e.abs() * tolerance;
        // False for NaN, too.
        assert!(
            excess <= tolerance,
            "{label}: element {index} is {a:e} for {e:e}, off by {excess:e} beyond {tolerance:e}"
        );
    }
}

/// The gradient of `f` at `x` by central differences in fp64, which leaves about nine digits.
pub fn numeric_gradient(x: &Tensor, f: impl Fn(&Tensor) -> f64) -> Tensor {
    const STEP: f64 = 1e-5;
    let at = x.to_kind(Kind::Double).copy();
    let flat = at.view([-1]);
    let slopes: Vec<f64> = (0..flat.numel() as i64)
        .map(|index| {
            let element = flat.narrow(0, index, 1);
            let value = element.double_value();
            element.fill_(value + STEP);
            let above = f(&at);
            element.fill_(value - STEP);
            let below = f(&at);
            element.fill_(value);
            (above - below) / (2.0 * STEP)
        })
        .collect();
    Tensor::from_slice(&slopes).view(x.size())
}

/// The sum of the products of all elements, in fp64.
pub fn dot(a: &Tensor, b: &Tensor) -> f64 {
    let pairs = a.to_vec::<f64>().into_iter().zip(b.to_vec::<f64>());
    pairs.map(|(a, b)| a * b).sum()
}
